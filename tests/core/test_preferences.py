"""Losses of compared and labelled rows: published numbers, identities, and calibration by simulation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlhf.core import preferences


def doubles(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def check(actual: Tensor, expected: Tensor | list[float], atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


def test_bradley_terry_loss_of_published_numbers() -> None:
    """Log-ratios 0, 10 and 20 at beta 0.1 are margins 0, 1 and 2."""
    check(preferences.bradley_terry_loss(0.1 * doubles(0, 10, 20)), [0.693147, 0.313262, 0.126928], atol=1e-6)


def test_bradley_terry_loss_is_the_negative_log_of_the_probability() -> None:
    margins = doubles(-3.0, -0.2, 0.0, 1.5)
    strengths = torch.stack([margins.exp(), torch.ones_like(margins)])
    check(preferences.bradley_terry_loss(margins), -(strengths[0] / strengths.sum(0)).log())


def test_bradley_terry_loss_of_huge_margins_is_finite() -> None:
    check(preferences.bradley_terry_loss(doubles(-1e4, 1e4)), [1e4, 0.0])


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_smoothed_loss_is_least_where_the_probability_is_that_of_the_labels(smoothing: float) -> None:
    """d/dm of -(1 - e) log s(m) - e log s(-m) is s(m) - (1 - e)."""
    margin = doubles(math.log((1 - smoothing) / smoothing)).requires_grad_()
    loss = preferences.bradley_terry_loss(margin, label_smoothing=smoothing)
    (slope,) = torch.autograd.grad(loss.sum(), margin)
    check(slope, [0.0])


def test_hinge_loss_ends_at_a_margin_of_one() -> None:
    check(preferences.hinge_loss(doubles(-1.0, 0.25, 1.0, 3.0)), [2.0, 0.75, 0.0, 0.0])


def test_identity_loss_is_least_at_half_a_nat_over_beta() -> None:
    check(preferences.identity_loss(doubles(0.0, 2.5, 5.0), beta=0.2), [6.25, 0.0, 6.25])


def test_prospect_loss_by_its_definition() -> None:
    """Eq. 8: a desirable row is worth lambda_D sigmoid(beta (r - z)), another lambda_U sigmoid(beta (z - r))."""
    log_ratios, kl, beta = [1.5, -2.0, 0.5], 0.5, 0.2

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = [
        2.0 - 2.0 * sigmoid(beta * (1.5 - kl)),
        0.7 - 0.7 * sigmoid(beta * (kl + 2.0)),
        2.0 - 2.0 * sigmoid(0.0),
    ]
    actual = preferences.prospect_loss(
        doubles(*log_ratios),
        torch.tensor([True, False, True]),
        kl=kl,
        beta=beta,
        desirable_weight=2.0,
        undesirable_weight=0.7,
    )
    check(actual, expected)


def test_correct_counts_a_tie_as_half() -> None:
    check(preferences.correct(doubles(2.0, 0.0, -1e-3)), [1.0, 0.5, 0.0])


def test_correct_counts_what_differs_by_rounding_as_a_tie() -> None:
    """Else a policy that is still its own reference would be right in any share of the pairs."""
    check(preferences.correct(doubles(1e-6, -1e-6)), [0.5, 0.5])


def test_calibration_error_by_hand() -> None:
    """Confidences .6, .6 and .9 in two bins; right, wrong and right: (|1 - 1.2| + |1 - .9|) / 3."""
    logit = {p: math.log(p / (1 - p)) for p in (0.6, 0.9)}
    margins = doubles(logit[0.6], -logit[0.6], logit[0.9])
    check(preferences.calibration_error(margins), torch.tensor(0.3 / 3, dtype=torch.float64))


def test_calibration_error_of_true_probabilities_is_small_and_of_exaggerated_ones_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    differences = 2.0 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    chosen = torch.rand(200_000, generator=generator, dtype=torch.float64) < differences.sigmoid()
    margins = torch.where(chosen, differences, -differences)
    assert preferences.calibration_error(margins) < 0.005
    assert preferences.calibration_error(3.0 * margins) > 0.05


def test_calibration_error_of_certain_and_right_pairs_is_zero() -> None:
    check(preferences.calibration_error(doubles(50.0, 60.0)), torch.tensor(0.0, dtype=torch.float64))
