"""`builder explain`: what decides one parameter, its scale in theory and as drawn."""

import math

import pytest
import torch

import builder
from builder.cli import main
from builder.explain import explain, lines
from builder.initialize.theory import theory_of
from builder.table import render_table, rows

MODEL = {
    "args": {"d": 64},
    "inputs": {"x": {"shape": ["batch", "=d"]}},
    "layers": {
        "a": {"kind": "Linear", "in_features": "=d", "out_features": 256},
        "w": {"kind": "Parameter", "shape": ["=d", 256], "axes": ["out", "in"], "init": "xavier_uniform"},
        "b": {"kind": "Linear", "in_features": 256, "out_features": "=d"},
    },
    "buffers": {"s": {"value": 2.0}},
    "forward": "a(x) @ w.T + b(a(x)) * s",
    "init": {
        "all": {"match": ["a.weight", "b.bias"], "policy": "normal", "std": 0.5},
        "a": {"match": "a.weight", "policy": "kaiming_normal", "nonlinearity": "relu"},
    },
    "tie": {"b.weight": "w"},
}


@pytest.fixture(scope="module")
def proof():
    return builder.prove(MODEL)


def test_winner_and_losers_are_told(proof):
    found = explain(proof, "a.weight")
    assert found.rule == "init.a: kaiming_normal, nonlinearity: relu"
    assert found.lost == ("init.all",)
    assert found.declared == "layers.a"
    assert found.fans == (64, 256)
    assert found.gain == pytest.approx(math.sqrt(2))
    assert found.theory.std == pytest.approx(math.sqrt(2 / 64))


def test_drawn_values_are_those_of_the_built_model(proof):
    found = explain(proof, "a.weight", seed=5)
    weight = builder.build(MODEL, seed=5).a.weight.double()
    assert (found.mean, found.std) == (weight.mean().item(), weight.std().item())
    assert all(abs(score) < 4 for score in found.z)


@pytest.mark.parametrize("rng", ["keyed", "torch"])
def test_drawn_values_follow_the_rng(proof, rng):
    assert explain(proof, "w", rng=rng).std == builder.build(MODEL, rng=rng).w.double().std().item()


def test_tied_name_is_explained_by_its_owner(proof):
    found = explain(proof, "b.weight")
    assert found.owner == "w"
    assert found.rule.startswith("layers.w.init: xavier_uniform")
    assert ("tied to", "w, which owns the values below") in lines(found)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        pytest.param(None, "trainable", id="trainable"),
        pytest.param({"match": "w"}, "frozen (freeze.old)", id="frozen"),
        pytest.param({"match": "w", "rows": [0, 5]}, "frozen rows 0:5 (freeze.old)", id="in part"),
        pytest.param({"match": "w", "until": {"epoch": 3}}, "frozen until epoch 3 (freeze.old)", id="for a time"),
    ],
)
def test_tied_name_is_told_with_the_state_of_its_owner(rule, words):
    proof = builder.prove(MODEL, freeze={"old": rule} if rule else None)
    assert ("state", f"tied to w, which is {words}") in lines(explain(proof, "b.weight"))
    assert ("state", words) in lines(explain(proof, "w"))
    column = render_table(rows(proof), "").columns[5]
    assert ("tied to w" if rule is None else f"tied to w:\n{words}") in column.cells


def test_values_that_a_batch_will_scale_are_told_as_those_before():
    proof = builder.prove(MODEL, init={"data": {"match": "a.weight", "policy": "lsuv"}})
    assert dict(lines(explain(proof, "a.weight")))["as drawn"].endswith("init_seed 0, before it is scaled on a batch")
    assert "batch" not in dict(lines(explain(proof, "w")))["as drawn"]


def test_default_of_a_layer_is_told_as_what_its_class_does(proof):
    found = explain(proof, "a.bias")
    assert found.rule == "default (Linear): uniform, a: -0.125, b: 0.125"
    assert (found.theory.low, found.theory.high) == (-0.125, 0.125)


def test_unknown_name_and_buffer_are_refused(proof, refusal):
    assert "did you mean 'a.weight'" in refusal(explain, proof, "a.wieght").hint
    assert "is a buffer" in refusal(explain, proof, "s").what


def test_command_prints_place_override_and_optimizer(capsys):
    assert main(["explain", "fc1.weight", "model=digits_mlp", "model.args.hidden=32", "init=orthogonal"]) == 0
    said = capsys.readouterr().out
    assert "32 × 64, float32, 2,048 values, Linear" in said
    assert "layers.fc1 (digits_mlp.yaml:" in said
    assert "init=orthogonal: matrices (init/orthogonal.yaml:4): orthogonal" in said
    assert "the optimizer's own settings" in said
    assert main(["explain", "h.0.mlp.c_fc.weight", "conf/model/gpt.yaml", "init.matrices.std=0.5"]) == 0
    said = capsys.readouterr().out
    assert "override init.matrices.std=0.5): normal, std: 0.5" in said
    assert main(["explain", "nothing", "conf/model/gpt.yaml"]) == 2


