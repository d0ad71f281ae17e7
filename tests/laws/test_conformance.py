"""Every random policy gives the distribution that it declares, on every kind of parameter.

A million values each, drawn from fixed seeds, so that a run either always passes or never does. Tolerances: a mean may
lie 5 standard errors off, and a std as well (0.35% for a normal), which right values miss once in two million tries;
the p-value of the Kolmogorov-Smirnov test is above 1e-4, which right values miss in one of ten thousand cases, so that
the 54 cases below pass for all but one seed in 185. It tells distributions apart that differ by 0.0023 anywhere, such
as two normals whose std differ by 1%. The scales are written out here once more, from the shapes.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import builder

N = 10**6


class Case:
    """A kind of parameter: the layer, the parameter's name, and its fans."""

    def __init__(self, layer, name, fan_in, fan_out):
        self.layer, self.name, self.fan_in, self.fan_out = layer, name, fan_in, fan_out

    def values(self, policy, **arguments):
        rule = {"match": self.name, "policy": policy, **arguments}
        data = {"inputs": {"x": {}}, "layers": {"w": self.layer}, "forward": "x", "init": {"rule": rule}}
        tensor = builder.build(data, seed=0).get_parameter(self.name).detach()
        assert tensor.numel() == N
        return tensor


LINEAR = Case({"kind": "Linear", "in_features": 800, "out_features": 1250, "bias": False}, "w.weight", 800, 1250)
IN_OUT = Case({"kind": "Parameter", "shape": [800, 1250], "axes": ["in", "out"]}, "w", 800, 1250)
OUT_IN = Case({"kind": "Parameter", "shape": [800, 1250], "axes": ["out", "in"]}, "w", 1250, 800)
EMBEDDING = Case({"kind": "Embedding", "num_embeddings": 2000, "embedding_dim": 500}, "w.weight", 500, 2000)
CONV2D = Case(
    {"kind": "Conv2d", "in_channels": 400, "out_channels": 100, "kernel_size": 5, "bias": False},
    "w.weight",
    400 * 25,
    100 * 25,
)
CASES = {
    "Linear": LINEAR,
    "Parameter [in, out]": IN_OUT,
    "Parameter [out, in]": OUT_IN,
    "Embedding": EMBEDDING,
    "Conv2d": CONV2D,
}
every_kind = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])


def assert_follows(values, expected):
    """Mean, std, bounds and the whole distribution, against a frozen distribution of scipy."""
    values = values.double().flatten().numpy()
    mean, variance, excess = (float(moment) for moment in expected.stats("mvk"))
    std = math.sqrt(variance)
    assert abs(values.mean() - mean) < 5 * std / math.sqrt(N)
    assert abs(values.std() / std - 1) < 5 * math.sqrt((excess + 2) / (4 * N))
    low, high = (np.float32(bound) for bound in expected.support())
    assert low <= values.min()
    assert values.max() <= high
    assert stats.kstest(values, expected.cdf).pvalue > 1e-4


def uniform(bound):
    return stats.uniform(-bound, 2 * bound)


def normal(std):
    return stats.norm(0, std)


@every_kind
def test_uniform_lies_evenly_between_its_bounds(case):
    values = case.values("uniform", a=-0.3, b=0.5)
    assert_follows(values, stats.uniform(-0.3, 0.8))
    assert values.min() < -0.3 + 1e-5
    assert values.max() > 0.5 - 1e-5


@every_kind
def test_normal_has_its_mean_and_std(case):
    assert_follows(case.values("normal", mean=0.1, std=0.02), stats.norm(0.1, 0.02))


@pytest.mark.parametrize(
    ("case", "a", "b"),
    [pytest.param(case, -0.04, 0.04, id=f"{name}, two std") for name, case in CASES.items()]
    + [
        pytest.param(LINEAR, 0.0, 0.01, id="a narrow part"),
        pytest.param(LINEAR, 0.2, 1.0, id="beyond ten std"),
    ],
)
def test_trunc_normal_is_the_normal_within_its_bounds(case, a, b):
    assert_follows(case.values("trunc_normal", std=0.02, a=a, b=b), stats.truncnorm(a / 0.02, b / 0.02, 0, 0.02))


@every_kind
@pytest.mark.parametrize("policy", ["xavier_uniform", "xavier_normal"])
def test_xavier_takes_its_scale_from_both_fans(case, policy):
    std = 1.5 * math.sqrt(2 / (case.fan_in + case.fan_out))
    expected = uniform(math.sqrt(3) * std) if policy == "xavier_uniform" else normal(std)
    assert_follows(case.values(policy, gain=1.5), expected)


@every_kind
@pytest.mark.parametrize("policy", ["kaiming_uniform", "kaiming_normal"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_kaiming_takes_its_scale_from_one_fan(case, policy, mode):
    std = math.sqrt(2) / math.sqrt(getattr(case, mode))
    expected = uniform(math.sqrt(3) * std) if policy == "kaiming_uniform" else normal(std)
    assert_follows(case.values(policy, mode=mode, nonlinearity="relu"), expected)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param(LINEAR, uniform(1 / math.sqrt(800)), id="Linear"),
        pytest.param(EMBEDDING, normal(1), id="Embedding"),
        pytest.param(CONV2D, uniform(1 / math.sqrt(10_000)), id="Conv2d"),
    ],
)
def test_default_is_what_the_layer_class_does(case, expected):
    assert_follows(case.values("default"), expected)


@every_kind
def test_orthogonal_has_orthonormal_rows_or_columns(case):
    """Each entry is distributed as a coordinate of a point on a sphere: (x + 1) / 2 follows a beta distribution.

    The entries depend on each other, so that a p-value says nothing; the distance of the distributions does.
    """
    matrix = case.values("orthogonal").flatten(1).double()
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    rows, longest = matrix.shape
    assert torch.allclose(matrix @ matrix.T, torch.eye(rows, dtype=torch.float64), rtol=0, atol=1e-5)
    assert abs(matrix.mean()) < 5 / math.sqrt(longest * N)
    half = (longest - 1) / 2
    assert stats.kstest(matrix.flatten().numpy(), stats.beta(half, half, -1, 2).cdf).statistic < 0.002


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items() if case is not CONV2D])
def test_sparse_has_zeros_in_each_column_and_normal_values_elsewhere(case):
    matrix = case.values("sparse", sparsity=0.25, std=0.05)
    zeros = (matrix == 0).sum(0)
    assert (zeros == math.ceil(0.25 * len(matrix))).all()
    assert ((matrix == 0).sum(1) > 0).all(), "the zeros are spread over the rows"
    values = matrix[matrix != 0].double().numpy()
    assert abs(values.std() / 0.05 - 1) < 5 / math.sqrt(2 * values.size)
    assert stats.kstest(values, stats.norm(0, 0.05).cdf).pvalue > 1e-4
