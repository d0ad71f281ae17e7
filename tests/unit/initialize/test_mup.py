"""Policy mup: the role of each parameter, its scale and its learning rates (Yang et al. 2022, Table 3)."""

import math

import pytest
import torch
from torch import nn

import builder
from builder.build import prove
from builder.initialize.mup import family, mup_decisions, mup_fill

WIDE = {
    "args": {"d": 256, "vocab": 10, "k": 3, "depth": 1},
    "inputs": {"x": {}},
    "layers": {
        "emb": {"kind": "Embedding", "num_embeddings": "=vocab", "embedding_dim": "=d"},
        "first": {"kind": "Linear", "in_features": 16, "out_features": "=d"},
        "middle": {"kind": "Linear", "in_features": "=d", "out_features": "=4*d"},
        "same": {"kind": "Linear", "in_features": 16, "out_features": 16},
        "norm": {"kind": "LayerNorm", "normalized_shape": "=d"},
        "planes": {"kind": "LayerNorm", "normalized_shape": ["=d", 7]},
        "prelu": {"kind": "PReLU", "num_parameters": "=d"},
        "conv": {"kind": "Conv2d", "in_channels": 3, "out_channels": "=d", "kernel_size": "=k"},
        "up": {"kind": "ConvTranspose1d", "in_channels": "=d", "out_channels": 5, "kernel_size": 2},
        "raw": {"kind": "Parameter", "shape": ["=d", 10], "axes": ["in", "out"], "init": "normal"},
        "bare": {"kind": "Parameter", "shape": ["=d", 10], "init": "normal"},
        "gain": {"kind": "Parameter", "shape": ["=d"], "init": "ones"},
        "h": {"kind": "Linear", "in_features": "=d", "out_features": "=d", "repeat": "=depth"},
        "head": {"kind": "Linear", "in_features": "=d", "out_features": "=vocab", "bias": False},
    },
    "forward": "x",
}
HERE = __name__
UNSEEN = {"bare", "gain"}  # whose role mup cannot tell


def planned(data, base, *, match=None, axes=None, **arguments):
    """What a rule with a base makes of the parameters that it matches."""
    proof = prove(data)
    matched = [
        entry
        for entry in proof.parameters
        if entry.name not in proof.ties and (entry.name in match if match else entry.name not in UNSEEN)
    ]

    def shapes_at(given):
        return {entry.name: entry.shape for entry in prove(data, args=given).parameters}

    arguments = {"base": base, **arguments}
    return mup_decisions(
        matched, proof.parameters, proof.ties, proof.expansion.args, arguments, shapes_at, "init.mup", axes, proof.meta
    )


@pytest.mark.parametrize(
    ("name", "role", "fill", "std", "adam", "sgd"),
    [  # the width is four times that of the base
        pytest.param("first.weight", "input", "normal", 1 / 4, 1, 4, id="input"),
        pytest.param("emb.weight", "input", "normal", 1, 1, 4, id="an Embedding reads one row"),
        pytest.param("conv.weight", "input", "normal", 1 / math.sqrt(27), 1, 4, id="convolution of an image"),
        pytest.param("middle.weight", "hidden", "normal", 1 / 16, 1 / 4, 1, id="hidden"),
        pytest.param("h.0.weight", "hidden", "normal", 1 / 16, 1 / 4, 1, id="hidden and square"),
        pytest.param("head.weight", "output", "normal", 1 / 8 / 4, 1 / 4, 1 / 4, id="output"),
        pytest.param(
            "up.weight", "output", "normal", 1 / math.sqrt(128) / 4, 1 / 4, 1 / 4, id="axes of a transposed one"
        ),
        pytest.param("raw", "output", "normal", 1 / 8 / 4, 1 / 4, 1 / 4, id="raw Parameter by its axes"),
        pytest.param("first.bias", "vector", "zeros", 0, 1, 4, id="bias"),
        pytest.param("norm.weight", "vector", "default", 0, 1, 4, id="gain of a norm"),
        pytest.param("norm.bias", "vector", "default", 0, 1, 4, id="bias of a norm"),
        pytest.param("planes.weight", "vector", "default", 0, 1, 4, id="norm over two axes"),
        pytest.param("prelu.weight", "vector", "default", 0, 1, 4, id="slopes"),
        pytest.param("same.weight", "unchanged", "normal", 1 / 4, 1, 1, id="of the same size"),
        pytest.param("same.bias", "unchanged", "zeros", 0, 1, 1, id="bias of the same size"),
    ],
)
def test_role_scale_and_rates_follow_from_what_grew(name, role, fill, std, adam, sgd):
    scaled = planned(WIDE, {"d": 64}).scaled[name]
    assert (scaled.role, scaled.fill) == (role, fill)
    assert scaled.std == pytest.approx(std, rel=1e-12)
    assert scaled.lr_scales == {"adam": adam, "sgd": sgd}