DRAWN = {
    "uniform": {"a": -1.0, "b": 3.0},
    "normal": {"mean": 1.0, "std": 2.0},
    "trunc_normal": {"mean": 0.5, "std": 1.0, "a": -1.0, "b": 0.7},
    "orthogonal": {"gain": 2.0},
    "sparse": {"sparsity": 0.3, "std": 0.1},
    "constant": {"val": 3.0},
}


@pytest.mark.parametrize("policy", DRAWN)
def test_theory_is_what_is_drawn(policy):
    shape = (500, 400)
    layer = {"kind": "Parameter", "shape": list(shape), "init": {"policy": policy, **DRAWN[policy]}}
    values = builder.build({"inputs": {"x": {}}, "layers": {"w": layer}, "forward": "x"}).w.double()
    theory = theory_of(policy, DRAWN[policy], shape)
    # five standard errors of mean and std over 200,000 values, at a kurtosis of at most 5
    assert values.mean().item() == pytest.approx(theory.mean, abs=5 * theory.std / math.sqrt(200_000))
    assert values.std().item() == pytest.approx(theory.std, rel=5 * math.sqrt(4 / (4 * 200_000)))
    assert theory.low <= values.min().item() <= values.max().item() <= theory.high


def test_z_scores_of_normal_values_are_standard():
    theory = theory_of("uniform", {"a": 0.0, "b": 1.0}, (1000,))
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([theory.z_scores(torch.rand(1000, generator=generator)) for _ in range(400)])
    # over 400 draws the std of a standard score has a standard error of 0.035
    assert scores.std(0).tolist() == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"),
    [
        pytest.param(0.0, 1.0, 50.0, 60.0, id="beyond fifty std"),
        pytest.param(100.0, 1.0, -2.0, 2.0, id="a mean outside"),
        pytest.param(0.0, 1.0, -9.0, 9.0, id="no bounds to speak of"),
        pytest.param(1.0, 1e6, -1.0, 2.0, id="nearly uniform"),
        pytest.param(9.0, 0.0, -2.0, 2.0, id="no spread"),
    ],
)
def test_theory_of_a_truncated_normal_holds_wherever_its_bounds_lie(mean, std, a, b):
    arguments = {"mean": mean, "std": std, "a": a, "b": b}
    theory = theory_of("trunc_normal", arguments, (10**6,))
    layer = {"kind": "Parameter", "shape": [10**6], "dtype": "float64", "init": {"policy": "trunc_normal", **arguments}}
    values = builder.build({"inputs": {"x": {}}, "layers": {"w": layer}, "forward": "x"}).w.detach()
    if std == 0:
        assert (theory.mean, theory.std, theory.z_scores(values)) == (values[0].item(), 0, None) == (b, 0, None)
    else:
        assert all(abs(score) < 4 for score in theory.z_scores(values))


def test_no_score_is_given_of_what_the_dtype_cannot_resolve():
    theory = theory_of("trunc_normal", {"mean": 0.0, "std": 1e-30, "a": 1.0, "b": 2.0}, (9,))
    assert theory.mean == 1
    assert theory.z_scores(torch.ones(9)) is None


def explained(layer, policy):
    data = {"inputs": {"x": {}}, "layers": {"w": layer}, "forward": "x", "init": {"r": policy}}
    return explain(builder.prove(data), "w.weight" if layer["kind"] == "Embedding" else "w")


def test_row_that_is_kept_at_zero_does_not_make_a_right_scale_look_wrong():
    layer = {"kind": "Embedding", "num_embeddings": 4, "embedding_dim": 10_000, "padding_idx": 1}
    assert all(abs(score) < 4 for score in explained(layer, {"policy": "normal"}).z)


@pytest.mark.parametrize(
    ("name", "mean"), [("n.weight", 1), ("n.bias", 0), ("slope.weight", 0.25), ("fc.bias", 0), ("fc.weight", 0)]
)
def test_theory_of_what_mup_leaves_at_its_constant_is_that_constant(name, mean):
    layers = {
        "fc": {"kind": "Linear", "in_features": "=d", "out_features": "=d"},
        "n": {"kind": "LayerNorm", "normalized_shape": "=d"},
        "slope": {"kind": "PReLU", "num_parameters": "=d"},
    }
    rule = {"policy": "mup", "base": {"d": 4}, "std": 0.5}
    data = {"args": {"d": 16}, "inputs": {"x": {}}, "layers": layers, "forward": "x", "init": {"all": rule}}
    theory = explain(builder.prove(data), name).theory
    assert (theory.mean, theory.std) == (mean, 0.25 if name == "fc.weight" else 0)


def test_complex_values_are_told_without_a_score():
    found = explained({"kind": "Parameter", "shape": [300, 300], "dtype": "complex64"}, {"policy": "normal"})
    assert (found.theory, found.z) == (None, None)
    assert found.std == pytest.approx(1, rel=0.02)
