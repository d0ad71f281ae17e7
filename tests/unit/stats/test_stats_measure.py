"""The measures against float64 references computed the long way."""

import math

import numpy
import pytest
import torch

from builder.stats import measure as module_under_test
from builder.stats import passes
from builder.stats.columns import BASE_MEASURES, BINS, GRADIENT_MEASURES, POWERS, bin_edges
from builder.stats.measure import (
    GRADIENT,
    OUTPUT,
    WEIGHT,
    gradient_measures,
    gradient_sums,
    histogram_counts,
    joined,
    output_measures,
    output_sums,
    ratio,
    rms_of,
    square_sums,
    start_measures,
    start_sums,
    step_sums,
    weight_measures,
    weight_sums,
)

LARGE = 3_000_000  # several chunks, which compiled loops read


def reference(tensor):
    """Mean, std, rms, min, max, l2, zeros and non-finite count by math.fsum, which rounds once."""
    values = [float(v) for v in tensor.double().flatten()]
    mean = math.fsum(values) / len(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    squares = math.fsum(v * v for v in values)
    zeros = sum(v == 0 for v in values) / len(values)
    return [mean, std, math.sqrt(squares / len(values)), min(values), max(values), math.sqrt(squares), zeros, 0]


def reference_large(tensor):
    """The same by numpy in float64, whose pairwise sums hold twelve digits."""
    x = tensor.detach().double().numpy().ravel()
    squares = (x * x).sum()
    rms = math.sqrt(squares / x.size)
    return [x.mean(), x.std(), rms, x.min(), x.max(), math.sqrt(squares), (x == 0).mean(), (~numpy.isfinite(x)).sum()]


def normal(*shape, seed=0, mean=0.0, std=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * std + mean


def weights(tensor):
    return dict(zip(BASE_MEASURES, weight_measures(weight_sums([tensor]))[0].tolist(), strict=True))


def gradients(tensor):
    return dict(zip(GRADIENT_MEASURES, gradient_measures(gradient_sums([tensor]))[0].tolist(), strict=True))


def change_sums(after, before, stacked=False):
    """Counts and squares of the difference alone."""
    return step_sums(after, before, stacked=stacked)[:, len(WEIGHT) :]


SMALL = [
    pytest.param(normal(64, 64), id="a matrix"),
    pytest.param(normal(7), id="a vector"),
    pytest.param(torch.tensor(-2.5), id="a scalar of no dimensions"),
    pytest.param(torch.full((1000,), 0.1), id="constant"),
    pytest.param(torch.full((1000,), 1e6), id="constant and huge"),
    pytest.param(normal(1000, mean=1e6), id="mean of a million times the spread"),
    pytest.param(normal(1000, std=1e30), id="squares beyond float32"),
    pytest.param(normal(1000, std=1e-30), id="squares below float32"),
    pytest.param(normal(1000, std=1e-40), id="denormal"),
    pytest.param(normal(1000).bfloat16(), id="bfloat16"),
    pytest.param(normal(1000, std=1e4).half(), id="float16 with squares beyond its range"),
    pytest.param(normal(40, 30).t(), id="transposed"),
    pytest.param(normal(40, 30)[:, ::3], id="with gaps"),
    pytest.param(normal(1000).double(), id="float64"),
    pytest.param(normal(1000).double() * 1e-200, id="float64 below float32"),
    pytest.param(torch.zeros(5), id="zeros"),
    pytest.param(normal(100).relu(), id="half of it zeros"),
    pytest.param(-torch.zeros(3), id="negative zeros"),
]


@pytest.mark.parametrize("tensor", SMALL)
def test_small_weights_agree_with_the_long_way_in_float64(tensor):
    numpy.testing.assert_allclose(list(weights(tensor).values()), reference(tensor), rtol=1e-9, atol=0)


@pytest.mark.parametrize("tensor", SMALL)
def test_small_gradients_agree_with_the_long_way_in_float64(tensor):
    expected = reference(tensor)
    found = gradients(tensor)
    assert found["gradient_rms"] == pytest.approx(expected[2], rel=1e-9)
    assert found["gradient_max"] == max(abs(expected[3]), abs(expected[4]))
    assert rms_of(square_sums([tensor])).item() == pytest.approx(expected[2], rel=1e-9)


BIG = [
    pytest.param(normal(LARGE), id="normal"),
    pytest.param(normal(1000, 3000, std=0.02), id="a matrix"),
    pytest.param(normal(1000, 3000).t(), id="transposed"),
    pytest.param(torch.full((LARGE,), 0.1), id="constant"),
    pytest.param(torch.full((LARGE,), 0.1) * torch.sign(normal(LARGE)), id="of one size, two signs"),
    pytest.param(normal(LARGE, mean=1e6), id="mean of a million times the spread"),
    pytest.param(torch.rand(LARGE, generator=torch.Generator().manual_seed(0)), id="uniform above zero"),
    pytest.param(torch.arange(float(LARGE)), id="chunks with means far apart"),
    pytest.param(normal(LARGE, std=1e30), id="squares beyond float32"),
    pytest.param(normal(LARGE, std=1e-30), id="squares below float32"),
    pytest.param(normal(LARGE, std=1e-41), id="denormal"),
    pytest.param(normal(LARGE).relu(), id="half of it zeros"),
    pytest.param(torch.zeros(LARGE), id="zeros"),
    pytest.param(normal(LARGE).bfloat16(), id="bfloat16"),
    pytest.param(normal(LARGE, std=100).half(), id="float16"),
    pytest.param(normal(LARGE).double(), id="float64"),
    pytest.param(torch.cat([normal(LARGE // 2), normal(LARGE // 2, std=1e-25)]), id="a half of tiny values"),
]


@pytest.mark.parametrize("tensor", BIG)
def test_large_tensors_agree_with_float64(tensor):
    found, expected = weights(tensor), dict(zip(BASE_MEASURES, reference_large(tensor), strict=True))
    for measure in ("std", "rms", "l2"):
        assert found[measure] == pytest.approx(expected[measure], rel=1e-9), measure
    assert found["mean"] == pytest.approx(expected["mean"], abs=1e-12 * expected["rms"], rel=1e-9)
    for measure in ("min", "max", "zeros", "nonfinite"):
        assert found[measure] == expected[measure], measure
    assert gradients(tensor)["gradient_rms"] == pytest.approx(expected["rms"], rel=1e-9)
    assert gradients(tensor)["gradient_max"] == max(abs(expected["min"]), abs(expected["max"]))


def test_std_of_a_constant_is_exactly_zero():
    many = [torch.full((n,), value) for n in (1, 3, 1000, 200_000, LARGE) for value in (0.1, 1e6, -3e-20)]
    assert weight_measures(weight_sums(many))[:, 1].tolist() == [0.0] * len(many)


def test_std_is_the_population_std():
    assert weights(torch.tensor([1.0, 3.0]))["std"] == 1.0
    assert weights(torch.tensor([5.0]))["std"] == 0.0


@pytest.mark.parametrize("size", [pytest.param(10, id="small"), pytest.param(LARGE, id="large")])
def test_non_finite_values_are_counted_and_not_dropped(size):
    tensor = torch.ones(size)
    tensor[0], tensor[3], tensor[-1] = math.nan, math.inf, -math.inf
    found = weights(tensor)
    assert found["nonfinite"] == gradients(tensor)["gradient_nonfinite"] == 3
    assert all(math.isnan(found[measure]) for measure in ("mean", "std", "rms", "min", "max", "l2"))
    assert math.isnan(gradients(tensor)["gradient_max"])
    assert found["zeros"] == 0


@pytest.mark.parametrize("size", [pytest.param(2, id="small"), pytest.param(LARGE, id="large")])
def test_an_infinite_value_gives_an_infinite_rms(size):
    tensor = torch.ones(size)
    tensor[1] = math.inf
    found = weights(tensor)
    assert (found["mean"], found["rms"], found["max"], found["nonfinite"]) == (math.inf, math.inf, math.inf, 1)
    assert math.isnan(found["std"])


def test_every_value_may_be_nan():
    found = weights(torch.full((LARGE,), math.nan))
    assert found["nonfinite"] == LARGE


def test_an_empty_tensor_measures_zero():
    empty = torch.zeros(0, 4)
    assert set(weights(empty).values()) == {0.0}
    assert set(gradients(empty).values()) == {0.0}
    assert rms_of(change_sums([empty], [empty])).tolist() == [0.0]
    assert start_sums([empty], [empty]).tolist() == [[0.0] * 5]
    assert histogram_counts([empty]).sum() == 0


def test_no_tensors_give_no_rows():
    assert weight_sums([]).shape == (0, len(WEIGHT))
    assert gradient_sums([]).shape == (0, len(GRADIENT))
    assert change_sums([], []).shape == (0, 2)
    assert histogram_counts([]).shape == (0, BINS + 1)


def test_each_tensor_has_its_own_row():
    tensors = [torch.ones(3), torch.zeros(0), torch.tensor(2.0), torch.full((LARGE,), 3.0)]
    assert weight_measures(weight_sums(tensors))[:, 0].tolist() == [1.0, 0.0, 2.0, 3.0]
    assert gradient_measures(gradient_sums(tensors))[:, 0].tolist() == [1.0, 0.0, 2.0, 3.0]


@pytest.mark.parametrize("shape", [(4, 3), (4,), (4, 20_000), (4, 2, 3)], ids=str)
def test_members_of_a_stacked_tensor_measure_as_each_alone(shape):
    stack, before = normal(*shape, mean=0.5), normal(*shape, seed=1)
    alone = list(stack.reshape(4, -1))
    for sums in (weight_sums, gradient_sums, square_sums, histogram_counts):
        torch.testing.assert_close(sums([stack], stacked=True), sums(alone), rtol=1e-12, atol=1e-12)
    pairs = change_sums([stack], [before], stacked=True), change_sums(alone, list(before.reshape(4, -1)))
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=0)
    assert start_sums([stack], [before], stacked=True).shape == (4, 5)
    assert weight_sums([stack[:, :0] if stack.ndim > 1 else stack[:0]], stacked=True).shape[1] == len(WEIGHT)


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_sums_of_parts_join_to_those_of_the_whole(pieces):
    tensor = normal(1001, mean=1e5)
    tensor[3] = 0
    parts = [weight_sums([part]) for part in tensor.tensor_split(pieces)] + [weight_sums([torch.zeros(0)])]
    whole = weight_measures(joined(torch.stack(parts), WEIGHT))
    torch.testing.assert_close(whole, weight_measures(weight_sums([tensor])), rtol=1e-11, atol=1e-11)


# ---- updates and distance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [pytest.param(100, id="small"), pytest.param(LARGE, id="large")])
def test_change_is_the_rms_of_the_difference(dtype, size):
    before, after = normal(size, mean=100.0).to(dtype), normal(size, seed=1, mean=100.0).to(dtype)
    expected = (after.double() - before.double()).square().mean().sqrt().item()
    assert rms_of(change_sums([after], [before])).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [pytest.param(10, id="small"), pytest.param(LARGE, id="large")])
@pytest.mark.parametrize("value", [1.0, 1e-20, 3e30])
def test_a_smallest_possible_move_is_seen(size, value):
    before = torch.full((size,), value)
    after = torch.nextafter(before, torch.tensor(math.inf))
    expected = (after[0].double() - before[0].double()).item()
    assert rms_of(change_sums([after], [before])).item() == pytest.approx(expected, rel=1e-12)


def test_a_move_beyond_the_range_of_float32_is_measured():
    before, after = torch.full((LARGE,), -3e38), torch.full((LARGE,), 3e38)
    expected = 2 * after[0].double().item()
    assert rms_of(change_sums([after], [before])).item() == pytest.approx(expected, rel=1e-9)


def test_ratio_is_defined_for_a_zero_weight():
    update, weight = torch.tensor([0.0, 1.0, 1.0, math.nan, 0.0]), torch.tensor([0.0, 0.0, 4.0, 0.0, math.nan])
    got = ratio(update, weight).tolist()
    assert got[:3] == [0.0, math.inf, 0.25]
    assert math.isnan(got[3]) and math.isnan(got[4])


def reference_start(now, start):
    """Distance and cosine in float64; one minus the cosine from the difference of the directions, which keeps it."""
    a, b = now.double(), start.double()
    away = (a / a.norm() - b / b.norm()).square().sum().item() / 2
    return (a - b).norm().item(), 1 - away


START_CASES = [
    pytest.param(lambda start: start + normal(len(start), seed=1), id="moved as far as it is long"),
    pytest.param(lambda start: normal(len(start), seed=1), id="at a right angle"),
    pytest.param(lambda start: -start, id="turned about"),
    pytest.param(lambda start: start * 1000 + normal(len(start), seed=1), id="grown a thousandfold"),
    pytest.param(lambda start: start * 1e-5 + 1e-5 * normal(len(start), seed=1), id="shrunk"),
]


@pytest.mark.parametrize("move", START_CASES)
@pytest.mark.parametrize("size", [100, 200_000, LARGE], ids=str)
def test_distance_and_cosine_agree_with_float64(size, move):
    start = normal(size)
    now = move(start)
    expected_distance, expected_cosine = reference_start(now, start)
    distance, cosine = start_measures(start_sums([now], [start]))[0].tolist()
    assert distance == pytest.approx(expected_distance, rel=1e-12)
    assert cosine == pytest.approx(expected_cosine, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("size", [100, LARGE], ids=str)
def test_the_cosine_of_a_small_move_keeps_its_distance_from_one(size):
    start = normal(size)
    now = start + 1e-4 * normal(size, seed=1)
    away = 1 - start_measures(start_sums([now], [start]))[0, 1].item()
    assert away == pytest.approx(1 - reference_start(now, start)[1], rel=1e-6)
    assert 1e-9 < away < 1e-7, "float32 alone tells no two numbers this near to one apart"


@pytest.mark.parametrize("size", [1000, LARGE], ids=str)
def test_a_parameter_that_did_not_move_has_distance_zero_and_cosine_one(size):
    distance, cosine = start_measures(start_sums([normal(size)], [normal(size)]))[0].tolist()
    assert distance == 0 and cosine == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("size", [3, LARGE], ids=str)
def test_from_zero_there_is_a_distance_and_no_cosine(size):
    now, zero = normal(size), torch.zeros(size)
    distance, cosine = start_measures(start_sums([now], [zero]))[0].tolist()
    assert distance == pytest.approx(now.double().norm().item(), rel=1e-12)
    assert math.isnan(cosine)
    assert math.isnan(start_measures(start_sums([zero], [zero]))[0, 1])


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    monkeypatch.setattr(passes, "_WORTH_THREADS", 0)
    tensors = [normal(LARGE), normal(20_000), normal(100), normal(LARGE, mean=1e6)]
    before = [tensor * 0.9 for tensor in tensors]
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            found.append((weight_sums(tensors), change_sums(tensors, before), start_sums([tensors[0]], [before[0]])))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_a_failure_in_a_thread_reaches_the_caller(monkeypatch):
    def fail(*chunk):
        raise MemoryError("no room")

    monkeypatch.setattr(passes, "_WORTH_THREADS", 0)
    monkeypatch.setattr(passes, "_by_loop", fail)
    with pytest.raises(MemoryError, match="no room"):
        weight_sums([normal(LARGE)])


# ---- layer outputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", SMALL)
def test_outputs_agree_with_the_long_way_in_float64(tensor):
    mean, std, rms, *_ = reference(tensor)
    found = output_measures(output_sums(tensor))[0].tolist()
    numpy.testing.assert_allclose(found, [mean, std, rms, 0], rtol=1e-9, atol=0)


def test_a_large_output_with_a_nan_counts_it():
    tensor = normal(LARGE)
    tensor[5] = math.nan
    assert output_measures(joined(torch.stack([output_sums(tensor)]), OUTPUT))[0, 3] == 1


# ---- histograms ----------------------------------------------------------------------------------------------------


def reference_bins(tensor):
    """By the definition: exponents floor(log2|x|) from -26 to 7 on each side of zero."""
    counts = [0] * BINS
    for value in tensor.double().flatten().tolist():
        if math.isfinite(value):
            k = min(max(math.frexp(value)[1] - 1 + 27, 1), 34)
            counts[POWERS + (k if value > 0 else -k if value < 0 else 0)] += 1
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_histogram_counts_by_power_of_two(dtype):
    edges = [low for low, _ in bin_edges() if low] + [0.0, 1e-30, 1e30, 1e-42, math.inf, math.nan]
    tensor = torch.tensor([sign * value for value in edges for sign in (1, -1)], dtype=torch.float64).to(dtype)
    table = histogram_counts([tensor, normal(1000).to(dtype)]).long().tolist()
    assert table[0][:BINS] == reference_bins(tensor)
    assert table[1][:BINS] == reference_bins(normal(1000).to(dtype))
    assert [row[BINS] for row in table] == [len(tensor), 1000], "non-finite values were looked at"


def test_bins_hold_the_values_between_their_edges():
    for number, (low, high) in enumerate(bin_edges(), start=1):
        inside = torch.tensor([low or 1e-40, min(high, 1e38) * (1 - 2**-20), -(low or 1e-40)])
        counts = histogram_counts([inside])[0]
        assert counts[POWERS + number] == 2 and counts[POWERS - number] == 1, (low, high)


def test_a_large_tensor_is_sampled_over_all_of_its_columns():
    tensor = torch.zeros(3000, 1024)
    tensor[:, ::2] = 1.0
    counts = histogram_counts([tensor])[0]
    assert 0.9 * module_under_test.SAMPLE / 1.1 < counts[BINS] <= module_under_test.SAMPLE
    assert counts[POWERS] == pytest.approx(counts[BINS].item() / 2, abs=1)


def test_measuring_leaves_the_tensors_alone_and_builds_no_graph():
    weight = torch.nn.Parameter(normal(20_000))
    before = weight.detach().clone()
    for sums in (weight_sums, gradient_sums, square_sums, histogram_counts):
        assert not sums([weight]).requires_grad
    assert torch.equal(weight, before) and weight.grad is None


def test_measuring_draws_no_random_number():
    state = torch.get_rng_state()
    for sums in (weight_sums, gradient_sums, square_sums, histogram_counts):
        sums([normal(LARGE)])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [10, 20_000, 2**22 + 1])
def test_on_a_device_no_value_is_looked_at(size):
    """On meta every look at a value raises."""
    tensor = torch.empty(size, device="meta")
    for sums in (weight_sums, gradient_sums, square_sums, histogram_counts):
        assert sums([tensor, tensor]).is_meta
    assert change_sums([tensor], [tensor]).is_meta and start_sums([tensor], [tensor]).is_meta
    assert output_sums(tensor).is_meta