def test_at_the_base_nothing_is_scaled():
    plan = planned(WIDE, {"d": 256})
    assert not plan.problems and not plan.refused
    assert {scaled.role for scaled in plan.scaled.values()} == {"unchanged"}
    assert all(scaled.lr_scales == {"adam": 1, "sgd": 1} for scaled in plan.scaled.values())
    assert plan.scaled["middle.weight"].std == plan.scaled["head.weight"].std == 1 / 16


def test_std_is_that_at_the_base_and_of_matrices_alone():
    plan = planned(WIDE, {"d": 64}, std=0.5)
    assert [plan.scaled[name].std for name in ("first.weight", "h.0.weight", "head.weight", "first.bias")] == [
        0.5, 0.25, 0.125, 0,
    ]  # fmt: skip


def test_std_of_zero_makes_zeros_with_the_learning_rate_of_the_role():
    scaled = planned(WIDE, {"d": 64}, match=["head.weight"], std=0).scaled["head.weight"]
    assert (scaled.role, scaled.fill, scaled.std, scaled.lr_scales["adam"]) == ("output", "zeros", 0, 1 / 4)


def test_narrower_than_the_base_is_scaled_up():
    scaled = planned(WIDE, {"d": 1024}).scaled
    assert scaled["head.weight"].std == 1 / 32 * 4
    assert scaled["h.0.weight"].lr_scales == {"adam": 4, "sgd": 1}


def test_axes_of_the_rule_win():
    data = {
        "args": {"d": 256},
        "inputs": {"x": {}},
        "layers": {"w": {"kind": "Parameter", "shape": ["=d", 10], "init": "normal"}},
        "forward": "x @ w",
    }
    assert planned(data, {"d": 64}, axes=["in", "out"]).scaled["w"].role == "output"
    assert planned(data, {"d": 64}, axes=["out", "in"]).scaled["w"].role == "input"


@pytest.mark.parametrize(
    ("base", "arguments", "address", "what", "hint"),
    [
        pytest.param(64, {}, "init.mup.base", "got 64", "base: {d: 64}", id="no mapping"),
        pytest.param({}, {}, "init.mup.base", "got {}", "base: {d: 64}", id="empty"),
        pytest.param({"dd": 64}, {}, "init.mup.base.dd", "no argument 'dd'", "did you mean 'd'?", id="unknown arg"),
        pytest.param(
            {"d": 64}, {"std": -1}, "init.mup.std", "std is -1", "zero or more", id="negative standard deviation"
        ),
        pytest.param({"d": 64}, {"std": True}, "init.mup.std", "std is True", "a number", id="a bool for a number"),
        pytest.param(
            {"d": -2}, {}, "init.mup.base", "does not build with d: -2: layers.emb.embedding_dim", "one or more",
            id="a base that does not build",
        ),
    ],
)  # fmt: skip
def test_rule_is_refused(base, arguments, address, what, hint):
    problem = planned(WIDE, base, **arguments).problems[0]
    assert problem.address == address
    assert what in problem.what
    assert hint in problem.hint


def test_base_that_changes_nothing_of_what_the_rule_matches_is_refused():
    (problem,) = planned(WIDE, {"vocab": 5}, match=["h.0.weight"]).problems
    assert problem.address == "init.mup.base"
    assert "changes the shape of nothing" in problem.what
    assert "widths" in problem.hint


@pytest.mark.parametrize(
    ("name", "base", "address", "what", "hint"),
    [
        pytest.param(
            "gain", {"d": 64}, "init.mup", "what raw Parameter 'gain' of shape (256,) begins with", "min_ndim: 2",
            id="a raw vector",
        ),
        pytest.param(
            "bare", {"d": 64}, "init.mup", "raw Parameter 'bare' of shape (256, 10) does not say", "axes: [in, out]",
            id="a raw matrix without axes",
        ),
        pytest.param(
            "h.0.weight", {"d": 64, "depth": 0}, "init.mup.base", "'h.0.weight' has no counterpart", "the same layers",
            id="another depth",
        ),
        pytest.param(
            "conv.weight", {"d": 64, "k": 1}, "init.mup.base", "an axis that is no fan has grown", "widths alone",
            id="another kernel",
        ),
    ],
)  # fmt: skip
def test_parameter_that_cannot_be_scaled_is_refused(name, base, address, what, hint):
    plan = planned(WIDE, base, match=[name])
    problem = plan.refused[name]
    assert not plan.scaled
    assert problem.address == address
    assert what in problem.what
    assert hint in problem.hint


