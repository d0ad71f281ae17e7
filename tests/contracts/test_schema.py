"""The JSON Schema of the model file: every shipped file fits it, wrong ones do not, every field is described."""

import json
from pathlib import Path

import jsonschema
import pytest
from omegaconf import OmegaConf

from builder.cli import main
from builder.schema import schema

ROOT = Path(__file__).parents[2]
MODELS = sorted((ROOT / "conf" / "model").glob("*.yaml"))
HEADER = "# yaml-language-server: $schema=../model.schema.json"
L = {"kind": "Linear", "in_features": "=d", "out_features": "${args.d}"}


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.stem)
def test_shipped_model_fits_the_schema_and_names_it(validator, file):
    validator.validate(OmegaConf.to_container(OmegaConf.load(file), resolve=False))
    assert file.read_text().startswith(HEADER + "\n")


def test_shipped_schema_is_the_one_that_the_command_prints(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()
    assert json.loads((ROOT / "conf" / "model.schema.json").read_text()) == schema(), (
        "python -m builder schema > conf/model.schema.json"
    )


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"args": ["d"], "inputs": ["x"], "layers": {"fc": L}}, id="lists of names"),
        pytest.param(
            {"inputs": {"x": None}, "layers": {"fc": {**L, "repeat": "=n", "when": "=d > 1"}}}, id="expressions"
        ),
        pytest.param({"layers": {"fc": {**L, "repeat": "${args.n}"}}}, id="an interpolation for a number"),
        pytest.param(
            {"layers": {"w": {"kind": "Parameter", "shape": ["=d"], "init": "normal"}}}, id="a policy by name"
        ),
        pytest.param({"layers": {"fc": {**L, "init": {"weight": {"policy": "normal", "std": "=1/d"}}}}}, id="a policy"),
        pytest.param({"layers": {"fc": {**L, "init": {"weight": "normal", "bias": "zeros"}}}}, id="policies by name"),
        pytest.param({"layers": {"s": {"kind": "Sequential", "layers": [L, {"kind": "ReLU"}]}}}, id="a Sequential"),
        pytest.param({"layers": {"fc": L}, "tie": {"a": "b", "c": {"source": "d", "transpose": True}}}, id="ties"),
        pytest.param({"layers": {"fc": L}, "freeze": {"f": {"match": "fc.*", "rows": [0, "=d"]}}}, id="frozen rows"),
    ],
)
def test_model_that_the_language_allows_fits(validator, data):
    validator.validate(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({"layer": {}}, id="an unknown section"),
        pytest.param({"layers": {"fc": {"in_features": 3}}}, id="no kind"),
        pytest.param({"layers": {"fc": 3}}, id="a layer that is a number"),
        pytest.param({"layers": {"fc": {**L, "repeat": 1.5}}}, id="a fraction for a count"),
        pytest.param({"layers": {"fc": {**L, "repeat": "n"}}}, id="a name for a count"),
        pytest.param({"layers": {"fc": L}, "buffers": {"b": {"value": 1, "persistent": 3}}}, id="a number for a bool"),
        pytest.param({"layers": {"fc": L}, "init": {"r": {"match": "*"}}}, id="a rule without a policy"),
        pytest.param({"layers": {"fc": L}, "freeze": {"r": {"mach": "*"}}}, id="a selector misspelt"),
        pytest.param({"layers": {"fc": L}, "inputs": {"x": {"dtype": "float33"}}}, id="an unknown dtype"),
    ],
)
def test_model_that_the_language_refuses_does_not_fit(validator, data):
    assert not validator.is_valid(data)


def test_every_field_is_described():
    made = schema()
    for owner in [made, *made["$defs"].values()]:
        for name, field in owner.get("properties", {}).items():
            assert field.get("description"), f"{owner.get('title')}.{name}"
