"""Losses of rows that people compared or labelled, to be minimised, and how far their probabilities can be trusted.

A row has a score; the margin of a pair is the score of the row that was chosen less that of the row that was rejected.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

# Sums of the log-probabilities of long rows, some thousand nats in float32, are right to this.
_TIE = 1e-4


def bradley_terry_loss(margins: Float[Tensor, "*shape"], *, label_smoothing: float = 0.0) -> Float[Tensor, "*shape"]:
    """-log p(chosen before rejected), p = sigmoid(margin), nats (Bradley and Terry, 1952, by which Christiano et al.,
    2017, eq. 1 fit rewards; https://arxiv.org/abs/1706.03741).

    With smoothing -(1 - e) log sigmoid(margin) - e log sigmoid(-margin): a share e of the pairs is the wrong way round
    (Mitchell, 2023, eq. 3; https://ericmitchell.ai/cdpo.pdf).

    Args:
        label_smoothing: e, in [0, 0.5).
    """
    return -(1.0 - label_smoothing) * logsigmoid(margins) - label_smoothing * logsigmoid(-margins)


def hinge_loss(margins: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """max(0, 1 - margin) (Zhao et al., 2023, eq. 1; https://arxiv.org/abs/2305.10425)."""
    return relu(1.0 - margins)


def identity_loss(log_ratios: Float[Tensor, "*shape"], *, beta: float) -> Float[Tensor, "*shape"]:
    """(h - 1 / (2 beta))^2, h the log-ratio to the reference of the chosen row less that of the rejected one (IPO; Azar
    et al., 2023, eq. 17, whose tau is beta; https://arxiv.org/abs/2310.12036).
    """
    return (log_ratios - 0.5 / beta).square()


def prospect_loss(
    log_ratios: Float[Tensor, "*shape"],
    desirable: Bool[Tensor, "*shape"],
    *,
    kl: float | Float[Tensor, ""],
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Float[Tensor, "*shape"]:
    """weight * (1 - sigmoid(+-beta (log-ratio - kl))), + where the row is desirable (KTO; Ethayarajh et al., 2024,
    eq. 8; https://arxiv.org/abs/2402.01306).

    Args:
        log_ratios: Of whole rows to the reference, nats.
        kl: KL of the policy to the reference, at least 0, through which nothing is differentiated.
    """
    ones = torch.ones_like(log_ratios)
    signs = torch.where(desirable, ones, -ones)
    weights = torch.where(desirable, desirable_weight * ones, undesirable_weight * ones)
    return weights * (1.0 - torch.sigmoid(beta * signs * (log_ratios - kl)))


def calibration_error(margins: Float[Tensor, " N"], *, num_bins: int = 10) -> Float[Tensor, ""]:
    """Expected calibration error of p = sigmoid(margin) that the chosen row is the better one, in [0, 1] (Guo et al.,
    2017, eq. 3; https://arxiv.org/abs/1706.04599).

    sum_b n_b / N |accuracy_b - confidence_b|, bins of one width over the confidence max(p, 1 - p) in [1/2, 1]. A pair
    whose margin is 0 is right by half.
    """
    confidences = torch.sigmoid(margins.double().abs())
    bins = ((confidences - 0.5) * 2.0 * num_bins).long().clamp(max=num_bins - 1)
    gaps = correct(margins).double() - confidences
    sums = torch.zeros(num_bins, dtype=torch.float64, device=margins.device).index_add(0, bins, gaps)
    return (sums.abs().sum() / max(len(margins), 1)).to(margins)


def correct(margins: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 where the chosen row scores more, 0 where less, 1/2 where both score the same to rounding: below 1e-4, which
    changes no probability by more than 3e-5."""
    return 0.5 * (1.0 + torch.where(margins.abs() < _TIE, 0.0, margins).sign())
