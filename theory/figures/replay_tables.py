"""The rungs of the replay ladder (lecture 004) on tables: the loss, and its expected gradient by enumeration."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad, vmap

from rlhf.algorithms.discrete_sac import Output
from rlhf.algorithms.replay_actor_critic import ReplayActorCritic
from rlhf.rollout import Batch
from theory import mdp
from theory.figures.tabular import GAMMA, run_means
from theory.mdp import Mdp

V, Q, BOTH = "V, buffer actions", "Q with a' ~ pi, buffer actions", "Q with a' ~ pi, {} a_i ~ pi"
DRAWN = (1, 4, 16)
# The critic is of states or of actions; how many actions the policy draws for its gradient.
LADDER: dict[str, tuple[bool, int]] = {V: (False, 0), Q: (True, 0)} | {BOTH.format(k): (True, k) for k in DRAWN}


def loss(rung: str, logits: Tensor, critic: Tensor, batch: Batch) -> Tensor:
    """The project's loss on tables: logits `(R, S, A)`, critic `(R, S, A)` or `(R, S, 1)` for one of states."""
    at, to = ((batch.inputs["runs"], batch.inputs[name]) for name in ("states", "next_states"))
    values = critic.expand_as(logits)
    output = Output(
        logits=logits[at],
        values=values[at].unsqueeze(-2),
        next_logits=logits[to].detach(),
        next_values=values[to].unsqueeze(-2).detach(),
        log_temperature=torch.zeros_like(batch.weights),
    )
    method = ReplayActorCritic(gamma=GAMMA, sampled_actions=LADDER[rung][1], entropy_coef=0.0)
    return run_means(method.loss(output, batch, {})[0], batch, len(logits))


def transitions(world: Mdp, cells: dict[str, Tensor], draws: Tensor, weights: Tensor) -> Batch:
    """Rows of one step from `(N,)` runs, states, actions and next_states, `(N, 1 + K)` draws, and weights."""
    inputs = {name: x.unsqueeze(1) for name, x in cells.items()} | {"uniforms": draws.unsqueeze(1)}
    rewards = world.rewards[cells["runs"], cells["states"], cells["actions"]].unsqueeze(1)
    nothing, ids, shares = torch.zeros_like(rewards), torch.arange(len(rewards)), weights.unsqueeze(1)
    mask, never = torch.ones_like(rewards, dtype=torch.bool), torch.zeros_like(rewards, dtype=torch.bool)
    known = (nothing, nothing, nothing, None, nothing, nothing, mask, shares, shares, ids, torch.ones_like(ids))
    return Batch(inputs, *known, rewards=rewards, terminals=never)


def expected_gradients(rung: str, world: Mdp, acted: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of the policy and of the critic, over every (s, a, s', a', a_i) with its probability, by the critic that the
    rung's data teach, whose own gradient is therefore 0.
    """
    names = ("runs", "states", "actions", "next_states", "next_actions", "drawn")
    num_runs, num_states, num_actions = logits.shape
    sizes = (num_runs, num_states, num_actions, num_states, num_actions, num_actions)
    rows = dict(zip(names, torch.cartesian_prod(*(torch.arange(n) for n in sizes)).unbind(1), strict=True))
    run, state, action, following = (rows[name] for name in names[:4])
    policy, buffer = logits.softmax(-1), acted.softmax(-1)
    visits = vmap(lambda w, p: mdp.occupancy(w, p, gamma=GAMMA))(world, buffer)
    weights = visits[run, state] * buffer[run, state, action] * world.transitions[run, state, action, following]
    weights = weights * policy[run, following, rows["next_actions"]] * policy[run, state, rows["drawn"]]
    # The middle of an action's share of [0, 1) draws it.
    middles = policy.cumsum(-1) - 0.5 * policy
    draws = torch.stack([middles[run, following, rows["next_actions"]], middles[run, state, rows["drawn"]]], dim=1)
    if LADDER[rung][0]:
        critic = vmap(lambda w, p: mdp.action_values(w, p, gamma=GAMMA))(world, policy)
    else:
        critic = vmap(lambda w, p: mdp.state_values(w, p, gamma=GAMMA))(world, buffer).unsqueeze(-1)
    batch = transitions(world, {name: rows[name] for name in names[:4]}, draws, weights)
    of_policy, of_critic = grad(lambda x, c: loss(rung, x, c, batch).sum(), argnums=(0, 1))(logits, critic)
    return -of_policy, -of_critic


def accepted_gradient(world: Mdp, acted: Tensor, logits: Tensor) -> Tensor:
    """sum_s d_buffer(s) sum_a grad pi(a | s) Q_pi(s, a): the policy gradient but for the states, which are accepted."""
    visits = vmap(lambda w, p: mdp.occupancy(w, p, gamma=GAMMA))(world, acted.softmax(-1))
    values = vmap(lambda w, p: mdp.action_values(w, p, gamma=GAMMA))(world, logits.softmax(-1))
    return grad(lambda x: (visits.unsqueeze(-1) * x.softmax(-1) * values).sum())(logits)
