"""The measures against float64 references computed the long way."""

import math

import numpy
import pytest
import torch

from builder.stats.measure import change_rms, magnitudes, moments, ratio


def reference(tensor):
    """Mean, std, rms and non-finite count by math.fsum, which rounds once."""
    values = [float(v) for v in tensor.double().flatten()]
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    return [mean, std, math.sqrt(math.fsum(v * v for v in values) / len(values)), 0]


def normal(*shape, seed=0, mean=0.0, std=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std + mean


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(normal(64, 64), id="a matrix"),
        pytest.param(normal(7), id="a vector"),
        pytest.param(torch.tensor(-2.5), id="a scalar of no dimensions"),
        pytest.param(torch.full((1000,), 0.1), id="constant"),
        pytest.param(torch.full((1000,), 1e6), id="constant and huge"),
        pytest.param(normal(1000, mean=1e6), id="mean of a million times the spread"),
        pytest.param(normal(1000, std=1e30), id="squares beyond float32"),
        pytest.param(normal(1000, std=1e-30), id="squares below float32"),
        pytest.param(normal(300, 700, mean=1e6), id="several chunks around a huge mean"),
        pytest.param(torch.arange(200_000.0), id="chunks with means far apart"),
        pytest.param(normal(1000).bfloat16(), id="bfloat16"),
        pytest.param(normal(1000, std=1e4).half(), id="float16 with squares beyond its range"),
        pytest.param(normal(40, 30).t(), id="transposed"),
        pytest.param(normal(1000).double(), id="float64"),
        pytest.param(torch.zeros(5), id="zeros"),
    ],
)
def test_moments_agree_with_the_long_way_in_float64(tensor):
    got = moments([tensor])[0].tolist()
    numpy.testing.assert_allclose(got, reference(tensor), rtol=1e-9, atol=0)


def test_std_of_a_constant_is_exactly_zero():
    many = [torch.full((n,), value) for n in (1, 3, 1000, 200_000) for value in (0.1, 1e6, -3e-20)]
    assert moments(many)[:, 1].tolist() == [0.0] * len(many)


def test_std_is_the_population_std():
    assert moments([torch.tensor([1.0, 3.0])])[0, 1].item() == 1.0
    assert moments([torch.tensor([5.0])])[0, 1].item() == 0.0


def test_rms_of_many_values_does_not_drift():
    """A float32 2-norm on the CPU is off by 1e-3 here."""
    tensor = torch.full((8_000_000,), 0.1)
    expected = tensor[0].double().item()
    assert moments([tensor])[0, 2].item() == pytest.approx(expected, rel=1e-12)
    assert magnitudes([tensor])[0, 0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [pytest.param(10, id="one chunk"), pytest.param(200_000, id="several chunks")])
def test_non_finite_values_are_counted_and_not_dropped(size):
    tensor = torch.ones(size)
    tensor[0], tensor[3], tensor[-1] = math.nan, math.inf, -math.inf
    mean, std, rms, bad = moments([tensor])[0].tolist()
    assert bad == 3
    assert math.isnan(mean) and math.isnan(std) and math.isnan(rms)
    assert magnitudes([tensor])[0, 1].item() == 3


def test_an_infinite_value_gives_an_infinite_rms():
    mean, std, rms, bad = moments([torch.tensor([1.0, math.inf])])[0].tolist()
    assert (mean, rms, bad) == (math.inf, math.inf, 1)
    assert math.isnan(std)


def test_an_empty_tensor_measures_zero():
    empty = torch.zeros(0, 4)
    assert moments([empty]).tolist() == [[0.0] * 4]
    assert magnitudes([empty]).tolist() == [[0.0] * 2]
    assert change_rms([empty], [empty]).tolist() == [0.0]


def test_no_tensors_give_no_rows():
    assert moments([]).shape == (0, 4)
    assert magnitudes([]).shape == (0, 2)
    assert change_rms([], []).shape == (0,)


def test_each_tensor_has_its_own_row():
    tensors = [torch.ones(3), torch.zeros(0), torch.tensor(2.0)]
    assert moments(tensors)[:, 0].tolist() == [1.0, 0.0, 2.0]
    assert magnitudes(tensors)[:, 0].tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [pytest.param(100, id="one chunk"), pytest.param(200_000, id="several chunks")])
def test_change_is_taken_without_rounding_the_difference(dtype, size):
    before, after = normal(size, mean=100.0).to(dtype), normal(size, seed=1, mean=100.0).to(dtype)
    expected = reference(after.double() - before.double())[2]
    assert change_rms([after], [before])[0].item() == pytest.approx(expected, rel=1e-12)


def test_a_smallest_possible_move_is_seen():
    before = torch.ones(10)
    after = torch.nextafter(before, torch.tensor(2.0))
    assert change_rms([after], [before]).item() == 2.0**-23


def test_ratio_is_defined_for_a_zero_weight():
    update, weight = torch.tensor([0.0, 1.0, 1.0, math.nan, 0.0]), torch.tensor([0.0, 0.0, 4.0, 0.0, math.nan])
    got = ratio(update, weight).tolist()
    assert got[:3] == [0.0, math.inf, 0.25]
    assert math.isnan(got[3]) and math.isnan(got[4])


def test_measuring_leaves_the_tensors_alone_and_builds_no_graph():
    weight = torch.nn.Parameter(normal(10))
    before = weight.detach().clone()
    assert not moments([weight]).requires_grad
    assert torch.equal(weight, before) and weight.grad is None
