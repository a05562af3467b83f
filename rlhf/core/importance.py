"""Importance weights: what makes actions of one policy, the behaviour, tell of another.

All take log-ratios log pi(a_t | s_t) - log b(a_t | s_t), nats, 0 outside the mask; a row may hold several episodes.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def surrogate_loss(
    logprobs: Float[Tensor, "*shape"], old_logprobs: Float[Tensor, "*shape"], advantages: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """-ratio * A, whose gradient at the old policy is the policy gradient's (Schulman et al., 2017, eq. 6;
    https://arxiv.org/abs/1707.06347).

    ratio = exp(logprobs - old_logprobs).
    """
    return -torch.exp(logprobs - old_logprobs) * advantages


def action_ratios(log_ratios: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """pi(a_t | s_t) / b(a_t | s_t): corrects the action alone. How often the behaviour comes to s_t, and what it earns
    afterwards, stay its own, so the gradient is biased (Degris et al., 2012, section 2; https://arxiv.org/abs/1205.4839).
    """
    return torch.exp(log_ratios)


def trajectory_ratios(log_ratios: Float[Tensor, "B T"], dones: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The product of all ratios of an episode, at each of its steps (Sutton and Barto, 2018, eq. 5.3;
    http://incompleteideas.net/book). Unbiased; its variance grows exponentially with the length.
    """
    return torch.exp(episode_sums(log_ratios, dones))


def decision_ratios(log_ratios: Float[Tensor, "B T"], dones: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The product of an episode's ratios up to and including this step's (Sutton and Barto, 2018, section 5.9): what is
    needed beside `corrected_discounts`, since what comes later does not change what was done until now.
    """
    first = torch.cat([torch.ones_like(dones[:, :1]), dones[:, :-1]], dim=1)
    total = torch.cumsum(log_ratios, dim=1)
    earlier_episodes = episode_sums(torch.where(first, total - log_ratios, 0.0), dones)
    return torch.exp(total - earlier_episodes)


def corrected_discounts(
    log_ratios: Float[Tensor, "B T"], dones: Bool[Tensor, "B T"], *, gamma: float
) -> Float[Tensor, "B T"]:
    """Discounts for which the behaviour's returns to go become those of the policy, in expectation (Sutton and Barto,
    2018, section 5.9): G_t = r_t + gamma * ratio_{t+1} * G_{t+1}.

    gamma alone at an episode's end and in the last column: the value of the state that a cut step led to is the
    policy's own.
    """
    following = torch.cat([log_ratios[:, 1:], torch.zeros_like(log_ratios[:, :1])], dim=1)
    return gamma * torch.exp(following.masked_fill(dones, 0.0))


def effective_sample_size(weights: Float[Tensor, ""], squares: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """(sum w)^2 / sum w^2: as many equally weighted samples tell as much (Owen, 2013, section 9.3;
    https://artowen.su.domains/mc). 0 of none.

    Args:
        weights: Their sum.
        squares: The sum of their squares.
    """
    return torch.where(squares > 0.0, weights.square() / squares, 0.0)


def episode_sums(x: Float[Tensor, "B T"], dones: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """The sum over an episode, at each of its steps; what follows a row's last end is an episode too."""
    ended_before = torch.cumsum(dones, dim=1) - dones.long()
    return torch.zeros_like(x).scatter_add(1, ended_before, x).gather(1, ended_before)
