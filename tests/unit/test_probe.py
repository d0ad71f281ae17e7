"""The probe: scales by depth of one batch, against the same pass written by hand, and what it says of deep models."""

import json

import pytest
import torch

import builder
from builder.build import prove
from builder.cli import main
from builder.probe import SIZES, probe_model, render

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


# ---- what could be judged --------------------------------------------------------------------------------------------


def shown(found):
    """The words below the tables."""
    return render(found).renderables[-1]


def test_a_deep_healthy_model_is_judged_in_all_that_is_said():
    found = probe_model(prove(DEEP, init="kaiming_normal"))
    assert found.judged == ("outputs of the layers by depth", "gradients of the outputs by depth", "dead units")
    assert found.unjudged == ()
    assert shown(found) == f"healthy: all numbers are finite; within the bounds: {', '.join(found.judged)}"


def test_what_too_few_layers_leave_open_is_said():
    found = probe_model(prove(DEEP, args={"depth": 2}))
    assert found.judged == ("dead units",)
    (why,) = found.unjudged
    assert why.startswith("outputs of the layers and gradients of the outputs by depth, which takes 4 layers")
    assert shown(found) == f"healthy: all numbers are finite; within the bounds: dead units\nnot judged: {why}"


def test_dead_units_of_one_sample_are_not_judged():
    model = {**DEEP, "inputs": {"x": {"shape": [1, 64]}}}
    found = probe_model(prove(model, init="xavier_uniform"))
    assert "dead" not in {verdict.kind for verdict in found.verdicts}
    (why,) = found.unjudged
    assert why.startswith("dead units of h.0.act, h.1.act, h.2.act, h.3.act and 26 more, which takes 16 values")


def test_a_model_of_which_nothing_can_be_judged_is_not_called_healthy():
    found = probe_model(prove({**DEEP, "blocks": {}, "layers": {"head": DEEP["layers"]["head"]}}))
    assert found.judged == ()
    assert shown(found).startswith("all numbers are finite; nothing else could be judged\nnot judged: outputs")


def test_layers_whose_outputs_cannot_be_measured_are_named():
    data = {
        "inputs": {"x": {"shape": ["batch", 4]}},
        "layers": {
            "fc": {"kind": "Linear", "in_features": 4, "out_features": 4},
            "pick": {"kind": "Identity"},
        },
        "forward": "fc(x) + pick(x.argmax(-1, keepdim=True))",
    }
    found = probe_model(prove(data))
    assert found.unjudged[-1] == "what pick gave out, which statistics cannot measure"
    assert found.as_data()["unjudged"][-1] == found.unjudged[-1]


LSUV = {"all": {"policy": "lsuv", "min_ndim": 2}, "biases": {"policy": "zeros", "match": "*.bias"}}


def test_lsuv_is_applied_before_a_model_file_is_judged():
    found = probe_model(prove(DEEP, init=LSUV))
    weighted = [layer for layer in found.layers if layer.kind == "Linear"]
    assert [layer.std for layer in weighted] == pytest.approx([1.0] * 31, rel=0.06)
    assert found.batch == "a made batch (x [32, 64]; lsuv has scaled 31 weights on it)"


def test_lsuv_leaves_random_state_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    noisy = {**DEEP, "blocks": {}, "layers": {"head": DEEP["layers"]["head"]}, "forward": "head(dropout(x, 0.1, True))"}
    probe_model(prove(noisy, init=LSUV))
    assert torch.equal(torch.get_rng_state(), before)


def test_lsuv_that_fails_on_the_made_batch_is_refused(refusal):
    init = {**LSUV, "biases": {"policy": "normal", "std": 9, "match": "*.bias"}}
    problem = refusal(probe_model, prove(DEEP, init=init))
    assert "after 10 scalings" in problem.what


# ---- exact zeros -----------------------------------------------------------------------------------------------------


