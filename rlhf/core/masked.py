"""Whitening over the cells where `mask` is True, whatever the others hold, NaN included; also in the gradient."""

from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_EPSILON = 1e-8
# Rounding of one operation is half a unit in the last place; returns and advantages are sums of a few.
_UNITS = 4.0

Size = TypeVar("Size", float, Tensor)


def rounding(size: Size, dtype: torch.dtype = torch.float32) -> Size:
    """By how much sums of numbers of this size may differ and be equal: four units in the last place."""
    return _UNITS * torch.finfo(dtype).eps * size


def whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *sources: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Mean 0 and variance 1 over the mask (population variance), 0 outside it. Values that are equal, to the rounding
    of the largest of them and of `sources`, become exactly 0.

    Args:
        sources: What x was computed from.
    """
    # Less their largest value equal values are exactly 0, where their mean would keep a rounding residue.
    shifted = (x - x.detach().masked_fill(~mask, -torch.inf).amax()).masked_fill(~mask, 0.0)
    count = mask.sum()
    mean = shifted.sum() / count
    # Filled before it is squared: the gradient of a square at NaN is NaN, even where nothing flows back.
    variance = (shifted - mean).masked_fill(~mask, 0.0).square().sum() / count
    return standardise(shifted, mask, mean=mean, variance=variance, size=largest(mask, x, *sources))


def largest(mask: Bool[Tensor, "*shape"], *tensors: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The greatest absolute value in the mask; 0 of none, as of a process that has no row of a minibatch."""
    inside = [x.detach().masked_fill(~mask, 0.0).abs().flatten() for x in tensors]
    return torch.cat([*inside, inside[0].new_zeros(1)]).amax()


def standardise(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    mean: Float[Tensor, ""],
    variance: Float[Tensor, ""],
    size: Float[Tensor, ""],
) -> Float[Tensor, "*shape"]:
    """(x - mean) / sqrt(variance + 1e-16) in the mask, 0 outside it: whitening by given moments, as those of all ranks.

    1e-16 keeps the standard deviation above 1e-8, and the gradient finite where the variance is 0.

    Args:
        size: Of the numbers that x was computed from: a deviation that is their rounding gives 0, and not 1.
    """
    # Twice: NaN outside must not reach the gradient of the variance, nor NaN moments of nothing the cells outside.
    centred = (x - mean).masked_fill(~mask, 0.0)
    scale = torch.where(variance > rounding(size, x.dtype).square(), torch.rsqrt(variance + _EPSILON**2), 0.0)
    return (centred * scale).masked_fill(~mask, 0.0)
