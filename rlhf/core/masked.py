"""Whitening over the cells where `mask` is True, whatever the others hold, NaN included; also in the gradient."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_EPSILON = 1e-8


def whiten(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Mean 0 and variance 1 over the mask (population variance), 0 outside it. Equal values become exactly 0."""
    # Less their largest value equal values are exactly 0, where their mean would keep a rounding residue.
    shifted = (x - x.detach().masked_fill(~mask, -torch.inf).amax()).masked_fill(~mask, 0.0)
    count = mask.sum()
    mean = shifted.sum() / count
    # Filled before it is squared: the gradient of a square at NaN is NaN, even where nothing flows back.
    variance = (shifted - mean).masked_fill(~mask, 0.0).square().sum() / count
    return standardise(shifted, mask, mean=mean, variance=variance)


def standardise(
    x: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    mean: Float[Tensor, ""],
    variance: Float[Tensor, ""],
) -> Float[Tensor, "*shape"]:
    """(x - mean) / sqrt(variance + 1e-16) in the mask, 0 outside it: whitening by given moments, as those of all ranks.

    1e-16 keeps the standard deviation above 1e-8, and the gradient finite where the variance is 0.
    """
    # Twice: NaN outside must not reach the gradient of the variance, nor NaN moments of nothing the cells outside.
    centred = (x - mean).masked_fill(~mask, 0.0)
    return (centred * torch.rsqrt(variance + _EPSILON**2)).masked_fill(~mask, 0.0)