def test_tie_of_input_to_output_is_refused_with_both_remedies():
    plan = planned({**WIDE, "tie": {"head.weight": "emb.weight"}}, {"d": 64})
    problem = plan.refused["emb.weight"]
    assert problem.address == "init.mup"
    assert problem.what == "'emb.weight' is input and, tied to it, 'head.weight' is output"
    assert "remove tie.head.weight" in problem.hint
    assert "head(...) * 64 / d" in problem.hint
    assert "head.weight" not in plan.scaled and "h.0.weight" in plan.scaled


def test_tie_of_two_hidden_layers_is_scaled_once():
    data = {**WIDE, "args": {**WIDE["args"], "depth": 2}, "tie": {"h.1.weight": "h.0.weight"}}
    plan = planned(data, {"d": 64})
    assert not plan.refused
    assert plan.scaled["h.0.weight"].role == "hidden" and "h.1.weight" not in plan.scaled


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [("Adam", "adam"), ("AdamW", "adam"), ("RMSprop", "adam"), ("SGD", "sgd"), ("LBFGS", None), ("Muon", None)],
)
def test_optimizers_have_the_learning_rates_of_their_family(optimizer, expected):
    assert family(optimizer) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("norm.weight", torch.ones(256)), ("prelu.weight", torch.full((256,), 0.25)), ("first.bias", torch.zeros(256))],
)
def test_vectors_begin_as_their_class_or_zero(name, expected):
    proof = prove(WIDE)
    entry = next(entry for entry in proof.parameters if entry.name == name)
    fill = mup_fill(planned(WIDE, {"d": 64}).scaled[name].arguments, proof.meta, entry)
    tensor = torch.empty(256)
    fill.draw(tensor, None, 0)
    assert torch.equal(tensor, expected)


# ---- as a policy of a model file -----------------------------------------------------------------------------------

TINY = {
    "args": {"d": 512},
    "inputs": {"x": {"shape": ["batch", 16]}},
    "layers": {
        "first": {"kind": "Linear", "in_features": 16, "out_features": "=d"},
        "middle": {"kind": "Linear", "in_features": "=d", "out_features": "=d"},
        "norm": {"kind": "LayerNorm", "normalized_shape": "=d"},
        "gain": {"kind": "Parameter", "shape": ["=d"], "init": "ones"},
        "head": {"kind": "Linear", "in_features": "=d", "out_features": 10},
    },
    "forward": "head(norm(middle(first(x))) * gain)",
}
MUP = {"policy": "mup", "base": {"d": 128}}


def test_built_model_has_the_scales_of_its_roles(given):
    model = builder.build(given({**TINY, "init": {"all": {"except": "gain", **MUP}}}), seed=3)
    assert model.first.weight.std().item() == pytest.approx(1 / 4, rel=0.05)
    assert model.middle.weight.std().item() == pytest.approx(1 / math.sqrt(512), rel=0.05)
    assert model.head.weight.std().item() == pytest.approx(1 / math.sqrt(128) / 4, rel=0.05)
    assert torch.equal(model.norm.weight, torch.ones(512)) and torch.equal(model.gain, torch.ones(512))
    assert not any(layer.bias.any() for layer in (model.first, model.middle, model.head, model.norm))


def test_at_the_base_values_are_those_of_a_plain_normal_bit_for_bit(given):
    plain = {
        "matrices": {"min_ndim": 2, "policy": "kaiming_normal", "nonlinearity": "linear"},
        "biases": {"match": "*.bias", "policy": "zeros"},
    }
    ours = builder.build(given(TINY), args={"d": 128}, init={"all": {"except": "gain", **MUP}}, seed=5).state_dict()
    theirs = builder.build(given(TINY), args={"d": 128}, init=plain, seed=5).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_parameter_that_a_later_rule_decides_is_not_refused():
    init = {"all": MUP, "gain": {"match": "gain", "policy": "ones"}}
    assert torch.equal(builder.build({**TINY, "init": init}).gain, torch.ones(512))


