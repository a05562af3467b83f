"""Exact answers on Markov decision processes that are small enough to write down.

A policy is its table of probabilities, `(S, A)`; every function but `optimal_values` may be differentiated in it, and
`torch.func.vmap` maps any of them over a stack of MDPs or of policies. `gamma` is the discount per step in [0, 1]; 1
needs an MDP in which every episode ends.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf.core.random import uniforms


class Mdp(NamedTuple):
    """A tabular MDP.

    Args:
        transitions: P(s' | s, a). A row may add up to less than 1: with the rest of the probability the episode ends.
        rewards: Expected reward of each action, r(s, a).
        start: P(s_0).
    """

    transitions: Float[Tensor, "S A S"]
    rewards: Float[Tensor, "S A"]
    start: Float[Tensor, " S"]


def state_values(mdp: Mdp, policy: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]) -> Float[Tensor, " S"]:
    """V of the policy, solved from Bellman's equation V = r_pi + gamma P_pi V (Sutton and Barto, 2018, eq. 3.14;
    http://incompleteideas.net/book).
    """
    rewards = (policy * mdp.rewards).sum(-1)
    return torch.linalg.solve(_identity_less(mdp, policy, gamma), rewards.unsqueeze(-1)).squeeze(-1)


def action_values(mdp: Mdp, policy: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]) -> Float[Tensor, "S A"]:
    """Q(s, a) = r(s, a) + gamma sum_s' P(s' | s, a) V(s') of the policy (Sutton and Barto, 2018, eq. 4.6)."""
    return backup(mdp, state_values(mdp, policy, gamma=gamma), gamma=gamma)


def advantages(mdp: Mdp, policy: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]) -> Float[Tensor, "S A"]:
    """A(s, a) = Q(s, a) - V(s) of the policy; its mean under the policy is 0 in every state."""
    values = state_values(mdp, policy, gamma=gamma)
    return backup(mdp, values, gamma=gamma) - values.unsqueeze(-1)


def backup(mdp: Mdp, values: Float[Tensor, " S"], *, gamma: float | Float[Tensor, ""]) -> Float[Tensor, "S A"]:
    """r(s, a) + gamma sum_s' P(s' | s, a) v(s'): one look ahead from any values."""
    return mdp.rewards + gamma * mdp.transitions @ values


def visits(mdp: Mdp, policy: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]) -> Float[Tensor, " S"]:
    """Discounted expected visits of each state, sum_t gamma^t P(s_t = s): rho_pi of Schulman et al., 2015, section 2
    (https://arxiv.org/abs/1502.05477); at gamma 1 how often an episode comes by.
    """
    return torch.linalg.solve(_identity_less(mdp, policy, gamma).mT, mdp.start.unsqueeze(-1)).squeeze(-1)


def occupancy(mdp: Mdp, policy: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]) -> Float[Tensor, " S"]:
    """d_pi(s) = (1 - gamma) sum_t gamma^t P(s_t = s), a distribution over states if no episode ends (Achiam et al.,
    2017, section 3; https://arxiv.org/abs/1705.10528). gamma must be below 1.
    """
    return (1.0 - gamma) * visits(mdp, policy, gamma=gamma)


def expected_return(mdp: Mdp, policy: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]) -> Float[Tensor, ""]:
    """J = E[sum_t gamma^t r_t] from the start states, not normalised."""
    return (mdp.start * state_values(mdp, policy, gamma=gamma)).sum()


def policy_gradient(
    mdp: Mdp, logits: Float[Tensor, "S A"], *, gamma: float | Float[Tensor, ""]
) -> Float[Tensor, "S A"]:
    """The exact gradient of J in the logits of a softmax policy, by differentiating J itself."""
    return torch.func.grad(lambda x: expected_return(mdp, torch.softmax(x, dim=-1), gamma=gamma))(logits)


def step_marginals(mdp: Mdp, policy: Float[Tensor, "S A"], *, num_steps: int) -> Float[Tensor, "T S"]:
    """P(s_t = s and the episode has not ended) at t = 0, ..., num_steps - 1."""
    follow = _state_transitions(mdp, policy)
    marginals = [mdp.start]
    for _ in range(num_steps - 1):
        marginals.append(marginals[-1] @ follow)
    return torch.stack(marginals)


def marginal_ratios(
    log_ratios: Float[Tensor, "B T"],
    marginals: Float[Tensor, "B T"],
    behaviour_marginals: Float[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """P_pi(s_t) pi(a_t | s_t) / (P_b(s_t) b(a_t | s_t)): the ratio of state-action marginals at step t (Liu et al.,
    2018, section 3; https://arxiv.org/abs/1810.12429), whose variance does not grow with t. Unbiased with returns by
    `importance.corrected_discounts`; with the behaviour's own returns it weighs Q of the behaviour.

    Args:
        marginals: Probability that the policy is in s_t at step t, as by `step_marginals`.
        behaviour_marginals: The same for the behaviour; positive where the mask is True.
    """
    reached = behaviour_marginals > 0.0
    return torch.where(reached, marginals / torch.where(reached, behaviour_marginals, 1.0), 0.0) * torch.exp(log_ratios)


def optimal_values(mdp: Mdp, *, gamma: float | Float[Tensor, ""], num_iterations: int) -> Float[Tensor, " S"]:
    """V of the best policy by value iteration from 0 (Sutton and Barto, 2018, eq. 4.10).

    Args:
        num_iterations: What is left of the error is at most gamma^num_iterations max|V|; exact after as many as the
            longest episode has steps.
    """
    values = torch.zeros_like(mdp.start)
    for _ in range(num_iterations):
        values = backup(mdp, values, gamma=gamma).amax(-1)
    return values


def random_mdps(num_mdps: int, *, num_states: int, num_actions: int, seed: int) -> Mdp:
    """A stack of MDPs that never end, float64: P and start uniform on the simplex, rewards uniform in [-1, 1]."""
    ids = torch.arange(num_mdps)
    pairs = num_states * num_actions
    moves = uniforms(seed, "mdp transitions", 0, ids, pairs * num_states).view(-1, num_states, num_actions, num_states)
    rewards = uniforms(seed, "mdp rewards", 0, ids, pairs).view(-1, num_states, num_actions)
    starts = uniforms(seed, "mdp starts", 0, ids, num_states)
    return Mdp(_on_simplex(moves), 2.0 * rewards - 1.0, _on_simplex(starts))


def _on_simplex(x: Float[Tensor, "... S"]) -> Float[Tensor, "... S"]:
    # Exponential variables over their sum are uniform on the simplex.
    exponentials = -torch.log1p(-x)
    return exponentials / exponentials.sum(-1, keepdim=True)


def _state_transitions(mdp: Mdp, policy: Float[Tensor, "S A"]) -> Float[Tensor, "S S"]:
    return torch.einsum("sa,sat->st", policy, mdp.transitions)


def _identity_less(mdp: Mdp, policy: Float[Tensor, "S A"], gamma: float | Float[Tensor, ""]) -> Float[Tensor, "S S"]:
    """I - gamma P_pi."""
    follow = _state_transitions(mdp, policy)
    return torch.eye(follow.shape[-1], dtype=follow.dtype, device=follow.device) - gamma * follow
