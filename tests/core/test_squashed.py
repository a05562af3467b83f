"""The density of a squashed Gaussian, against its integral and the change of variables."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf.core.squashed import squashed_gaussian_logprobs


def cell(x: float) -> torch.Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.8, -0.5), (-1.0, 0.0)])
def test_squashed_density_integrates_to_one(mean: float, log_std: float) -> None:
    """Over the action itself, by the midpoint rule on (-1, 1)."""
    count = 400_000
    actions = (torch.arange(count, dtype=torch.float64) + 0.5) * (2.0 / count) - 1.0
    draws = actions.atanh().unsqueeze(1)
    density = squashed_gaussian_logprobs(draws, torch.full_like(draws, mean), torch.full_like(draws, log_std)).exp()
    assert float(density.sum() * 2.0 / count) == pytest.approx(1.0, abs=1e-6)


def test_squashed_density_is_the_change_of_variables() -> None:
    """p(a) is the limit of P(a < A < a + h) / h, and A < a where U < atanh(a): by the normal CDF in float64."""
    mean, std, h = 0.3, 0.7, 1e-5
    for action in (-0.9, -0.2, 0.5, 0.97):
        edges = torch.tensor([action - h, action + h], dtype=torch.float64).atanh()
        cdf = torch.special.ndtr((edges - mean) / std)
        ours = squashed_gaussian_logprobs(cell(math.atanh(action)), cell(mean), cell(math.log(std)))
        assert float(ours.exp()) == pytest.approx(float(cdf[1] - cdf[0]) / (2 * h), rel=1e-5)


def test_squashed_logprobs_add_up_over_the_numbers_of_an_action() -> None:
    draws, mean, log_std = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = squashed_gaussian_logprobs(draws, mean, log_std)
    parts = [squashed_gaussian_logprobs(draws[:, [i]], mean[:, [i]], log_std[:, [i]]) for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(parts).sum(0), rtol=0, atol=1e-12)


def test_squashed_logprobs_are_exact_where_the_tanh_rounds_to_one() -> None:
    """At u = 30 in float32, log(1 - tanh(u)^2) = log 4 - 2 u up to e^-60, which no action in (-1, 1) can show."""
    draws = torch.full((1, 1), 30.0, requires_grad=True)
    logprobs = squashed_gaussian_logprobs(draws, torch.full((1, 1), 30.0), torch.zeros(1, 1))
    assert logprobs.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - (math.log(4.0) - 60.0), rel=1e-6)
    logprobs.sum().backward()
    assert draws.grad.item() == pytest.approx(2.0, rel=1e-6)
