"""Statistics over the cells where `mask` is True, whatever the others hold, NaN included; also in the gradient."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_EPSILON = 1e-8


def masked_sum(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Sum over the mask; 0 if it is empty."""
    return x.masked_fill(~mask, 0.0).sum()


def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Mean over the mask; NaN if it is empty."""
    return masked_sum(x, mask) / mask.sum()


def masked_variance(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Population variance over the mask, mean((x - mean(x))^2): divided by n, not n - 1.

    Equal values give exactly 0, an empty mask NaN.
    """
    shifted = _shifted(x, mask)
    # Filled before it is squared: the gradient of a square at NaN is NaN, even where nothing flows back.
    return (shifted - masked_mean(shifted, mask)).masked_fill(~mask, 0.0).square().sum() / mask.sum()


def whiten(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Mean 0 and variance 1 over the mask (population variance), 0 outside it. Equal values become exactly 0."""
    shifted = _shifted(x, mask)
    return standardise(shifted, mask, mean=masked_mean(shifted, mask), variance=masked_variance(shifted, mask))


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


def explained_variance(
    values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 no better than a constant; at most 1.

    0 if the returns do not vary, since then nothing is to be explained.
    """
    spread = masked_variance(returns, mask)
    unexplained = masked_variance(returns - values, mask) / spread
    return torch.where(spread > 0.0, 1.0 - unexplained, torch.zeros_like(spread))


def _shifted(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x less its largest value: equal values become exactly 0, where their mean would keep a rounding residue."""
    return x - x.detach().masked_fill(~mask, -torch.inf).amax()
