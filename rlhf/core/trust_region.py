"""Steps of bounded KL, in nats: the constraint of TRPO is KL(old || new) over states of the old policy."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Float[Tensor, " N"]], Float[Tensor, " N"]],
    b: Float[Tensor, " N"],
    *,
    num_iterations: int,
    tolerance: float,
) -> Float[Tensor, " N"]:
    """Solves H x = b for a positive definite H, known by its products alone (Hestenes and Stiefel, 1952, eq. 3:1;
    https://doi.org/10.6028/jres.049.044).

    From x = 0; each iteration is one product. x no longer moves once |b - H x| <= tolerance |b|, or where rounding
    has left no positive curvature.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    squared = residual.dot(residual)
    enough = tolerance**2 * squared
    for _ in range(num_iterations):
        curved = product(direction)
        curvature = direction.dot(curved)
        going = (squared > enough) & (curvature > 0.0)
        length = torch.where(going, squared / torch.where(going, curvature, 1.0), 0.0)
        x = x + length * direction
        residual = residual - length * curved
        following = residual.dot(residual)
        mix = torch.where(going, following / torch.where(going, squared, 1.0), 0.0)
        direction = torch.where(going, residual + mix * direction, direction)
        squared = following
    return x


def step_length(curvature: Float[Tensor, ""], *, max_kl: float) -> Float[Tensor, ""]:
    """sqrt(2 max_kl / s'Hs): the multiple of s at which the quadratic 1/2 x'Hx is max_kl (Schulman et al., 2015,
    appendix C; https://arxiv.org/abs/1502.05477). 0 for a direction without curvature, as that of no gradient.

    Args:
        curvature: s'Hs.
    """
    curved = curvature > 0.0
    return torch.where(curved, torch.sqrt(2.0 * max_kl / torch.where(curved, curvature, 1.0)), 0.0)


def acceptable(improvement: Float[Tensor, ""], kl: Float[Tensor, ""], *, max_kl: float) -> Bool[Tensor, ""]:
    """Whether a line search may stop: the surrogate has improved and KL(old || new) is at most max_kl; not if either
    is NaN (Schulman et al., 2015, appendix C).
    """
    return (improvement > 0.0) & (kl <= max_kl)
