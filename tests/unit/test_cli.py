"""`python -m builder`: what it prints and how it exits."""

import json
from pathlib import Path

import pytest

import builder
from builder.cli import main

MODEL = str(Path(__file__).parents[2] / "conf" / "model" / "digits_mlp.yaml")


def test_check_tells_the_count_of_parameters(capsys):
    assert main(["check", MODEL, "args.hidden=16"]) == 0
    assert capsys.readouterr().out == "digits_mlp.yaml: ok, 1,482 parameters\n"


def test_check_takes_hydra_overrides(capsys):
    assert main(["check", "model=digits_mlp", "model.args.hidden=16", "init=orthogonal"]) == 0
    assert "ok, 1,482 parameters" in capsys.readouterr().out


def test_check_tells_what_is_frozen(capsys):
    assert main(["check", MODEL, "args.hidden=16", "freeze.first.match=fc1.*"]) == 0
    assert "1,482 parameters, 1,040 of them frozen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        pytest.param({"all": {}}, "; nothing trains", id="for ever"),
        pytest.param({"all": {"until": {"step": 5}}}, "; nothing trains before step 5", id="until a step"),
        pytest.param(
            {"w": {"match": "*.weight"}, "b": {"match": "*.bias", "until": {"epoch": 2}}},
            "; nothing trains before epoch 2", id="a part of it until an epoch",
        ),
        pytest.param(
            {"w": {"match": "*.weight", "until": {"step": 9}}, "b": {"match": "*.bias", "until": {"epoch": 2}}},
            "; nothing trains before epoch 2 or step 9", id="until an epoch and until a step",
        ),
        pytest.param(
            {"e": {"until": {"epoch": 2}}, "s": {"until": {"step": 9}}}, "; nothing trains at the start",
            id="until both",
        ),
        pytest.param({"w": {"match": "*.weight"}}, "", id="the rest trains"),
        pytest.param({"all": {"from": {"step": 5}}}, "", id="frozen later"),
    ],
)  # fmt: skip
def test_check_says_that_nothing_trains(capsys, tmp_path, rules, said):
    file = tmp_path / "m.yaml"
    layers = {"fc": {"kind": "Linear", "in_features": 2, "out_features": 5}}
    file.write_text(json.dumps({"inputs": {"x": {"shape": ["batch", 2]}}, "layers": layers, "freeze": rules}))
    assert main(["check", str(file)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"{said}\n")
    assert ("nothing trains" in printed) == bool(said)


def test_check_of_a_model_without_parameters_does_not_speak_of_training(capsys, tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text("inputs: {x: {shape: [batch, 2]}}\nlayers:\n  act: {kind: ReLU}\n")
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out == "m.yaml: ok, 0 parameters\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--batch", MODEL, "--allow", "mypack", "args.hidden=16"],
        ["check", MODEL, "--allow", "mypack", "args.hidden=16", "--batch"],
        ["explain", "fc1.bias", "--allow", "mypack", MODEL, "args.hidden=16"],
        ["explain", "fc1.bias", MODEL, "--allow", "mypack", "args.hidden=16"],
        ["explain", "fc1.bias", MODEL, "--allow", "mypack", "--", "args.hidden=16"],
        ["show", MODEL, "--json", "args.hidden=16"],
    ],
)
def test_options_may_stand_anywhere(capsys, arguments):
    assert main(arguments) == 0
    assert {"check": "1,482 parameters; ran", "explain": "16 values", "show": "1482"}[arguments[0]] in (
        capsys.readouterr().out
    )


def test_check_says_when_shapes_were_not_checked(capsys, tmp_path):
    file = tmp_path / "m.yaml"
    file.write_text("inputs: [x]\nlayers:\n  fc: {kind: Linear, in_features: 2, out_features: 2}\n")
    assert main(["check", str(file)]) == 0
    assert "shapes not checked" in capsys.readouterr().out


