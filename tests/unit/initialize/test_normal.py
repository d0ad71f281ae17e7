"""The ziggurat: its layers, and that what it draws is the normal distribution."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from builder.initialize import draws, normal
from builder.initialize.chunks import fill_range
from builder.initialize.draws import fill_of
from builder.initialize.streams import CHUNK

N = 2**22


@pytest.fixture(scope="module")
def values():
    found = np.empty(N, np.float32)
    normal.normal(found, 0.0, 1.0, np.random.Generator(np.random.SFC64(1)))
    return found.astype(np.float64)


def test_all_layers_have_one_area():
    edges, heights = normal._EDGES, normal._HEIGHTS
    rectangles = edges[1:-1] * np.diff(heights[1:])
    np.testing.assert_allclose(rectangles, normal._AREA, rtol=1e-9)
    below_the_tail = edges[1] * heights[1] + math.sqrt(math.pi / 2) * math.erfc(edges[1] / math.sqrt(2))
    assert below_the_tail == pytest.approx(normal._AREA, rel=1e-12)


def test_moments_lie_within_five_standard_errors(values):
    squares = values * values
    assert abs(values.mean()) < 5 / math.sqrt(N)
    assert abs(squares.mean() - 1) < 5 * math.sqrt(2 / N)
    assert abs((squares * values).mean()) < 5 * math.sqrt(15 / N)
    assert abs((squares * squares).mean() - 3) < 5 * math.sqrt(96 / N)


def test_the_whole_distribution_is_normal(values):
    assert stats.kstest(values, "norm").pvalue > 1e-4


@pytest.mark.parametrize("edges", [pytest.param(0, id="at each layer's edge"), pytest.param(1, id="in the tail")])
def test_as_many_values_as_expected_lie_between_edges(values, edges):
    ends = normal._EDGES[1:] if edges == 0 else np.array([5.0, 4.75, 4.5, 4.25, normal._TAIL, 4.0])
    counts, _ = np.histogram(np.abs(values), np.sort(ends))
    chances = np.diff([math.erf(end / math.sqrt(2)) for end in np.sort(ends)])
    inside = counts.sum() * chances / chances.sum()
    assert stats.chisquare(counts, inside).pvalue > 1e-4
    assert abs(counts.sum() - N * chances.sum()) < 5 * math.sqrt(N * chances.sum())


def test_neighbours_do_not_depend_on_each_other(values):
    for lag in (1, 2, 3):
        assert abs((values[lag:] * values[:-lag]).mean()) < 5 / math.sqrt(N)
        squares = values * values - 1
        assert abs((squares[lag:] * squares[:-lag]).mean()) < 5 * 2 / math.sqrt(N)


@pytest.mark.parametrize("count", [0, 2, 1000])
def test_its_bits_are_those_of_the_generator(count):
    generator, twin = (np.random.Generator(np.random.SFC64(3)) for _ in range(2))
    state = generator.bit_generator.state["state"]["state"]
    out, at, layers, values = (np.empty(count, dtype) for dtype in (np.float32, np.int32, np.int32, np.float32))
    undecided = normal._place(state, normal._STEP, normal._INSIDE, out, 0.5, 2.0, at, layers, values)
    words = twin.integers(0, 2**64, count // 2, dtype=np.uint64).view("<i4")
    expected = ((words >> 10).astype(np.float32) + np.float32(0.5)) * normal._STEP[words & 1023]
    np.testing.assert_array_equal(out, expected * np.float32(2) + np.float32(0.5))
    np.testing.assert_array_equal(values[:undecided], expected[at[:undecided]])
    np.testing.assert_array_equal(layers[:undecided], (words & 1023)[at[:undecided]])
    assert state.tolist() == twin.bit_generator.state["state"]["state"].tolist()


def test_an_odd_number_of_values_is_filled_to_the_last():
    out = np.full(7, np.nan, np.float32)
    normal.normal(out, 3.0, 0.1, np.random.Generator(np.random.SFC64(3)))
    assert (abs(out - 3) < 1).all()


def test_a_huge_parameter_is_drawn_by_it_and_any_range_has_the_bits_of_the_whole(monkeypatch):
    shape = (3, CHUNK)
    by_torch = fill_range(torch.empty(shape), fill_of("normal", {}, shape), 0, "w", shape)
    monkeypatch.setattr(draws, "HUGE", CHUNK)
    fill = fill_of("normal", {"mean": 0.5, "std": 0.5}, shape)
    whole = fill_range(torch.empty(shape), fill, 0, "w", shape)
    assert not torch.equal(whole, by_torch * 0.5 + 0.5)
    part = fill_range(torch.empty(CHUNK), fill, 0, "w", shape, start=CHUNK // 2)
    assert torch.equal(part, whole.flatten()[CHUNK // 2 : CHUNK // 2 + CHUNK])
    assert stats.kstest(whole.double().flatten().numpy(), stats.norm(0.5, 0.5).cdf).pvalue > 1e-4


@pytest.mark.parametrize("policy", ["normal", "uniform"])
def test_half_precision_and_float64_of_a_huge_parameter(policy, monkeypatch):
    monkeypatch.setattr(draws, "HUGE", CHUNK)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        found = fill_range(torch.empty(CHUNK, dtype=dtype), fill_of(policy, {}, (CHUNK,)), 0, "w", (CHUNK,))
        mean, std = (0, 1) if policy == "normal" else (0.5, 12**-0.5)
        assert abs(found.double().mean() - mean) < 5 * std / math.sqrt(CHUNK) + 1e-4
        assert abs(found.double().std() / std - 1) < 0.01


def test_uniform_values_of_a_large_parameter_stay_within_bounds_that_float32_rounds():
    low, high = -0.00012915858480735243, -0.00012900896446136126
    found = fill_range(
        torch.empty(8 * CHUNK), fill_of("uniform", {"a": low, "b": high}, (8 * CHUNK,)), 0, "w", (8 * CHUNK,)
    )
    assert np.float32(low) <= found.min() and found.max() <= np.float32(high)
