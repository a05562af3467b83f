"""Scores of rows compared within their group: rows that share a start need no critic to say what it was worth.

`groups` names each row's group by any number. Rows outside `mask` (those without a score) count for nothing and get 0;
so does a row that is alone. Where all scores of a group are equal, to what float32 leaves of sums of their size, the
result is exactly 0: Adam's steps are of one size, however small the scores' differences.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from rlhf.core.masked import rounding


def centred(scores: Float[Tensor, " B"], groups: Int64[Tensor, " B"], mask: Bool[Tensor, " B"]) -> Float[Tensor, " B"]:
    """score - mean of the group, itself included (Liu et al., 2025, section 3.2; https://arxiv.org/abs/2503.20783).

    As a baseline this scales the expected gradient by (N - 1) / N in groups of N.
    """
    return _in_groups(scores, groups, mask, _deviations)


def leave_one_out(
    scores: Float[Tensor, " B"], groups: Int64[Tensor, " B"], mask: Bool[Tensor, " B"]
) -> Float[Tensor, " B"]:
    """score - mean of the others of the group, an unbiased baseline (Ahmadian et al., 2024, section 2.2;
    https://arxiv.org/abs/2402.14740).

    Equals N / (N - 1) * (score - mean of all N).
    """

    def compared(rows: Float[Tensor, "G N"]) -> Float[Tensor, "G N"]:
        size = rows.shape[1]
        return _deviations(rows) * size / max(size - 1, 1)

    return _in_groups(scores, groups, mask, compared)


def standardised(
    scores: Float[Tensor, " B"], groups: Int64[Tensor, " B"], mask: Bool[Tensor, " B"], *, epsilon: float
) -> Float[Tensor, " B"]:
    """(score - mean) / (standard deviation + epsilon) of the group (Shao et al., 2024, section 4.1.2;
    https://arxiv.org/abs/2402.03300).

    The paper does not say which deviation; it is the one that TRL, verl and OpenRLHF take: squares over N - 1.

    Args:
        epsilon: Keeps small what differs by rounding only; in the unit of the scores.
    """

    def compared(rows: Float[Tensor, "G N"]) -> Float[Tensor, "G N"]:
        deviations = _deviations(rows)
        variances = deviations.square().sum(1, keepdim=True) / max(rows.shape[1] - 1, 1)
        return deviations / (variances.sqrt() + epsilon)

    return _in_groups(scores, groups, mask, compared)


def row_shares(mask: Bool[Tensor, "B T"]) -> Float64[Tensor, "B T"]:
    """1 / length of the row in the mask, 0 outside it: weights that add up to 1 in each row with any action."""
    return mask.double() / mask.sum(1, keepdim=True).clamp(min=1)


def _in_groups(
    scores: Float[Tensor, " B"],
    groups: Int64[Tensor, " B"],
    mask: Bool[Tensor, " B"],
    compare: Callable[[Float[Tensor, "G N"]], Float[Tensor, "G N"]],
) -> Float[Tensor, " B"]:
    """What `compare` says of the groups, those with as many rows in the mask at once; 0 outside the mask."""
    rows = mask.nonzero().squeeze(1)
    rows = rows[groups[rows].argsort(stable=True)]
    sizes = groups[rows].unique_consecutive(return_counts=True)[1]
    size_of_each = sizes.repeat_interleave(sizes)
    result = torch.zeros_like(scores)
    for size in sizes.unique().tolist():
        together = rows[size_of_each == size].view(-1, size)
        result = result.index_put((together,), compare(scores[together]))
    return result


def _deviations(scores: Float[Tensor, "G N"]) -> Float[Tensor, "G N"]:
    """score - mean of the group."""
    # From one of their own, so that equal scores are 0 before anything can round.
    shifted = scores - scores[:, :1]
    size = scores.shape[1]
    deviations = (size * shifted - shifted.sum(1, keepdim=True)) / size
    alike = scores.amax(1, keepdim=True) - scores.amin(1, keepdim=True) <= rounding(scores.abs().amax(1, keepdim=True))
    return torch.where(alike, 0.0, deviations)