def test_show_prints_the_table(capsys):
    assert main(["show", MODEL, "args.hidden=16"]) == 0
    out = capsys.readouterr().out
    assert "fc1.weight" in out and "1,482" in out


def test_show_as_json_is_the_table_of_the_library(capsys):
    assert main(["show", "--json", MODEL, "args.hidden=16"]) == 0
    shown = json.loads(capsys.readouterr().out)
    rows = builder.parameters(builder.build(MODEL, args={"hidden": 16}))
    assert [row["name"] for row in shown["parameters"]] == [row.name for row in rows]
    assert shown["totals"]["parameters"] == sum(row["numel"] for row in shown["parameters"]) == 1482


def test_code_of_a_file_and_of_overrides_is_the_source_of_the_library(capsys):
    assert main(["code", MODEL]) == 0
    of_file = capsys.readouterr().out
    assert of_file == builder.code(MODEL)
    assert main(["code", "model=digits_mlp"]) == 0
    assert capsys.readouterr().out == of_file


@pytest.mark.parametrize("name", ["check", "show", "code"])
@pytest.mark.parametrize(
    ("target", "message"),
    [
        pytest.param(["nowhere.yaml"], "nowhere.yaml: no such file", id="missing file"),
        pytest.param([MODEL, "args"], "args: is not an override", id="no value"),
        pytest.param([MODEL, "layers.fc1.init=3"], "layers.fc1.init", id="bad init"),
        pytest.param(["model=gtp"], "did you mean 'gpt'?", id="unknown choice"),
    ],
)
def test_refused_target_ends_with_2_and_the_problem(name, target, message, capsys):
    assert main([name, *target]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""


def test_code_without_a_model_is_refused(capsys):
    assert main(["code", "~model"]) == 2
    assert "model: is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["nope"], ["check", "--nope"], ["check", MODEL, "--nope", "a=1"], ["report", "a", "b"]]
)
def test_wrong_command_line_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_reader_that_goes_away_is_no_error(monkeypatch):
    def gone(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    assert main(["code", MODEL]) == 0


def test_override_of_an_argument_that_the_model_does_not_have_is_refused(capsys):
    assert main(["check", MODEL, "args.hiden=3"]) == 2
    assert "did you mean 'hidden'?" in capsys.readouterr().err


LOOKS = """
inputs: {x: {shape: [batch, 3]}, ids: {shape: [batch], dtype: int64, range: [0, 5]}}
layers:
  fc: {kind: Linear, in_features: 3, out_features: 2}
  e: {kind: Embedding, num_embeddings: ROWS, embedding_dim: 3}
forward: |
  kept = masked_select(x, x > 0)
  return fc(x + e(ids)).sum() + kept.sum()
"""


def test_forward_that_looks_at_values_says_so_and_is_tried_on_a_tiny_batch(tmp_path, capsys):
    file = tmp_path / "m.yaml"
    file.write_text(LOOKS.replace("ROWS", "5"))
    assert main(["check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "`kept = torch.masked_select(x, x > 0)` looks at values (--batch runs a tiny batch)" in said
    assert main(["check", "--batch", str(file)]) == 0
    assert capsys.readouterr().out == "m.yaml: ok, 23 parameters; ran on a tiny batch\n"


def test_tiny_batch_finds_what_meta_could_not(tmp_path, capsys):
    file = tmp_path / "m.yaml"
    file.write_text(LOOKS.replace("ROWS", "1"))
    assert main(["check", str(file)]) == 0
    assert main(["check", "--batch", str(file)]) == 2
    assert "m.yaml:8" in capsys.readouterr().err


@pytest.mark.parametrize("section", ["mode", "test", "early_stopping", "stats", "data"])
def test_probe_names_a_section_that_was_taken_out(capsys, section):
    assert main(["probe", "model=digits_mlp", f"~{section}"]) == 2
    assert f"{section}: is missing" in capsys.readouterr().err
