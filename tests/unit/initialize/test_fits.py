"""A policy that does not fit its parameter is refused by name, before memory: dimensions, dtype, size of the values."""

# ruff: noqa: E501 (a row of the table reads better on one line)

import pytest
import torch

import builder


def raw(policy, *, shape=(3, 4), dtype="float32", **arguments):
    layer = {"kind": "Parameter", "shape": list(shape), "dtype": dtype, "init": "zeros"}
    if len(shape) == 2:
        layer["axes"] = ["in", "out"]
    rule = {"match": "w", "policy": policy, **arguments}
    return {"inputs": {"x": {}}, "layers": {"w": layer}, "forward": "x", "init": {"r": rule}}


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("data", "address", "what", "hint"),
    [
        pytest.param(raw("uniform", a=2, b=1), "init.r.a", "no value is from 2 to 1", "a is below b", id="no room"),
        pytest.param(raw("normal", std=NAN), "init.r.std", "std is nan", "finite", id="not a number"),
        pytest.param(raw("normal", mean=-INF), "init.r.mean", "mean is -inf", "finite", id="infinite"),
        pytest.param(raw("normal", std=10**400), "init.r.std", "more than 308 digits", "finite", id="a huge whole number"),
        pytest.param(raw("xavier_normal", gain=-1), "init.r.gain", "gain is -1", "zero or more", id="a negative gain"),
        pytest.param(raw("lsuv", std=0), "init.r.std", "lsuv: std is 0", "above zero", id="an output without a spread"),
        pytest.param(raw("lsuv", iterations=2.5), "init.r.iterations", "is 2.5", "whole number", id="half an iteration"),
        pytest.param(
            raw("dirac", shape=(4, 3, 3), groups=1.0), "init.r.groups", "is 1.0", "whole number", id="groups as a float"
        ),
        pytest.param(
            raw("dirac", shape=(4, 3, 3), groups=3), "init.r.groups", "no 3 equal groups", "a divisor", id="uneven groups"
        ),
        pytest.param(
            raw("normal", std=1e4, dtype="float16"), "init.r", "values up to 8e+04; float16 ends at 6.55e+04", "wider dtype",
            id="a normal beyond float16",
        ),
        pytest.param(raw("uniform", a=-3e38, b=3e38), "init.r", "up to 6e+38", "smaller", id="a width beyond float32"),
        pytest.param(raw("xavier_uniform", gain=1e300), "init.r", "float32 ends", "smaller", id="a gain beyond float32"),
        pytest.param(raw("kaiming_normal", a=1e200), "init.r", "up to inf", "smaller", id="a slope whose square overflows"),
        pytest.param(raw("trunc_normal", std=1e300, a=-1e308, b=1e308), "init.r", "float32", "wider", id="wide bounds"),
        pytest.param(raw("constant", val=1e6, dtype="float16"), "init.r", "up to 1e+06", "wider", id="a constant"),
        pytest.param(raw("orthogonal", gain=1e39), "init.r", "up to 1e+39", "smaller", id="an orthogonal gain"),
        pytest.param(raw("sparse", sparsity=0.1, std=1e39), "init.r", "float32 ends", "smaller", id="a sparse std"),
        pytest.param(
            raw("values", shape=(2,), values=[1, NAN]), "init.r.values", "nan is no value", "finite numbers", id="nan"
        ),
        pytest.param(
            raw("values", shape=(2,), values=[1e5, 1], dtype="float16"), "init.r.values", "100000 is no value",
            "of at most 6.55e+04", id="a value beyond float16",
        ),
        pytest.param(
            raw("values", shape=(1, 1), values=[[10**400]]), "init.r.values", "300 digits", "finite", id="a huge value"
        ),
        pytest.param(
            {**raw("mup", base={"d": 4}, std=1e38), "args": {"d": 4}}, "init.r", "up to 8e+38", "smaller", id="a mup std"
        ),
        pytest.param(raw("orthogonal", dtype="complex64"), "init.r", "which is complex64", "use normal", id="orthogonal"),
        pytest.param(raw("trunc_normal", dtype="complex64"), "init.r", "is complex64", "use normal", id="no order"),
        pytest.param(
            raw("expression", value="=i0 + i2"), "init.r.value", "reads i2, and 'w' of shape (3, 4)", "i0, i1",
            id="an axis that is not there",
        ),
        pytest.param(
            raw("zeros", axes=["in", "out"]), "init.r.axes", "zeros reads no fan-in", "leave axes out", id="axes for nothing"
        ),
        pytest.param(
            raw("default", axes=["in", "out"]), "init.r.axes", "default reads no fan-in", "leave axes out", id="of a default"
        ),
        pytest.param(
            raw("expression", value="=i0", shape=()), "init.r.value", "'w' of shape ()", "a single number", id="no axes"
        ),
    ],
)  # fmt: skip
def test_policy_that_does_not_fit_is_refused(given, refusal, data, address, what, hint):
    problem = refusal(builder.prove, given(data))
    assert (problem.address, what in problem.what, hint in problem.hint) == (address, True, True), problem


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(raw("uniform", a=1, b=1), id="a uniform of one value"),
        pytest.param(raw("normal", std=8e3, dtype="float16"), id="a normal that float16 holds"),
        pytest.param(raw("trunc_normal", std=1e3, a=-1e6, b=1e6, dtype="float16"), id="bounds that nothing reaches"),
        pytest.param(raw("trunc_normal", std=1.0, a=-1e300, b=1e300), id="bounds beyond the dtype"),
        pytest.param(raw("normal", dtype="complex64"), id="a complex normal"),
        pytest.param(raw("dirac", shape=(4, 3, 3), groups=2), id="even groups"),
    ],
)
def test_policy_that_fits_gives_finite_values(data):
    assert builder.build(data).w.isfinite().all()


