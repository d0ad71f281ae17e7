"""An error names the file and line of a value, or the override that set it, wherever the value came from."""

# ruff: noqa: E501 (a row of the table reads better on one line)

import shutil

import pytest

import builder
from builder.cli import main
from builder.config import CONF


def refused(capsys, *target):
    """What `check` says of a config that it refuses."""
    assert main(["check", *target]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "said"),
    [
        # the model
        pytest.param(
            ["model.layers.fc1.kind=Linaer"], "layers.fc1.kind (override model.layers.fc1.kind=Linaer): unknown kind",
            id="a kind",
        ),
        pytest.param(
            ["+model.layers.x.kind=Linear"], "layers.x (override +model.layers.x.kind=Linear): 'x' stands in both",
            id="a layer that an override made",
        ),
        pytest.param(
            ["+model.layers.y.kind=Linear"], "layers.y (override +model.layers.y.kind=Linear): Linear needs 'in_features'",
            id="what is missing of it",
        ),
        pytest.param(
            ["model=gpt2", "model.args.d=-1"], "model gpt2.yaml with model.args.d=-1: ", id="an arg, where it is read"
        ),
        pytest.param(
            ["+recipes=char_gpt", "model.args.d=0"], "model char_gpt.yaml with model.args.d=0: ", id="an arg of a recipe"
        ),
        # rules from outside
        pytest.param(
            ["init=normal_002", "init.matrices.std=abc"], "init.matrices.std (override init.matrices.std=abc): std is a",
            id="std of a scheme",
        ),
        pytest.param(
            ["init=normal_002", "init.matrices.min_ndim=7"],
            "init.matrices (init/normal_002.yaml:4, override init.matrices.min_ndim=7): matches no parameter",
            id="a selector of a scheme",
        ),
        pytest.param(
            ["init=normal_002", "+init.biases={match: nix, policy: zeros}"],
            "init.biases (override +init.biases={match: nix, policy: zeros}): matches no parameter", id="a rule beside it",
        ),
        pytest.param(
            ["init=bert_huggingface"], "init.position.path (init/bert_huggingface.yaml:7): MissingMandatoryValue", id="a scheme without its file"
        ),
        pytest.param(
            ["freeze=gradual", "freeze.fc1.match=nix"],
            "freeze.fc1 (freeze/gradual.yaml:3, override freeze.fc1.match=nix): matches no parameter", id="freeze",
        ),
        pytest.param(
            ["freeze=gradual", "freeze.fc1.until.epoch=-1"],
            "freeze.fc1.until (freeze/gradual.yaml:3, override freeze.fc1.until.epoch=-1): epoch is -1", id="a moment",
        ),
        # the rest of a run
        pytest.param(["optimizer.lr=fast"], "optimizer.lr (override optimizer.lr=fast): lr is a number", id="optimizer"),
        pytest.param(
            ["optimizer=sgd", "optimizer._target_=torch.optim.Adam"],
            "optimizer.momentum (optimizer/sgd.yaml:4): Adam has no argument", id="a key of a group's file",
        ),
        pytest.param(
            ["+recipes=char_gpt", "scheduler._target_=torch.optim.lr_scheduler.StepLR"],
            "scheduler.total_steps (recipes/char_gpt.yaml:34): StepLR has no argument", id="a key that a recipe sets",
        ),
        pytest.param(
            ["trainer.max_epochs=abc"], "scheduler (scheduler/cosine.yaml:2, override trainer.max_epochs=abc): Cosine",
            id="by interpolation",
        ),
        pytest.param(["seed=abc"], "init_seed (override seed=abc): got 'abc'", id="by interpolation at the top"),
        pytest.param(["rng=foo"], "rng (override rng=foo): unknown rng 'foo'", id="a key at the top"),
    ],
)  # fmt: skip
def test_override_is_named_where_it_is_the_cause(capsys, target, said):
    assert said in refused(capsys, *target)


