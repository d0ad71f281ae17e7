"""Laws L3, L4 and L9: one address, what runs is what you can read, and a model file is data."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import SMALL

import builder
from builder.build import proof_of
from builder.layout import WIDTH
from builder.source import class_name

RUFF = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
FILES = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))

RUN = """
import importlib.util, pathlib, sys, torch
for folder in map(pathlib.Path, sys.argv[1:]):
    made = importlib.util.spec_from_file_location(folder.name, folder / "saved.py")
    saved = importlib.util.module_from_spec(made)
    made.loader.exec_module(saved)
    inputs, state, name = torch.load(folder / "data.pt")
    model = getattr(saved, name)()
    model.load_state_dict(state)
    torch.save(model.eval()(**inputs), folder / "out.pt")
assert "builder" not in sys.modules
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """For each model file: what the built model gives, and what its saved source gives in a fresh interpreter."""
    expected, folders = {}, {}
    for file in FILES:
        model = builder.build(file, args=SMALL.get(file.stem, {}), seed=1).eval()
        inputs = inputs_of(model)
        folders[file] = tmp_path_factory.mktemp(file.stem)
        (folders[file] / "saved.py").write_text(builder.code(file, args=SMALL.get(file.stem, {})))
        torch.save((inputs, model.state_dict(), class_name(file.stem)), folders[file] / "data.pt")
        expected[file] = model(**inputs)
    command = [sys.executable, "-c", RUN, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folders[FILES[0]], timeout=300)
    assert done.returncode == 0, done.stderr
    return {file: (expected[file], torch.load(folders[file] / "out.pt")) for file in FILES}


def inputs_of(model, batch=2, length=5):
    proof = proof_of(model)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, spec in proof.loaded.spec.inputs.items():
        symbols = iter((batch, length, 8, 8))
        shape = [next(symbols) if isinstance(s, str) and not s.startswith("=") else s for s in spec.shape]
        shape = [proof.expansion.compute(s, proof.expansion.args, "shape") for s in shape]
        below = proof.expansion.compute(spec.range[1], proof.expansion.args, "range") if spec.range else 8
        drawn = torch.randint(0, min(8, below), shape, generator=generator)
        floats = torch.randn(shape, generator=generator)
        found[name] = {"int64": drawn, "bool": drawn > 0}.get(spec.dtype, floats)
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_saved_source_gives_the_same_bits_without_builder(alone, file):
    expected, found = alone[file]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_table_state_dict_and_attribute_path_are_one_name(file):
    model = builder.build(file, args=SMALL.get(file.stem, {}))
    table = builder.parameters(model)
    saved = {row.name for row in table if row.persistent}
    assert saved == set(model.state_dict())
    for row in table:
        if row.kind != "buffer":
            assert tuple(model.get_parameter(row.name).shape) == row.shape


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A folder with the source of every model file."""
    folder = tmp_path_factory.mktemp("printed")
    for file in FILES:
        (folder / f"{file.stem}.py").write_text(builder.code(file))
    return folder


@pytest.mark.skipif(RUFF is None, reason="ruff is not installed")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["format", "--diff"], id="formatted"),
        pytest.param(["check", "--select", "E,W,F,B,UP,I,SIM"], id="without a fault that a linter finds"),
    ],
)
def test_source_is_as_a_reviewer_wants_it(printed, command):
    options = ["--isolated", "--line-length", str(WIDTH), "--target-version", "py311"]
    done = subprocess.run([RUFF, *command, *options, str(printed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_source_has_a_docstring_for_every_class_and_no_line_too_long(printed, file):
    text = (printed / f"{file.stem}.py").read_text()
    tree = ast.parse(text)
    assert all(ast.get_docstring(node) for node in [tree, *tree.body] if isinstance(node, ast.Module | ast.ClassDef))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "import builder" not in text


L = {"kind": "Linear", "in_features": 2, "out_features": 2}
W = {"kind": "Parameter", "shape": [2, 2], "init": "zeros"}


@pytest.mark.parametrize(
    ("change", "address"),
    [
        pytest.param(
            {"layers": {"fc": {**L, "dtype": "float32) or open('PWNED', 'w')#"}}}, "layers.fc.dtype", id="dtype"
        ),
        pytest.param(
            {"layers": {"w": {**W, "dtype": "float32, *open('PWNED', 'w')"}}}, "layers.w.dtype", id="raw dtype"
        ),
        pytest.param(
            {"layers": {"w": {**W, "init": "zeros_(open('PWNED', 'w')) or nn.init.ones"}}},
            "layers.w.init.policy",
            id="policy",
        ),
        pytest.param(
            {"layers": {"w": {**W, "init": {"policy": "zeros", "a=open('PWNED', 'w'), b": 1}}}},
            "layers.w.init",
            id="policy key",
        ),
        pytest.param(
            {"layers": {"w": {"kind": "LSTM", "input_size": 2, "hidden_size=open('PWNED', 'w') or 3, num_layers": 1}}},
            "layers.w",
            id="argument",
        ),
        pytest.param(
            {"layers": {"fc": {"kind": "Linear(open('PWNED', 'w')) or nn.Linear"}}}, "layers.fc.kind", id="kind"
        ),
        pytest.param({"tie": {"fc.weight = open('PWNED', 'w') #": "fc.weight"}}, "tie.fc", id="tie target"),
        pytest.param({"tie": {"fc.weight": "fc.weight if open('PWNED', 'w') else 0"}}, "tie.fc", id="tie source"),
        pytest.param({"args": {"a=open('PWNED', 'w')": 1}}, "args", id="arg"),
        pytest.param({"inputs": {"x=open('PWNED', 'w')": {}}}, "inputs", id="input"),
        pytest.param(
            {"buffers": {"b": {"value": 1, "dtype": "float32, open('PWNED', 'w')"}}}, "buffers.b.dtype", id="buffer"
        ),
        pytest.param({"blocks": {"A: open('PWNED', 'w')\nclass B": {"layers": {"fc": L}}}}, "blocks", id="block"),
        pytest.param({"forward": "open('PWNED', 'w')"}, "forward", id="forward"),
        pytest.param({"buffers": {"b": {"value": "=open('PWNED', 'w')"}}}, "buffers.b.value", id="expression"),
    ],
)
def test_text_in_a_model_file_never_becomes_code(change, address, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"inputs": {"x": {}}, "layers": {"fc": L}, "forward": "x", **change}
    for call in (builder.build, builder.code):
        with pytest.raises(builder.BuilderError) as caught:
            call(given(data))
        assert caught.value.problems[0].address.startswith(address)
    assert not (tmp_path / "PWNED").exists()
