"""Gaussians squashed into (-1, 1) by a tanh: the density of the action, from the draw before the tanh."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def squashed_gaussian_logprobs(
    draws: Float[Tensor, "*shape A"], mean: Float[Tensor, "*shape A"], log_std: Float[Tensor, "*shape A"]
) -> Float[Tensor, "*shape"]:
    """log-density of a = tanh(u), u ~ N(mean, std) (Haarnoja et al., 2018, eq. 21; https://arxiv.org/abs/1801.01290).

    sum_i log N(u_i) - log(1 - tanh(u_i)^2), whose second term is 2 (log 2 - u - softplus(-2 u)), finite for every u.

    Args:
        draws: u, before the tanh.
    """
    z = (draws - mean) * torch.exp(-log_std)
    gaussian = -(0.5 * z.square() + log_std + 0.5 * math.log(2.0 * math.pi))
    stretch = 2.0 * (math.log(2.0) - draws - torch.nn.functional.softplus(-2.0 * draws))
    return (gaussian - stretch).sum(dim=-1)
