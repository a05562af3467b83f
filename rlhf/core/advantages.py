"""Returns and advantages along the T axis of `(B, T)` steps.

One convention throughout: `next_values` is the value of the state each step leads to, 0 if it is terminal, the critic's
estimate if the episode was merely cut off there. `dones` is True at an episode's last step, terminated or cut, so that
nothing flows back from the next episode or from padding; the last column counts as done. `gamma` is the discount per
step in [0, 1], one for all or one for each step.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    dones: Bool[Tensor, "B T"],
    *,
    gamma: float | Float[Tensor, "B T"],
    gae_lambda: float | Float[Tensor, "B _"],
) -> Float[Tensor, "B T"]:
    """Generalized advantage estimates (Schulman et al., 2016, eq. 16; https://arxiv.org/abs/1506.02438).

    A_t = delta_t + gamma * lambda * (1 - done_t) * A_{t+1},  delta_t = r_t + gamma * v(s_{t+1}) - v(s_t).

    Args:
        gae_lambda: In [0, 1], one for all or one for each row; 0 is the one-step TD error, 1 the Monte Carlo return
            minus the value.
    """
    deltas = rewards + gamma * next_values - values
    return discounted_sums(deltas, dones, gamma * gae_lambda)


def length_adaptive_lambda(mask: Bool[Tensor, "B T"], *, alpha: float) -> Float[Tensor, "B 1"]:
    """max(0, 1 - 1 / (alpha * length)) for each row, so that its TD errors add up to as much whatever its length (VAPO;
    Yue et al., 2025, section 4.2; https://arxiv.org/abs/2504.05118).

    Args:
        alpha: Above 0; 0.05 in the paper.
    """
    lengths = mask.sum(1, keepdim=True).clamp(min=1).double()
    return (1.0 - 1.0 / (alpha * lengths)).clamp(min=0.0)


def lambda_returns(
    rewards: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    dones: Bool[Tensor, "B T"],
    *,
    gamma: float | Float[Tensor, "B T"],
    lambda_: float,
) -> Float[Tensor, "B T"]:
    """Lambda returns, the recursion of Sutton and Barto, 2018, eq. 12.20 (http://incompleteideas.net/book).

    G_t = r_t + gamma * ((1 - lambda) * v(s_{t+1}) + lambda * G_{t+1});  r_t + gamma * v(s_{t+1}) at an episode's end.

    Args:
        lambda_: In [0, 1]; 0 is TD(0), 1 is Monte Carlo.
    """
    last = torch.ones_like(dones[:, -1:])
    ends = torch.cat([dones[:, :-1], last], dim=1)
    bootstraps = torch.where(ends, next_values, (1.0 - lambda_) * next_values)
    return discounted_sums(rewards + gamma * bootstraps, ends, gamma * lambda_)


def td0_returns(
    rewards: Float[Tensor, "B T"], next_values: Float[Tensor, "B T"], *, gamma: float | Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """One-step returns r_t + gamma * v(s_{t+1}) (Sutton and Barto, 2018, eq. 6.2; http://incompleteideas.net/book)."""
    return rewards + gamma * next_values


def monte_carlo_returns(
    rewards: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    dones: Bool[Tensor, "B T"],
    *,
    gamma: float | Float[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Discounted sums of rewards to the episode's end (Sutton and Barto, 2018, eq. 3.9 and 3.11).

    G_t = r_t + gamma * G_{t+1};  r_t + gamma * v(s_{t+1}) at an episode's end, so a cut episode is bootstrapped.
    """
    return lambda_returns(rewards, next_values, dones, gamma=gamma, lambda_=1.0)


def n_step_returns(
    rewards: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    dones: Bool[Tensor, "B T"],
    *,
    gamma: float | Float[Tensor, "B T"],
    num_steps: int,
) -> Float[Tensor, "B T"]:
    """Returns of `num_steps` rewards and the value after them (Sutton and Barto, 2018, eq. 7.1).

    G_t = r_t + gamma * r_{t+1} + ... + gamma^{n-1} * r_{t+n-1} + gamma^n * v(s_{t+n}), with fewer steps where the
    episode ends before.

    Args:
        num_steps: At least 1, which is TD(0).
    """
    returns = rewards + gamma * next_values
    for _ in range(min(num_steps, rewards.shape[1]) - 1):
        following = torch.cat([returns[:, 1:], next_values[:, -1:]], dim=1)
        returns = rewards + gamma * torch.where(dones, next_values, following)
    return returns


def discounted_sums(
    terms: Float[Tensor, "B T"], ends: Bool[Tensor, "B T"], discounts: float | Float[Tensor, "B _"]
) -> Float[Tensor, "B T"]:
    """S_t = terms_t + discount_t * S_{t+1}, and terms_t alone at ends."""
    columns = zip(terms.unbind(1), ends.unbind(1), (torch.ones_like(terms) * discounts).unbind(1), strict=True)
    total = torch.zeros_like(terms[:, 0])
    totals = []
    for term, end, discount in reversed(list(columns)):
        # Selected, not multiplied by 0: beyond an end there may be padding, and 0 x NaN is NaN.
        total = torch.where(end, term, torch.addcmul(term, discount, total))
        totals.append(total)
    return torch.stack(totals[::-1], dim=1)
