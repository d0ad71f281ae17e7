"""The probe: scales by depth of one batch, against the same pass written by hand, and what it says of deep models."""

import json

import pytest
import torch

import builder
from builder.build import prove
from builder.cli import main
from builder.probe import SIZES, probe_model

DEEP = {
    "args": {"depth": 30},
    "inputs": {"x": {"shape": ["batch", 64]}},
    "blocks": {
        "Layer": {
            "inputs": ["x"],
            "layers": {"fc": {"kind": "Linear", "in_features": 64, "out_features": 64}, "act": {"kind": "ReLU"}},
        }
    },
    "layers": {
        "h": {"kind": "Layer", "repeat": "=depth"},
        "head": {"kind": "Linear", "in_features": 64, "out_features": 10},
    },
}


@pytest.mark.parametrize(
    ("init", "kinds"),
    [
        pytest.param("xavier_uniform", {"vanishing", "dead"}, id="xavier_uniform halves the variance in each layer"),
        pytest.param("kaiming_normal", set(), id="kaiming_normal keeps it"),
        pytest.param(
            {"all": {"policy": "normal", "std": 0.5, "min_ndim": 2}}, {"exploding", "dead"}, id="far too large"
        ),
    ],
)
def test_deep_relu_mlp(init, kinds):
    found = probe_model(prove(DEEP, init=init))
    assert {verdict.kind for verdict in found.verdicts} == kinds


def test_numbers_are_those_of_the_same_pass_by_hand():
    proof = prove(DEEP, args={"depth": 2})
    found = {layer.layer: layer for layer in probe_model(proof, seed=5).layers}
    model = builder.build(DEEP, args={"depth": 2}, seed=5)
    x = torch.randn(SIZES[0], 64, generator=torch.Generator().manual_seed(0))
    a = model.h[0](x)
    a.retain_grad()
    out = model.head(model.h[1](a))
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    assert found["h.0"].rms == pytest.approx(a.square().mean().sqrt().item(), rel=1e-6)
    assert found["h.0"].gradient_rms == pytest.approx(a.grad.square().mean().sqrt().item(), rel=1e-5)
    assert found["h.0.act"].dead == (a == 0).all(0).double().mean().item()
    assert found["head"].gradient_rms == pytest.approx(1.0, rel=0.2)


def test_weights_stand_beside_their_theory():
    weights = {weight.name: weight for weight in probe_model(prove(DEEP, init="kaiming_normal")).weights}
    assert weights["h.0.fc.weight"].predicted_std == pytest.approx((2 / 64) ** 0.5)
    assert weights["h.0.fc.weight"].std == pytest.approx(weights["h.0.fc.weight"].predicted_std, rel=0.05)
    assert len(weights) == 62


def test_tied_name_stands_beside_the_theory_of_its_owner():
    data = {
        "inputs": {"ids": {"shape": ["batch"], "dtype": "int64", "range": [0, 9]}},
        "layers": {
            "e": {"kind": "Embedding", "num_embeddings": 9, "embedding_dim": 4},
            "head": {"kind": "Linear", "in_features": 4, "out_features": 9},
        },
        "tie": {"e.weight": "head.weight"},
        "forward": "head(e(ids))",
    }
    tied = probe_model(prove(data)).weights[0]
    assert (tied.name, tied.predicted_std) == ("e.weight", pytest.approx(12**-0.5))


def test_probe_leaves_random_state_and_gradients_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    probe_model(prove(DEEP, args={"depth": 1}))
    assert torch.equal(torch.get_rng_state(), before)


def test_several_outputs_and_integer_inputs_are_taken():
    data = {
        "inputs": {"ids": {"shape": ["batch", "time"], "dtype": "int64", "range": [0, 9]}},
        "layers": {"e": {"kind": "Embedding", "num_embeddings": 9, "embedding_dim": 4}},
        "forward": "{'a': e(ids), 'b': (e(ids).mean(1), ids)}",
    }
    found = probe_model(prove(data))
    assert found.batch == "a made batch (ids [32, 16])"
    assert [layer.layer for layer in found.layers] == ["e"]
    assert found.layers[0].gradient_rms > 0


def test_model_without_a_declared_shape_is_refused(refusal):
    problem = refusal(probe_model, prove({**DEEP, "inputs": ["x"]}))
    assert (problem.address, problem.hint) == ("inputs.x", "give shape: [batch, ...]")


@pytest.mark.parametrize("target", [["conf/model/digits_mlp.yaml"], ["model=digits_mlp"]], ids=["file", "run"])
def test_command_prints_tables_and_json(target, capsys, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    assert main(["probe", *target]) == 0
    said = capsys.readouterr().out
    assert "healthy: " in said
    assert "fc1.weight" in said
    assert main(["probe", "--json", *target]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [layer["layer"] for layer in data["layers"]][:2] == ["fc1", "act1"]
    assert data["verdicts"] == []


def test_a_model_without_a_gradient_is_refused(refusal):
    problem = refusal(probe_model, prove(DEEP, freeze={"all": {"match": "*"}}))
    assert (problem.address, problem.what) == ("forward", "gives nothing that has a gradient")


def test_what_is_no_number_is_a_text_in_json():
    found = probe_model(prove(DEEP, init={"huge": {"policy": "normal", "std": 1e18, "min_ndim": 2}}))
    data = json.loads(json.dumps(found.as_data(), allow_nan=False))
    assert data["layers"][-1]["rms"] in ("nan", "inf")


def test_a_head_that_starts_at_zero_is_no_vanishing_signal():
    init = {"all": {"policy": "kaiming_normal", "min_ndim": 2}, "head": {"policy": "zeros", "match": "head.*"}}
    assert not {verdict.kind for verdict in probe_model(prove(DEEP, init=init)).verdicts} & {"vanishing", "exploding"}


def test_outputs_that_overflow_are_the_gravest_verdict():
    found = probe_model(prove(DEEP, init={"huge": {"policy": "normal", "std": 1e18, "min_ndim": 2}}))
    assert (found.verdicts[0].kind, found.verdicts[0].severity) == ("nonfinite", "error")
    assert found.verdicts[0].names[0].startswith("h.")