@pytest.mark.parametrize(
    ("axes", "what"), [(["in", "out"], "default reads no fan-in"), (["in", "in"], "axes ['in', 'in'] for 'fc.weight'")]
)
def test_axes_of_a_default_are_refused_of_a_layer_as_well(refusal, axes, what):
    layers = {"fc": {"kind": "Linear", "in_features": 2, "out_features": 2}}
    rule = {"match": "fc.weight", "policy": "default", "axes": axes}
    problem = refusal(builder.prove, {"inputs": {"x": {}}, "layers": layers, "forward": "x", "init": {"r": rule}})
    assert (problem.address, what in problem.what) == ("init.r.axes", True)


def test_rule_that_another_overrides_may_read_axes_that_this_one_has_not():
    layers = {"fc": {"kind": "Linear", "in_features": 2, "out_features": 2}}
    rules = {"all": {"policy": "expression", "value": "=i1"}, "b": {"match": "*.bias", "policy": "zeros"}}
    built = builder.build({"inputs": {"x": {}}, "layers": layers, "forward": "x", "init": rules})
    assert torch.equal(built.fc.weight, torch.tensor([[0.0, 1], [0, 1]]))


class Codes(torch.nn.Module):
    """Whole numbers."""

    def __init__(self):
        super().__init__()
        self.codes = torch.nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return x


def coded(**rule):
    layers = {"l": {"kind": f"{__name__}.Codes"}}
    return {"inputs": {"x": {}}, "layers": layers, "forward": "l(x)", "init": {"r": {"match": "*", **rule}}}


@pytest.mark.parametrize(
    ("rule", "address", "what"),
    [
        ({"policy": "normal"}, "init.r", "normal draws fractions, and 'l.codes' is int8"),
        ({"policy": "constant", "val": 0.5}, "init.r.val", "0.5 is no value that 'l.codes' of int8 can hold"),
        ({"policy": "constant", "val": 128}, "init.r.val", "128 is no value that 'l.codes' of int8 can hold"),
        (
            {"policy": "values", "values": [1, 2, 0.5]},
            "init.r.values",
            "0.5 is no value that 'l.codes' of int8 can hold",
        ),
    ],
)
def test_policy_that_does_not_fit_whole_numbers_is_refused(rule, address, what, refusal):
    problem = refusal(builder.prove, coded(**rule), allow=[__name__])
    assert (problem.address, problem.what) == (address, what)


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ({"policy": "zeros"}, [0, 0, 0]),
        ({"policy": "constant", "val": -128}, [-128] * 3),
        ({"policy": "values", "values": [1, 2, 127]}, [1, 2, 127]),
        ({"policy": "expression", "value": "=i0"}, [0, 1, 2]),
    ],
)
def test_whole_numbers_take_whole_values(rule, values):
    assert builder.build(coded(**rule), allow=[__name__]).l.codes.tolist() == values
