"""Baselines against arithmetic, and the one order of variances that theory promises."""

import pytest
import torch
from torch import Tensor

from rlhf.core.baselines import mean_return, mean_return_of_others, squared_gradient_norms


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def check(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-9)


def test_mean_return_is_weighted_and_zero_over_nothing():
    check(mean_return(tensor(1 * 2 + 3 * 6, 0), tensor(4, 0)), tensor(5, 0))


def test_mean_return_of_others_matches_published_numbers():
    """Leave-one-out advantages of [1, 2, 5, 8] are [-4, -2.6667, 1.3333, 5.3333]."""
    returns = tensor(1, 2, 5, 8).unsqueeze(1)
    ones = torch.ones_like(returns)
    baseline = mean_return_of_others(returns, ones, returns.sum(0), ones.sum(0))
    check((returns - baseline).squeeze(1), tensor(-4, -8 / 3, 4 / 3, 16 / 3))


def test_a_row_without_others_has_no_baseline():
    one = tensor(3).unsqueeze(1)
    check(mean_return_of_others(one, torch.ones_like(one), tensor(3), tensor(1)), tensor(0).unsqueeze(1))


def softmax_logprob(parameters: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
    return torch.log_softmax(parameters["logits"], dim=-1).gather(0, row["actions"].unsqueeze(0)).sum()


LOGITS = tensor(0.9, 0.1).log()
RETURNS = tensor(1, 0)
# d log pi(a) / d logits[0]: 1 - p of the first action, -p of the second.
SLOPES = tensor(0.1, -0.9)


def variance(baseline: float) -> float:
    """Of the first part of the gradient of one action, over both actions."""
    terms, probabilities = SLOPES * (RETURNS - baseline), LOGITS.exp()
    mean = (probabilities * terms).sum()
    return float((probabilities * (terms - mean).square()).sum())


@pytest.mark.parametrize("chunk_size", [1, 2, 256])
def test_squared_gradient_norms_of_a_softmax(chunk_size):
    """|e_a - p|^2: .1^2 + .1^2 and .9^2 + .9^2."""
    actions = torch.tensor([0, 1, 1, 0, 1])
    norms = squared_gradient_norms(softmax_logprob, {"logits": LOGITS}, {"actions": actions}, chunk_size=chunk_size)
    check(norms, tensor(0.02, 1.62)[actions])


def test_the_value_can_have_64_times_the_variance_of_no_baseline_and_the_optimal_one_none():
    """p = (.9, .1), r = (1, 0): E[r] = .9 gives .0576, none .0009, b* = E[|grad|^2 r] / E[|grad|^2] = .1 gives 0."""
    probabilities = LOGITS.exp()
    norms = squared_gradient_norms(softmax_logprob, {"logits": LOGITS}, {"actions": torch.tensor([0, 1])}, chunk_size=2)
    best = float(mean_return((probabilities * norms * RETURNS).sum(), (probabilities * norms).sum()))
    assert best == pytest.approx(0.1, abs=1e-12)
    assert variance(0.9) == pytest.approx(0.0576, abs=1e-12)
    assert variance(0.0) == pytest.approx(0.0009, abs=1e-12)
    assert variance(best) == pytest.approx(0.0, abs=1e-12)


def test_no_constant_has_less_variance_than_the_optimal_one():
    """On random softmax problems, for the whole gradient, whose variance is the sum over its parts."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits, returns = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2))
        probabilities = logits.softmax(-1)
        scores = torch.eye(4, dtype=torch.float64) - probabilities
        norms = squared_gradient_norms(softmax_logprob, {"logits": logits}, {"actions": torch.arange(4)}, chunk_size=4)

        def spread(baseline, scores=scores, returns=returns, probabilities=probabilities):
            terms = scores * (returns - baseline).unsqueeze(1)
            mean = (probabilities.unsqueeze(1) * terms).sum(0)
            return float((probabilities * (terms - mean).square().sum(1)).sum())

        best = mean_return((probabilities * norms * returns).sum(), (probabilities * norms).sum())
        others = [spread(best + shift) for shift in (-1.0, -0.1, -0.01, 0.01, 0.1, 1.0)]
        assert spread(best) < min(others)
        assert spread(best) <= spread((probabilities * returns).sum())
