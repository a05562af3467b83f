"""Off-policy value targets and policy-gradient advantages of V-trace; conventions of `advantages.py`."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf.core.advantages import discounted_sums


def vtrace(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    dones: Bool[Tensor, "B T"],
    ratios: Float[Tensor, "B T"],
    *,
    gamma: float | Float[Tensor, "B T"],
    lambda_: float,
    rho_clip: float,
    c_clip: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """V-trace targets and policy-gradient advantages (Espeholt et al., 2018, eq. 1 and section 4.2;
    https://arxiv.org/abs/1802.01561).

    v_t = V(s_t) + delta_t + gamma * c_t * (v_{t+1} - V(s_{t+1})),  delta_t = rho_t (r_t + gamma V(s_{t+1}) - V(s_t)),
    v_t = V(s_t) + delta_t at an episode's end;  A_t = rho_t (r_t + gamma (lambda v_{t+1} + (1 - lambda) V(s_{t+1}))
    - V(s_t)),  rho_t = min(rho_clip, ratio_t),  c_t = lambda * min(c_clip, ratio_t).

    The paper gives A_t for lambda = 1. Below, what a step leads to is mixed as in its target, as in rlax: with equal
    clips A_t = v_t - V(s_t), which at ratio 1 is GAE.

    Args:
        values: Of the learner, as are `next_values`.
        ratios: pi(a_t | s_t) of the learner over that of the actor.
        lambda_: In [0, 1]; the paper's remark 2, 1 in its experiments. At ratio 1 targets are the lambda returns.
        rho_clip: Which policy the values become those of: between the actor's at 0 and the learner's at infinity.
        c_clip: How far corrections reach; it changes the speed of convergence and not where to.

    Returns:
        Targets and advantages.
    """
    rho, traces = ratios.clamp(max=rho_clip), lambda_ * ratios.clamp(max=c_clip)
    deltas = rho * (rewards + gamma * next_values - values)
    targets = values + discounted_sums(deltas, dones, gamma * traces)
    following = torch.cat([targets[:, 1:], next_values[:, -1:]], dim=1)
    # An end's next column belongs to another episode, or is padding.
    following = torch.where(dones, next_values, lambda_ * following + (1.0 - lambda_) * next_values)
    return targets, rho * (rewards + gamma * following - values)
