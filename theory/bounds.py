"""What a step from one policy to another is worth on a tabular MDP, exactly, and the bound on how far one can be off.

KL is in nats; the bound on the return holds for KL(new || old) over states of the old policy.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from theory import mdp
from theory.mdp import Mdp


def surrogate(
    world: Mdp, policy: Float[Tensor, "S A"], new_policy: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """L = sum_s visits_pi(s) sum_a pi'(a | s) A_pi(s, a): the change of J if states came as under the old policy
    (Schulman et al., 2015, eq. 3, less J). In the unit of the return.
    """
    return _weighted_advantages(world, policy, new_policy, mdp.visits(world, policy, gamma=gamma), gamma)


def performance_difference(
    world: Mdp, policy: Float[Tensor, "S A"], new_policy: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """J' - J = sum_s visits_pi'(s) sum_a pi'(a | s) A_pi(s, a) (Kakade and Langford, 2002, lemma 6.1).

    With gamma below 1 that is 1 / (1 - gamma) times the mean advantage of the old policy under the new one.
    """
    return _weighted_advantages(world, policy, new_policy, mdp.visits(world, new_policy, gamma=gamma), gamma)


def kl_bound(
    world: Mdp, policy: Float[Tensor, "S A"], new_policy: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """How far J' - J can be from the surrogate L, exactly computed (Achiam et al., 2017, corollary 3;
    https://arxiv.org/abs/1705.10528).

    |J' - J - L| <= sqrt(2) gamma eps / (1 - gamma)^2 sqrt(E_{s ~ d_pi} KL(pi' || pi)(s)),
    eps = max over all states of |sum_a pi'(a | s) A_pi(s, a)|.  Both policies must give every action some probability.
    """
    gains = (new_policy * mdp.advantages(world, policy, gamma=gamma)).sum(-1)
    divergences = (new_policy * (new_policy.log() - policy.log())).sum(-1)
    mean = (mdp.occupancy(world, policy, gamma=gamma) * divergences).sum().clamp(min=0.0)
    return surrogate_error(gains.abs().amax(), mean, weight=gamma / (1.0 - gamma) ** 2)


def surrogate_error(
    eps: Float[Tensor, ""], kl: Float[Tensor, ""], *, weight: float | Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """sqrt(2) weight eps sqrt(KL(new || old)), the bound of `kl_bound` and of its form for finite horizons.

    Args:
        weight: gamma / (1 - gamma)^2, or `horizon_weight`.
    """
    return math.sqrt(2.0) * weight * eps * torch.sqrt(kl)


def horizon_weight(*, gamma: float, horizon: int | float) -> float:
    """W = sum_{t < horizon} t gamma^t, which is gamma / (1 - gamma)^2 for an infinite one.

    Why: the states' distributions at t differ by at most 2 sum_{k < t} E_{d_k} TV in the 1-norm. Weighted with
    gamma^t and eps, summed over t, and with Pinsker's and Jensen's inequalities, |J' - J - L| <= sqrt(2) W eps
    sqrt(KL), KL averaged over steps k with the weights sum_{k < t < horizon} gamma^t / W.
    """
    if math.isinf(horizon):
        return gamma / (1.0 - gamma) ** 2
    return math.fsum(t * gamma**t for t in range(int(horizon)))


def _weighted_advantages(
    world: Mdp,
    policy: Float[Tensor, "S A"],
    new_policy: Float[Tensor, "S A"],
    weights: Float[Tensor, " S"],
    gamma: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    return (weights.unsqueeze(-1) * new_policy * mdp.advantages(world, policy, gamma=gamma)).sum()
