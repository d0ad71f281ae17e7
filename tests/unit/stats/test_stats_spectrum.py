"""Largest singular value and effective rank, against a decomposition in float64."""

import math

import pytest
import torch

from builder.stats.spectrum import effective_rank, spectral_norm, start_vector


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference_rank(matrix):
    values = torch.linalg.svdvals(matrix.double().flatten(1))
    shares = [value / values.sum().item() for value in values.tolist()]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


MATRICES = [
    pytest.param(normal(20, 30), id="wide"),
    pytest.param(normal(30, 20), id="tall"),
    pytest.param(normal(8, 4, 3, 3), id="a convolution's"),
    pytest.param(torch.eye(6), id="all singular values alike"),
    pytest.param(torch.outer(normal(5), normal(7, seed=1)), id="of rank one"),
    pytest.param(normal(1, 9), id="one row"),
    pytest.param(normal(12, 12).bfloat16(), id="bfloat16"),
    pytest.param(normal(12, 12).double(), id="float64"),
    pytest.param(normal(12, 12) * 1e-15, id="tiny"),
    pytest.param(normal(12, 12) * 1e15, id="huge"),
]


@pytest.mark.parametrize("matrix", MATRICES)
def test_power_iteration_comes_to_the_largest_singular_value_from_below(matrix):
    vector = start_vector("w", matrix)
    expected = torch.linalg.svdvals(matrix.double().flatten(1))[0].item()
    found = [spectral_norm(matrix, vector, 8).item() for _ in range(12)]
    assert found[-1] == pytest.approx(expected, rel=1e-3)
    assert max(found) <= expected * (1 + 1e-5)
    assert found == pytest.approx(sorted(found), rel=1e-5), "it goes on from where it was"


@pytest.mark.parametrize("matrix", MATRICES)
def test_effective_rank_is_the_exponential_of_the_entropy(matrix):
    assert effective_rank(matrix).item() == pytest.approx(reference_rank(matrix), rel=1e-4)


def test_effective_rank_runs_from_one_to_the_smaller_side():
    assert effective_rank(torch.eye(6)).item() == pytest.approx(6)
    assert effective_rank(torch.outer(normal(5), normal(7))).item() == pytest.approx(1, abs=1e-3)


def test_a_matrix_of_zeros_has_neither_and_leaves_the_vector_usable():
    vector = start_vector("w", torch.zeros(4, 5))
    before = vector.clone()
    assert spectral_norm(torch.zeros(4, 5), vector, 8).item() == 0 == effective_rank(torch.zeros(4, 5)).item()
    assert torch.equal(vector, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_gives_nan_and_leaves_the_vector_usable(bad):
    matrix = normal(4, 5)
    matrix[1, 2] = bad
    vector = start_vector("w", matrix)
    assert math.isnan(spectral_norm(matrix, vector, 8).item())
    assert math.isnan(effective_rank(matrix).item())
    assert vector.isfinite().all()


def test_the_vector_is_drawn_from_a_generator_of_its_own():
    state = torch.get_rng_state()
    one, other = start_vector("a", normal(3, 50)), start_vector("b", normal(3, 50))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, start_vector("a", normal(3, 50))) and not torch.equal(one, other)
    assert one.norm().item() == pytest.approx(1)
