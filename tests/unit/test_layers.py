"""What a layer may be besides one class: a Sequential, a layer made on a condition; and inputs that may be left out."""

import pytest
import torch

import builder

L = {"kind": "Linear", "in_features": "=d", "out_features": "=d"}


def model(layers, forward=None, **more):
    data = {"args": {"d": 4, "deep": True}, "inputs": {"x": {"shape": ["batch", "=d"]}}, "layers": layers, **more}
    return {**data, "forward": forward} if forward else data


def names(data, **args):
    return list(builder.build(data, args=args).state_dict())


# ---- Sequential ----------------------------------------------------------------------------------------------------

NESTED = {
    "net": {
        "kind": "Sequential",
        "layers": {
            "first": {**L, "bias": False},
            "rest": {"kind": "Sequential", "layers": [{"kind": "ReLU"}, {**L, "repeat": 2}, L]},
        },
    }
}


def test_sequential_nests_and_is_named_by_keys_and_numbers(given):
    built = builder.build(given(model(NESTED)))
    assert list(built.state_dict()) == [
        "net.first.weight", "net.rest.1.0.weight", "net.rest.1.0.bias", "net.rest.1.1.weight", "net.rest.1.1.bias",
        "net.rest.2.weight", "net.rest.2.bias",
    ]  # fmt: skip
    x = torch.randn(3, 4)
    y = x @ built.net.first.weight.T
    for layer in (*built.net.rest[1], built.net.rest[2]):
        y = layer(y.relu() if layer is built.net.rest[1][0] else y)
    assert torch.equal(built(x), y)


def test_rules_and_paths_reach_into_a_sequential(given):
    data = model(
        NESTED,
        "net(x) + net.first.weight.sum()",
        init={"r": {"match": "net.rest.*.weight", "policy": "zeros"}},
        freeze={"f": {"match": "net.first.weight"}},
    )
    rows = {row.name: row for row in builder.parameters(builder.build(given(data)))}
    assert rows["net.rest.2.weight"].rule == "init.r (zeros)"
    assert not rows["net.first.weight"].trainable


def test_layer_of_a_sequential_has_its_own_init(given):
    data = model({"net": {"kind": "Sequential", "layers": [{**L, "init": {"weight": "eye", "bias": "zeros"}}]}})
    assert torch.equal(builder.build(given(data)).net[0].weight, torch.eye(4))


def test_repeated_sequential_knows_its_index():
    inner = {"kind": "Sequential", "layers": [{**L, "out_features": "=d + i"}, {**L, "in_features": "=d + i"}]}
    built = builder.build(model({"h": {**inner, "repeat": 3}}, "for s in h:\n  x = s(x)\nreturn x"))
    assert [s[0].out_features for s in built.h] == [4, 5, 6]


# ---- when ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [True, False])
def test_layer_is_made_only_where_its_condition_holds(given, deep):
    data = model({"a": L, "b": {**L, "when": "=deep"}})
    built = builder.build(given(data), args={"deep": deep})
    assert (built.b is not None) == deep
    assert [row.name for row in builder.parameters(built)] == ["a.weight", "a.bias", *["b.weight", "b.bias"] * deep]
    x = torch.randn(2, 4)
    assert torch.equal(built(x), built.b(built.a(x)) if deep else built.a(x))


def test_condition_in_forward_is_whether_the_layer_is_there():
    data = model({"a": L, "w": {"kind": "Parameter", "shape": ["=d"], "init": "ones", "when": "=deep"}})
    data["forward"] = "y = a(x)\nif w is not None:\n  y = y * w\nreturn y"
    assert names(data, deep=True) == ["w", "a.weight", "a.bias"]
    assert names(data, deep=False) == ["a.weight", "a.bias"]


def test_condition_within_a_repeat_depends_on_the_index():
    data = model({"h": {**L, "repeat": 4, "when": "=i % 2 == 0"}})
    assert names(data) == ["h.0.weight", "h.0.bias", "h.2.weight", "h.2.bias"]
    built = builder.build(data)
    x = torch.randn(2, 4)
    assert torch.equal(built(x), built.h[2](built.h[0](x)))


def test_condition_within_a_sequential_leaves_an_identity():
    data = model(
        {
            "net": {
                "kind": "Sequential",
                "layers": {"a": L, "norm": {"kind": "LayerNorm", "normalized_shape": "=d", "when": "=deep"}},
            }
        }
    )
    assert names(data, deep=False) == ["net.a.weight", "net.a.bias"]
    assert isinstance(builder.build(data, args={"deep": False}).net.norm, torch.nn.Identity)


def test_rule_that_matches_only_a_layer_that_is_not_made_is_refused(refusal):
    data = model({"a": L, "b": {**L, "when": "=deep"}}, init={"r": {"match": "b.*", "policy": "zeros"}})
    assert refusal(builder.prove, data, args={"deep": False}).address == "init.r"


# ---- optional inputs -----------------------------------------------------------------------------------------------


def test_input_with_a_default_may_be_left_out(given):
    inputs = {"x": {"shape": ["b", 4]}, "mask": {"shape": ["b", 1], "default": None}, "scale": {"default": 2}}
    forward = "y = fc(x) * scale\nif mask is not None:\n  y = y * mask\nreturn y"
    built = builder.build(given({**model({"fc": L}, forward), "inputs": inputs}))
    x, mask = torch.randn(3, 4), torch.zeros(3, 1)
    assert torch.equal(built(x), 2 * built.fc(x))
    assert torch.equal(built(x, mask, scale=3), torch.zeros(3, 4))
    assert "def forward(self, x, mask=None, scale=2):" in builder.code({**model({"fc": L}, forward), "inputs": inputs})


