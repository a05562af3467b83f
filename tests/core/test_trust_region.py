"""Conjugate gradient and step length against hand numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from rlhf.core import trust_region as region


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


MATRIX, RIGHT = tensor([[4.0, 1.0], [1.0, 3.0]]), tensor([1.0, 2.0])


def solve(matrix: Tensor, right: Tensor, num_iterations: int, tolerance: float = 1e-12) -> Tensor:
    return region.conjugate_gradient(lambda v: matrix @ v, right, num_iterations=num_iterations, tolerance=tolerance)


@pytest.mark.parametrize(
    ("num_iterations", "expected"), [(1, [0.25, 0.5]), (2, [1 / 11, 7 / 11]), (50, [1 / 11, 7 / 11])]
)
def test_conjugate_gradient_of_a_case_worked_by_hand(num_iterations: int, expected: list[float]) -> None:
    torch.testing.assert_close(solve(MATRIX, RIGHT, num_iterations), tensor(expected), rtol=0, atol=1e-12)


def spd(size: int, seed: int) -> Tensor:
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T + torch.eye(size, dtype=torch.float64)


def test_conjugate_gradient_is_done_after_as_many_iterations_as_dimensions() -> None:
    matrix, right = spd(6, 0), torch.arange(6, dtype=torch.float64)
    torch.testing.assert_close(solve(matrix, right, 6), torch.linalg.solve(matrix, right), rtol=0, atol=1e-8)


def test_conjugate_gradient_freezes_at_its_tolerance() -> None:
    """The first step leaves |b - H x| = |(-.5, .25)| = .25 |b|: what comes later moves nothing, to the last bit."""
    assert torch.equal(solve(MATRIX, RIGHT, 10, tolerance=0.2501), solve(MATRIX, RIGHT, 1))
    assert not torch.equal(solve(MATRIX, RIGHT, 10, tolerance=0.2499), solve(MATRIX, RIGHT, 1))


def test_conjugate_gradient_of_nothing_is_nothing() -> None:
    assert solve(MATRIX, torch.zeros(2, dtype=torch.float64), 5).tolist() == [0.0, 0.0]


def test_conjugate_gradient_stops_where_there_is_no_curvature() -> None:
    """H = 0, as of a policy that is certain everywhere: 0 rather than a division by 0."""
    assert solve(torch.zeros(2, 2, dtype=torch.float64), RIGHT, 5).tolist() == [0.0, 0.0]


def test_conjugate_gradient_maps_over_a_stack() -> None:
    matrices = torch.stack([spd(4, seed) for seed in range(3)])
    rights = torch.stack([torch.zeros(4), torch.ones(4), torch.arange(4.0)]).double()
    stacked = vmap(lambda m, b: solve(m, b, 4))(matrices, rights)
    torch.testing.assert_close(stacked, torch.linalg.solve(matrices, rights), rtol=0, atol=1e-9)


def test_step_has_exactly_the_quadratic_kl() -> None:
    direction = torch.linalg.solve(MATRIX, RIGHT)
    step = region.step_length(direction @ MATRIX @ direction, max_kl=0.01) * direction
    assert float(0.5 * step @ MATRIX @ step) == pytest.approx(0.01, abs=1e-15)


def test_step_without_curvature_is_zero() -> None:
    assert float(region.step_length(tensor(0.0), max_kl=0.01)) == 0.0


@pytest.mark.parametrize(
    ("improvement", "kl", "expected"),
    [(0.1, 0.01, True), (0.0, 0.0, False), (-0.1, 0.0, False), (0.1, 0.011, False), (math.nan, 0.0, False),
     (0.1, math.nan, False)],
)  # fmt: skip
def test_a_step_is_acceptable_if_it_improves_within_the_constraint(
    improvement: float, kl: float, expected: bool
) -> None:
    assert bool(region.acceptable(tensor(improvement), tensor(kl), max_kl=0.01)) is expected