def test_a_model_of_zeros_is_not_called_healthy():
    found = probe_model(prove(DEEP, init={"m": {"match": "*", "policy": "zeros"}}))
    gradients, outputs = (verdict for verdict in found.verdicts if verdict.kind == "zero")
    assert outputs.text.startswith("The outputs are exactly 0 in 31 of 31 layers: h.0.fc, ")
    assert gradients.text.startswith("No gradient reaches 30 of 31 layers: h.0.fc, ")
    assert {outputs.severity, gradients.severity} == {"warning"}
    assert "healthy" not in shown(found)
    assert "the gradients of the outputs are exactly 0 in 30" in shown(found)


def test_layers_below_a_head_that_starts_at_zero_wait_for_it():
    init = {"all": {"policy": "kaiming_normal", "min_ndim": 2}, "head": {"policy": "zeros", "match": "head.*"}}
    found = probe_model(prove(DEEP, init=init))
    (said,) = (verdict for verdict in found.verdicts if verdict.kind == "zero")
    assert (said.severity, len(said.names)) == ("info", 30)
    assert said.text.endswith("; head starts at zero, and they move only once it does.")
    assert shown(found).startswith("info: ")


RESIDUAL = {
    **DEEP,
    "blocks": {
        "Layer": {
            "inputs": ["x"],
            "layers": {
                "fc": {"kind": "Linear", "in_features": 64, "out_features": 64},
                "out": {"kind": "Linear", "in_features": 64, "out_features": 64},
            },
            "forward": "x + out(relu(fc(x)))",
        }
    },
}


def test_residual_branches_that_start_at_zero_do_not_warn():
    found = probe_model(prove(RESIDUAL, init={"out": {"policy": "zeros", "match": "*.out.*"}}))
    (said,) = found.verdicts
    assert (said.kind, said.severity, len(said.names)) == ("zero", "info", 30)


def test_depth_that_zeros_leave_unjudged_is_not_healthy():
    data = {
        "inputs": {"x": {"shape": ["batch", 64]}},
        "layers": {
            "out": {"kind": "Linear", "in_features": 64, "out_features": 64},
            "act": {"kind": "ReLU"},
            "head": {"kind": "Linear", "in_features": 64, "out_features": 10},
        },
        "forward": "head(act(x + out(x)))",
    }
    found = probe_model(prove(data, init={"out": {"policy": "zeros", "match": "out.*"}}))
    assert found.verdicts == () and found.judged == ("dead units",)
    assert shown(found).startswith("all numbers are finite; within the bounds: dead units\nnot judged: ")
    assert "; the outputs of the layers are exactly 0 in 1" in shown(found)


# ---- what a run is told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ckpt_path=README.md", "; not applied: ckpt_path, these are the initial weights"),
        ("+trainer.precision=16-true", "; not applied: trainer.precision=16-true, this is float32"),
        ("+trainer.precision=32-true", ""),
    ],
)
def test_settings_that_a_probe_does_not_follow_are_said(given, said, capsys, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    assert main(["probe", "--json", "model=digits_mlp", given]) == 0
    assert json.loads(capsys.readouterr().out)["batch"] == f"first batch (x [64, 64], y [64]){said}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("stats.every_n_steps=0", "stats.every_n_steps: must be a whole number of at least 1, given 0"),
        ("+stats.bogus=1", "stats.bogus: unknown key"),
        ("monitor=val/nothing", "monitor: no metric 'val/nothing'"),
        ("ckpt_path=runs/no.ckpt", "ckpt_path: no checkpoint 'runs/no.ckpt'"),
        ("+trainer.bogus=1", "trainer.bogus: Trainer has no argument 'bogus'"),
        ("stats.select.match=zzz", "stats.select: match: 'zzz' matches no parameter"),
        ("stats.outputs=zzz", "stats.outputs: 'zzz' matches no layer"),
    ],
)
def test_settings_that_a_run_refuses_are_refused(given, said, capsys, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    assert main(["probe", "model=digits_mlp", given]) != 0
    assert said in capsys.readouterr().err