def test_forward_is_tried_without_the_optional_inputs_too(refusal):
    inputs = {"x": {"shape": ["b", 4]}, "mask": {"shape": ["b", 1], "default": None}}
    problem = refusal(builder.prove, {**model({"fc": L}, "fc(x) * mask"), "inputs": inputs})
    assert "NoneType" in problem.what


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "address", "cause", "remedy"),
    [
        pytest.param(
            {"s": {"kind": "Sequential"}}, "layers.s", "has layers of its own", "layers: {...}", id="no layers"
        ),
        pytest.param({"s": {**L, "layers": [L]}}, "layers.s", "no other kind", "Sequential", id="layers of a Linear"),
        pytest.param(
            {"s": {"kind": "Sequential", "layers": []}}, "layers.s", "without layers", "a list", id="an empty list"
        ),
        pytest.param(
            {"s": {"kind": "Sequential", "layers": [L], "p": 1}}, "layers.s", "takes no 'p'", "a list", id="an argument"
        ),
        pytest.param(
            {"s": {"kind": "Sequential", "layers": [{**L, "bia": 1}]}},
            "layers.s.layers.0.bia",
            "no argument 'bia'",
            "did you mean 'bias'",
            id="a wrong argument within",
        ),
        pytest.param(
            {"s": {"kind": "Sequential", "layers": [{"kind": "Parameter", "shape": [1], "init": "ones"}]}},
            "layers.s.layers.0",
            "a raw Parameter is none",
            "a block",
            id="a raw Parameter within",
        ),
        pytest.param({"a": {**L, "when": 1}}, "layers.a.when", "is a int", "", id="a number for a condition"),
        pytest.param({"a": {**L, "when": "=d"}}, "layers.a.when", "got 4", "a comparison", id="a number computed"),
        pytest.param({"a": {**L, "when": "=e"}}, "layers.a.when", "unknown name 'e'", "known", id="an unknown name"),
        pytest.param(
            {"w": {"kind": "Parameter", "shape": [1], "repeat": 2, "when": "=deep", "init": "ones"}},
            "layers.w",
            "has all of them",
            "repeat a block",
            id="some Parameters of a list",
        ),
    ],
)
def test_wrong_layer_is_refused(given, refusal, layers, address, cause, remedy):
    problem = refusal(builder.prove, given(model(layers)))
    assert (problem.address, cause in problem.what, remedy in problem.hint) == (address, True, True), problem


def test_required_input_after_an_optional_one_is_refused(refusal):
    inputs = {"mask": {"shape": ["b"], "default": None}, "x": {"shape": ["b", 4]}}
    problem = refusal(builder.prove, {**model({"fc": L}, "fc(x)"), "inputs": inputs})
    assert "'mask' has a default and stands before" in problem.what
    assert problem.hint == "put it last"


# ---- classes of the caller's own -----------------------------------------------------------------------------------


class Gate(torch.nn.Module):
    """A layer of one's own, with a default init of its own."""

    def __init__(self, width, scale=1.0):
        super().__init__()
        self.gate = torch.nn.Parameter(torch.empty(width))
        self.scale = scale
        self.reset_parameters()

    def reset_parameters(self):
        torch.nn.init.normal_(self.gate)

    def forward(self, x):
        return x * self.gate * self.scale


Loss = torch.nn.MSELoss  # leads out of what is allowed
HERE = __name__


def test_class_that_the_caller_allows_is_a_layer(given):
    data = model({"a": L, "g": {"kind": f"{HERE}.Gate", "width": "=d", "scale": 2.0}})
    built = builder.build(given(data), allow=[HERE])
    x = torch.randn(2, 4)
    assert torch.equal(built(x), built.a(x) * built.g.gate * 2.0)
    assert torch.equal(built.g.gate, builder.build(data, allow=[HERE]).g.gate), "init is a function of seed and name"
    assert f"\nimport {HERE}\n" in builder.code(data)


@pytest.mark.parametrize(
    ("kind", "allow", "address", "cause", "remedy"),
    [
        pytest.param(f"{HERE}.Gate", [], "layers.g.kind", "is not allowed", "allow=[", id="nothing is allowed"),
        pytest.param("os.system", [HERE], "layers.g.kind", "'os.system' is not allowed", HERE, id="another package"),
        pytest.param(
            f"{HERE}.Gat", [HERE], "layers.g.kind", "no layer class 'Gat'", "did you mean 'Gate'", id="misspelt"
        ),
        pytest.param(
            f"{HERE}.Loss", [HERE], "layers.g.kind", "MSELoss, which is not allowed", HERE, id="leads elsewhere"
        ),
        pytest.param(f"{HERE}.model", [HERE], "layers.g.kind", "no layer class 'model'", "Gate", id="a function"),
        pytest.param(f"{HERE}._Gate", [HERE], "layers.g.kind", "unknown kind", "allowed", id="an underscore name"),
        pytest.param(f"{HERE}.Gate()", [HERE], "layers.g.kind", "unknown kind", "allowed", id="a call"),
    ],
)
def test_class_that_is_not_allowed_is_refused(given, refusal, kind, allow, address, cause, remedy):
    problem = refusal(builder.prove, given(model({"g": {"kind": kind, "width": 4}})), allow=allow)
    assert (problem.address, cause in problem.what, remedy in problem.hint) == (address, True, True), problem


def test_wrong_argument_of_an_allowed_class_is_refused(given, refusal):
    data = model({"g": {"kind": f"{HERE}.Gate", "widht": 4}})
    problem = refusal(builder.prove, given(data), allow=[HERE])
    assert (problem.address, "did you mean 'width'" in problem.hint) == ("layers.g.widht", True)
