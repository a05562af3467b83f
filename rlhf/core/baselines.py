"""Baselines: what is taken off an action's return without knowing the action.

All of them are weighted means of returns, sum(weights * returns) / sum(weights), over episodes or over the actions of
one time step. Sums are arguments, so that they can be those of all ranks. A baseline that holds the action's own return
scales the expected gradient down; one made of the other episodes leaves it as it is.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vmap


def mean_return(total: Float[Tensor, "*shape"], weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Mean over a batch, itself included; 0 where nothing was weighed.

    With one constant over N episodes the expected gradient is (N - 1) / N of the true one.
    """
    return torch.where(weight > 0.0, total / torch.where(weight > 0.0, weight, 1.0), 0.0)


def mean_return_of_others(
    sums: Float[Tensor, "B K"],
    weights: Float[Tensor, "B K"],
    total: Float[Tensor, " K"],
    weight: Float[Tensor, " K"],
) -> Float[Tensor, "B K"]:
    """For each row the mean over all others, which leaves the gradient unbiased (Kool et al., 2019;
    https://openreview.net/forum?id=r1lgTGL5DE); 0 for a row without others.

    Args:
        sums: Each row's part of `total`.
        weights: Each row's part of `weight`.
    """
    return mean_return(total - sums, weight - weights)


def squared_gradient_norms(
    logprob: Callable[[dict[str, Tensor], dict[str, Tensor]], Float[Tensor, ""]],
    parameters: dict[str, Tensor],
    inputs: dict[str, Tensor],
    *,
    chunk_size: int,
) -> Float[Tensor, " N"]:
    """|grad log pi(a | s)|^2 of each of N actions: the weights of the constant baseline of least variance.

    b* = E[|grad log pi|^2 G] / E[|grad log pi|^2]: the scalar that minimises E[|grad log pi (G - b)|^2] (Greensmith et
    al., 2004, section 4; https://jmlr.org/papers/v5/greensmith04a.html).

    Args:
        logprob: Log-probability of one action, from parameters and the inputs without their leading axis.
        inputs: Leading axis N.
        chunk_size: Gradients held at once.
    """

    def squared_norm(row: dict[str, Tensor]) -> Tensor:
        gradients = grad(logprob)(parameters, row)
        return torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum()

    return vmap(squared_norm, chunk_size=chunk_size)(inputs)