@pytest.mark.parametrize(
    ("file", "old", "new", "target", "said"),
    [
        pytest.param(
            "init/normal_002.yaml", "std: 0.02", "std: abc", ["init=normal_002"],
            "init.matrices.std (init/normal_002.yaml:4): std is a number", id="init",
        ),
        pytest.param(
            "freeze/gradual.yaml", "fc1.*", "nix", ["freeze=gradual"],
            "freeze.fc1 (freeze/gradual.yaml:3): matches no parameter", id="freeze",
        ),
        pytest.param(
            "freeze/gradual.yaml", "epoch: 10", "epoc: 10", ["freeze=gradual"],
            "freeze.fc1.until (freeze/gradual.yaml:3): unknown key 'epoc'", id="a key of freeze",
        ),
        pytest.param(
            "optimizer/adamw.yaml", "lr: 0.003", "lr: fast", [], "optimizer.lr (optimizer/adamw.yaml:3): lr is a number",
            id="optimizer",
        ),
        pytest.param(
            "model/digits_mlp.yaml", "kind: ReLU", "kind: ReLu", [], "layers.act1.kind (digits_mlp.yaml:10): unknown kind",
            id="model",
        ),
        pytest.param(
            "task/classification.yaml", "cross_entropy(logits", "cross_entropi(logits", [],
            "task.loss (task/classification.yaml:4): ", id="task",
        ),
        pytest.param("config.yaml", "rng: keyed", "rng: foo", [], "rng (config.yaml:19): unknown rng", id="config"),
    ],
)  # fmt: skip
def test_value_in_a_file_is_named_by_file_and_line(capsys, tmp_path, monkeypatch, file, old, new, target, said):
    shutil.copytree(CONF, tmp_path / "conf")
    text = (tmp_path / "conf" / file).read_text()
    assert old in text
    (tmp_path / "conf" / file).write_text(text.replace(old, new))
    monkeypatch.setattr("builder.config.CONF", tmp_path / "conf")
    assert said in refused(capsys, *target)


def test_override_of_a_model_file_is_named_where_its_arg_is_read(capsys):
    said = refused(capsys, str(CONF / "model" / "gpt.yaml"), "args.d=-1")
    assert said.startswith("model gpt.yaml with args.d=-1: ")
    assert "layers.gain.shape (gpt.yaml:43): shape is [-1]" in said


def test_args_of_the_caller_are_named(refusal):
    with pytest.raises(builder.BuilderError, match=r"^model gpt.yaml with args=\{'d': -1\}: "):
        builder.prove(CONF / "model" / "gpt.yaml", args={"d": -1})
    assert refusal(builder.prove, CONF / "model" / "gpt.yaml", args={"e": 1}).place == "override args={'e': 1}"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        pytest.param({"init": {"r": {"match": "nix", "policy": "zeros"}}}, "init.r", id="init"),
        pytest.param({"freeze": {"r": {"match": "nix"}}}, "freeze.r", id="freeze"),
    ],
)
def test_rule_of_the_caller_is_told_from_those_of_the_file(refusal, given, address):
    problem = refusal(builder.prove, CONF / "model" / "gpt.yaml", **given)
    assert (problem.address, problem.place) == (address, "given from outside")


@pytest.mark.parametrize(
    ("text", "address", "line"),
    [
        pytest.param("inputs: [x]\nlayers:\n  x: {kind: ReLU}\n", "layers.x", 3, id="a name in two sections"),
        pytest.param("inputs:\n  layer: {}\nlayers: {fc: {kind: ReLU}}\n", "inputs.layer", 2, id="a loop's name"),
        pytest.param(
            "inputs:\n  x: {default: null}\n  y: {}\nlayers: {fc: {kind: ReLU}}\n", "inputs.x", 2, id="a default first"
        ),
    ],
)
def test_conflict_of_two_parts_has_the_line_of_one(tmp_path, refusal, text, address, line):
    (tmp_path / "m.yaml").write_text(text)
    problem = refusal(builder.prove, tmp_path / "m.yaml")
    assert (problem.address, problem.place) == (address, f"m.yaml:{line}")