def test_refusals_of_the_policy_reach_the_user(refusal):
    problem = refusal(builder.build, {**TINY, "init": {"all": MUP}})
    assert problem.address == "init.all"
    assert "raw Parameter 'gain'" in problem.what
    problem = refusal(builder.build, {**TINY, "init": {"all": {"policy": "mup", "base": {"width": 3}}}})
    assert problem.address == "init.all.base.width"
    problem = refusal(builder.build, {**TINY, "init": {"all": {"policy": "mup"}}})
    assert problem.address == "init.all.base"


class Scale(nn.Module):
    """A gain that its own method makes ones, and a bias."""

    def __init__(self, d):
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.empty(d)), nn.Parameter(torch.empty(d))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.ones_(self.gain)
        nn.init.ones_(self.bias)


class ScaleNorm(Scale):
    """The same under a name that torch's own norms have."""


class OwnNorm(nn.LayerNorm):
    """A norm of torch under another name."""


class Words(nn.Embedding):
    """An Embedding of torch under another name."""


class Up(nn.ConvTranspose1d):
    """A transposed convolution of torch under another name."""


class EmbeddingMix(nn.Linear):
    """A Linear under a name that begins as another class's."""


def of_class(kind, **more):
    layers = {
        "fc": {"kind": "Linear", "in_features": "=d", "out_features": "=d"},
        "g": {"kind": f"{HERE}.{kind}", **more},
    }
    return {"args": {"d": 8}, "inputs": {"x": {}}, "layers": layers, "forward": "g(fc(x))"}


@pytest.mark.parametrize("kind", ["Scale", "ScaleNorm"])
def test_vector_of_a_class_of_the_users_own_is_left_out_unless_it_is_a_bias(kind, refusal):
    data, rule = of_class(kind, d="=d"), {"policy": "mup", "base": {"d": 4}}
    problem = refusal(builder.prove, {**data, "init": {"all": rule}}, allow=[HERE])
    assert f"what {kind}'s 'g.gain' of shape (8,) begins with" in problem.what
    built = builder.build({**data, "init": {"most": {"except": "g.gain", **rule}}}, allow=[HERE]).g
    assert built.gain.tolist() == [1] * 8
    assert built.bias.tolist() == [0] * 8


def test_norm_of_torch_under_another_name_keeps_its_gain():
    data = {**of_class("OwnNorm", normalized_shape="=d"), "init": {"all": {"policy": "mup", "base": {"d": 4}}}}
    assert builder.build(data, allow=[HERE]).g.weight.tolist() == [1] * 8


@pytest.mark.parametrize(
    ("kind", "derived", "arguments", "role"),
    [
        ("Embedding", "Words", {"num_embeddings": 10, "embedding_dim": "=d"}, "input"),
        ("ConvTranspose1d", "Up", {"in_channels": "=d", "out_channels": 3, "kernel_size": 2}, "output"),
        ("Linear", "EmbeddingMix", {"in_features": "=d", "out_features": 3}, "output"),
    ],
)
def test_layer_of_torch_under_another_name_keeps_its_role(kind, derived, arguments, role):
    rule = {"init": {"all": {"policy": "mup", "base": {"d": 4}}}}
    plain, ours = of_class(derived, **arguments), of_class(derived, **arguments)
    plain["layers"]["g"]["kind"] = kind
    decided = [builder.prove({**data, **rule}, allow=[HERE]).decisions["g.weight"].arguments for data in (plain, ours)]
    assert decided[0] == decided[1]
    assert decided[0]["role"] == role


def test_residual_scaling_by_expression_divides_by_the_square_root_of_the_number_of_residuals():
    data = {
        "args": {"d": 256, "depth": 8},
        "inputs": {"x": {}},
        "layers": {"h": {"kind": "Linear", "in_features": "=d", "out_features": "=d", "repeat": "=depth"}},
        "init": {
            "matrices": {"min_ndim": 2, "match": "h.0.*", "policy": "normal", "std": 0.02},
            "residuals": {"match": ["h.*.weight"], "except": "h.0.*", "policy": "normal", "std": "=0.02/sqrt(2*depth)"},
        },
        "forward": "x",
    }
    stds = [layer.weight.std().item() for layer in builder.build(data, seed=1).h if isinstance(layer, nn.Linear)]
    assert stds == pytest.approx([0.02, *[0.005] * 7], rel=0.03)
