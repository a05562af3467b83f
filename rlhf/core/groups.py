"""Scores of rows compared within their group: rows that share a start need no critic to say what it was worth.

`groups` names each row's group by any number. Rows outside `mask` (those without a score) count for nothing and get 0;
so does a row that is alone. Where all scores of a group are equal, to what float32 leaves of sums of their size, the
result is exactly 0: Adam's steps are of one size, however small the scores' differences.
"""

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from rlhf.core.masked import rounding


def centred(scores: Float[Tensor, " B"], groups: Int64[Tensor, " B"], mask: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
    """score - mean of the group, itself included (Liu et al., 2025, section 3.2; https://arxiv.org/abs/2503.20783).

    As a baseline this scales the expected gradient by (N - 1) / N in groups of N.
    """
    return _deviations(scores, _mates(groups, mask))


def leave_one_out(
    scores: Float[Tensor, " B"], groups: Int64[Tensor, " B"], mask: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """score - mean of the others of the group, an unbiased baseline (Ahmadian et al., 2024, section 2.2;
    https://arxiv.org/abs/2402.14740).

    Equals N / (N - 1) * (score - mean of all N).
    """
    mates = _mates(groups, mask)
    sizes = mates.sum(1)
    return _deviations(scores, mates) * sizes / (sizes - 1).clamp(min=1)


def standardised(
    scores: Float[Tensor, " B"], groups: Int64[Tensor, " B"], mask: Bool[Tensor, " B"], *, epsilon: float
) -> Float[Tensor, " B"]:
    """(score - mean) / (standard deviation + epsilon) of the group (Shao et al., 2024, section 4.1.2;
    https://arxiv.org/abs/2402.03300).

    The paper does not say which deviation; it is the one that TRL, verl and OpenRLHF take: squares over N - 1.

    Args:
        epsilon: Keeps small what differs by rounding only; in the unit of the scores.
    """
    mates = _mates(groups, mask)
    deviations = _deviations(scores, mates)
    variances = torch.where(mates, deviations.square(), 0.0).sum(1) / (mates.sum(1) - 1).clamp(min=1)
    return deviations / (variances.sqrt() + epsilon)


def row_shares(mask: Bool[Tensor, "B T"]) -> Float64[Tensor, "B T"]:
    """1 / length of the row in the mask, 0 outside it: weights that add up to 1 in each row with any action."""
    return mask.double() / mask.sum(1, keepdim=True).clamp(min=1)


def _mates(groups: Int64[Tensor, " B"], mask: Bool[Tensor, " B"]) -> Bool[Tensor, "B B"]:
    """Who is in whose group, oneself included."""
    return (groups.unsqueeze(1) == groups) & mask & mask.unsqueeze(1)


def _deviations(scores: Float[Tensor, " B"], mates: Bool[Tensor, "B B"]) -> Float[Tensor, " B"]:
    """score - mean over the mates, 0 without any."""
    # Pair by pair, since the mean of equal scores may be a rounding off.
    differences = torch.where(mates, scores.unsqueeze(1) - scores, 0.0)
    deviations = differences.sum(1) / mates.sum(1).clamp(min=1)
    highest = torch.where(mates, scores, -torch.inf).amax(1)
    lowest = torch.where(mates, scores, torch.inf).amin(1)
    alike = highest - lowest <= rounding(torch.maximum(highest.abs(), lowest.abs()))
    return torch.where(alike, 0.0, deviations)
