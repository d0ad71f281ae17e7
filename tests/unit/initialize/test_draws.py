"""Fills: what they write, in any type, in any part."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from builder.initialize import draws
from builder.initialize.chunks import fill_range
from builder.initialize.draws import basic, fans, fill_of, zeroed

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def drawn(policy, shape, dtype=torch.float32, seed=0, **arguments):
    return fill_range(torch.empty(shape, dtype=dtype), fill_of(policy, arguments, shape), seed, "w", shape)


# ---- types ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("policy", ["uniform", "trunc_normal", "orthogonal"])
def test_what_torch_lacks_in_half_precision_is_the_float32_draw_rounded(policy, dtype):
    assert torch.equal(drawn(policy, (40, 30), dtype), drawn(policy, (40, 30)).to(dtype))


@every_dtype
@pytest.mark.parametrize("policy", ["normal", "trunc_normal"])
def test_normal_reaches_into_its_tails_in_every_type(policy, dtype):
    values = (
        drawn(policy, (2**20,), dtype, a=-9.0, b=9.0) if policy == "trunc_normal" else drawn(policy, (2**20,), dtype)
    )
    assert 4.5 < values.double().abs().max() < 6.5
    assert abs(values.double().std() - 1) < 0.004


@pytest.mark.parametrize("policy", ["normal", "uniform", "trunc_normal", "orthogonal", "sparse"])
def test_float64_is_drawn_with_all_its_bits(policy):
    values = drawn(policy, (40, 30), torch.float64, **({"sparsity": 0.2} if policy == "sparse" else {}))
    assert (values.float().double() != values).double().mean() > 0.7


def test_without_a_generator_the_bits_are_those_of_torch():
    for policy, arguments in [
        ("normal", {"std": 0.02}),
        ("uniform", {"a": -1.0, "b": 2.0}),
        ("trunc_normal", {"std": 0.5}),
        ("xavier_uniform", {"gain": 1.3}),
        ("kaiming_normal", {"mode": "fan_out", "nonlinearity": "relu"}),
        ("orthogonal", {}),
        ("sparse", {"sparsity": 0.3}),
    ]:
        ours, theirs = torch.empty(30, 20), torch.empty(30, 20)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            getattr(nn.init, f"{policy}_")(theirs, **arguments)
            torch.manual_seed(5)
            fill_of(policy, arguments, (30, 20)).draw(ours, None, 0)
        assert torch.equal(ours, theirs), policy


# ---- truncated normal ----------------------------------------------------------------------------------------------

BOUNDS = [
    pytest.param(0, 1, -2, 2, id="two std"),
    pytest.param(0, 0.02, -2, 2, id="bounds out of reach"),
    pytest.param(0, 1, 10, 20, id="ten std off"),
    pytest.param(0, 1, 10, 1e9, id="without an end"),
    pytest.param(0, 1, -40, -39, id="below, where the density is zero in float32"),
    pytest.param(0, 1, 1000, 1001, id="a thousand std off"),
    pytest.param(0, 1, 0.5, 0.6, id="a narrow part"),
    pytest.param(0, 1, -0.1, 0.2, id="a narrow part around the mean"),
    pytest.param(0, 1, 0, 0.3, id="from the mean on"),
    pytest.param(3, 2, -1, 1, id="one side, mean outside"),
    pytest.param(0, 1, -100, -0.5, id="a third of one side"),
]


@pytest.mark.parametrize(("mean", "std", "a", "b"), BOUNDS)
def test_trunc_normal_follows_its_distribution_wherever_its_bounds_lie(mean, std, a, b):
    values = drawn("trunc_normal", (100_000,), torch.float64, mean=mean, std=std, a=a, b=b)
    assert a <= values.min()
    assert values.max() <= b
    expected = stats.truncnorm((a - mean) / std, (b - mean) / std, mean, std)
    assert stats.kstest(values.numpy(), expected.cdf).pvalue > 1e-4


@every_dtype
@pytest.mark.parametrize(("mean", "std", "a", "b"), [*BOUNDS, pytest.param(0, 0.3, -0.1, 0.7, id="no round bounds")])
def test_trunc_normal_keeps_to_its_bounds_as_the_type_rounds_them(mean, std, a, b, dtype):
    if dtype == torch.float16 and b > 60_000:
        b = 60_000
    values = drawn("trunc_normal", (20_000,), dtype, mean=mean, std=std, a=a, b=b)
    assert torch.tensor(a, dtype=dtype) <= values.min()
    assert values.max() <= torch.tensor(b, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("policy", ["uniform", "trunc_normal"])
def test_half_precision_rounds_no_value_beyond_a_bound(policy, dtype):
    values = drawn(policy, (100_000,), dtype, a=-0.3, b=0.3).double()
    step = torch.finfo(dtype).eps * 0.3
    assert -0.3 <= values.min() <= -0.3 + step
    assert 0.3 - step <= values.max() <= 0.3


@pytest.mark.parametrize(("mean", "value"), [(0.5, 0.5), (-3.0, -1.0), (3.0, 2.0)])
def test_trunc_normal_without_a_spread_is_the_allowed_value_nearest_to_the_mean(mean, value):
    assert (drawn("trunc_normal", (7,), mean=mean, std=0, a=-1, b=2) == value).all()


def test_trunc_normal_ends_where_its_type_cannot_tell_mean_and_bound_apart():
    mean, bound = 1 + 5.97e-8, 1 + 5.95e-8  # in float32 the one is rounded up, the other down
    values = drawn("trunc_normal", (1000,), mean=mean, std=1e-8, a=0.0, b=bound)
    assert (values == torch.tensor(bound)).all()


def test_mass_is_exact_in_either_tail():
    for low, high in ((-2, 2), (10, 11), (-1, 30), (0, 1e9)):
        below = stats.norm.cdf if low < 0 else lambda x: -stats.norm.sf(x)
        assert draws._mass(low, high) == pytest.approx(below(high) - below(low), rel=1e-12)
        assert draws._mass(-high, -low) == draws._mass(low, high)


# ---- the rest ------------------------------------------------------------------------------------------------------


def test_sparse_chooses_its_zeros_by_its_own_stream():
    torch.manual_seed(1)
    first = drawn("sparse", (20, 10), sparsity=0.5)
    torch.manual_seed(2)
    assert torch.equal(drawn("sparse", (20, 10), sparsity=0.5), first)
    assert not torch.equal(drawn("sparse", (20, 10), sparsity=0.5, seed=1) == 0, first == 0)


@pytest.mark.parametrize("start", [0, 5, 11, 14, 20])
def test_zeroed_range_is_zero_whichever_part_is_drawn(start):
    fill = zeroed(fill_of("ones", {}, (24,)), 8, 12)
    part = torch.empty(4)
    fill.draw(part, torch.Generator(), start)
    assert part.tolist() == [0.0 if 8 <= place < 12 else 1.0 for place in range(start, start + 4)]


def test_fans_of_named_axes():
    assert fans((3, 5), None) == (5, 3)
    assert fans((3, 5), ["in", "out"]) == (3, 5)
    assert fans((2, 3, 5), ["field", "in", "out"]) == (6, 10)


def test_basic_policy_of_those_that_scale_by_fans():
    assert basic("normal", {"std": 2.0}, (3,)) == ("normal", {"mean": 0.0, "std": 2.0})
    policy, arguments = basic("kaiming_uniform", {"nonlinearity": "relu"}, (4, 6))
    assert (policy, arguments["b"]) == ("uniform", math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(6)))
