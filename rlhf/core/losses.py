"""Losses per action, to be minimised; the caller averages over actions. Nothing here stops gradients."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def policy_gradient_loss(
    logprobs: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """-log pi(a_t | s_t) * A_t, whose gradient is the policy gradient (Schulman et al., 2017, eq. 2;
    https://arxiv.org/abs/1707.06347).
    """
    return -logprobs * advantages


def clipped_surrogate_loss(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    *,
    clip: float | Float[Tensor, ""],
    clip_high: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, "*shape"]:
    """PPO's clipped surrogate, negated (Schulman et al., 2017, eq. 7; https://arxiv.org/abs/1707.06347).

    -min(ratio * A, clamp(ratio, 1 - clip, 1 + clip_high) * A),  ratio = exp(logprobs - old_logprobs).

    Args:
        old_logprobs: Of the policy at the start of the update, nats.
        clip: At least 0; 0.2 is usual.
        clip_high: The same upwards (Yu et al., 2025, eq. 10; https://arxiv.org/abs/2503.14476); None is clip.
    """
    ratios = torch.exp(logprobs - old_logprobs)
    high = clip if clip_high is None else clip_high
    clipped = ratios.clamp(1.0 - clip, 1.0 + high)  # type: ignore[arg-type]  # torch's stubs miss float | Tensor
    costs = -advantages
    return torch.maximum(costs * ratios, costs * clipped)


def dual_clipped(
    surrogate_loss: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"], *, most: float
) -> Float[Tensor, "*shape"]:
    """A surrogate's loss, where the advantage is negative at most `most` times its size: a ratio that has grown large
    pulls no harder (Ye et al., 2020, eq. 5; https://arxiv.org/abs/1912.09729).

    Args:
        most: Above 1; 3 in the paper.
    """
    return torch.where(advantages < 0, torch.minimum(surrogate_loss, -most * advantages), surrogate_loss)


def value_loss(values: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half the squared error, 0.5 * (V - R)^2: the L^VF of Schulman et al., 2017, eq. 9, with a half of our own."""
    return 0.5 * (values - returns).square()


def clipped_value_loss(
    values: Float[Tensor, "*shape"],
    old_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    *,
    clip: float | Float[Tensor, ""],
) -> Float[Tensor, "*shape"]:
    """Half the larger squared error of the value and the clipped value (Engstrom et al., 2020, section 3;
    https://arxiv.org/abs/2005.12729).

    0.5 * max((V - R)^2, (V_old + clamp(V - V_old, -clip, clip) - R)^2).

    Args:
        clip: In the unit of the returns, at least 0.
    """
    changes = (values - old_values).clamp(-clip, clip)  # type: ignore[arg-type]  # torch's stubs miss float | Tensor
    clipped = old_values + changes
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


def negative_log_likelihood(logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-log pi(a_t | s_t) of a demonstrator's actions, nats (Pomerleau, 1991, https://doi.org/10.1162/neco.1991.3.1.88)."""
    return -logprobs


def categorical_entropy(logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """Entropy of softmax(logits), -sum_a p_a log p_a, nats in [0, log V] (Shannon, 1948, section 6, theorem 2).

    An action with logit -inf is one that cannot be taken: 0 log 0 is 0, in the gradient too.
    """
    return entropy_of_logprobs(torch.log_softmax(logits, dim=-1))


def entropy_of_logprobs(logprobs: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """The same from log-probabilities, which are there already where an action was scored."""
    return -(logprobs.exp() * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)


def gaussian_entropy(log_std: Float[Tensor, "... A"]) -> Float[Tensor, "..."]:
    """Differential entropy of a diagonal Gaussian, sum_a log_std_a + 0.5 log(2 pi e), nats, of any sign (Cover and
    Thomas, 2006, eq. 8.9).
    """
    return log_std.sum(dim=-1) + log_std.shape[-1] * 0.5 * math.log(2.0 * math.pi * math.e)
