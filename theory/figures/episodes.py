"""What figures share: episodes of many tabular policies side by side, scored, played and learned from.

Tables have a leading axis R of runs, each with its MDP, its policy and its samples. In the seam's `(B, T)` tensors the
rows of all runs lie end to end, as many for each, and the inputs say which run a cell belongs to; estimates work row by
row and losses cell by cell, so the package's own serve all runs at once.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.func import vmap

from rlhf.algorithms.base import Method
from rlhf.core.losses import categorical_entropy
from rlhf.core.random import categorical, uniforms
from rlhf.rollout import PolicyOutput, Rollout
from theory.mdp import Mdp, step_marginals


def score(logits: Tensor, inputs: dict[str, Tensor], values: Tensor | None = None) -> PolicyOutput:
    """The seam's forward of a table of logits `(R, S, A)` and a critic `(R, S)`, if there is one."""
    cells = inputs["runs"] * logits.shape[1] + inputs["states"]
    # Looked up in tables, which are smaller than the batch, by the fastest of lookups to differentiate.
    chosen = _looked_up(logits.log_softmax(-1), cells * logits.shape[2] + inputs["actions"])
    known = 0.0 * chosen if values is None else _looked_up(values, cells)
    return PolicyOutput(chosen, known, _looked_up(categorical_entropy(logits), cells))


def play(
    world: Mdp,
    logits: Tensor,
    *,
    num_episodes: int,
    num_steps: int,
    seed: int,
    update: int = 0,
    observed: Tensor | None = None,
    purpose: str = "figure episodes",
) -> Rollout:
    """Episodes of every run's policy, cut after `num_steps` at the latest; without a critic, all values are 0.

    Args:
        world: One for each run, or one for all; each table by itself, so that starts can differ in one world.
        observed: `(S,)` what one sees of each state, which then stands in place of the state; None: the state.
        purpose: Draws for one purpose are independent of those for another.
    """
    num_states = world.start.shape[-1]
    seen = torch.arange(num_states) if observed is None else observed
    ids = torch.arange(len(logits) * num_episodes)
    run = ids // num_episodes
    draws = uniforms(seed, purpose, update, ids, 2 * num_steps + 1).unsqueeze(-1)
    # The end of an episode is one more state; what rounding leaves beside the others is none.
    ends = 1.0 - world.transitions.sum(-1, keepdim=True)
    moves = torch.cat([world.transitions, ends.masked_fill(ends < 1e-9, 0.0)], dim=-1).log()
    in_moves, in_rewards = run % len(moves), run % len(world.rewards)
    path, actions = [categorical(world.start.log()[run % len(world.start)], draws[:, 0]).squeeze(-1)], []
    for t in range(num_steps):
        at = path[-1].clamp(max=num_states - 1)
        actions.append(categorical(logits[run, seen[at]], draws[:, 2 * t + 1]).squeeze(-1))
        to = categorical(moves[in_moves, at, actions[-1]], draws[:, 2 * t + 2]).squeeze(-1)
        path.append(torch.where(path[-1] < num_states, to, num_states))
    visited, taken = torch.stack(path, dim=1), torch.stack(actions, dim=1)
    runs, mask, ended = run.unsqueeze(1).expand_as(taken), visited[:, :-1] < num_states, visited[:, 1:] == num_states
    states = visited.clamp(max=num_states - 1)
    inputs = {"runs": runs, "states": seen[states[:, :-1]], "actions": taken}
    nothing = torch.zeros(mask.shape, dtype=torch.float64)
    logprobs = score(logits, inputs).logprobs.detach()
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=logprobs,
        logprobs=logprobs,
        values=nothing,
        next_values=nothing,
        rewards=world.rewards[in_rewards.unsqueeze(1), states[:, :-1], taken],
        dones=mask & (ended | (torch.arange(num_steps) == num_steps - 1)),
        mask=mask,
        sample_ids=ids,
        costs=torch.full_like(ids, num_steps),
        terminals=ended,
        next_inputs={"runs": runs, "states": seen[states[:, 1:]]},
    )


def alone(world: Mdp) -> Mdp:
    """A world as a stack of one."""
    return Mdp(*(table.unsqueeze(0) for table in world))


def with_values(rollout: Rollout, values: Tensor, *, bootstrap: bool) -> Rollout:
    """The rollout with values of a critic, `(R, S)`, or of one a step, `(R, T + 1, S)`.

    Args:
        bootstrap: What was cut would have gone on; without it, the last step is the end.
    """
    runs, steps = rollout.inputs["runs"], torch.arange(rollout.mask.shape[1])
    table = values if values.dim() == 3 else values.unsqueeze(1).expand(-1, len(steps) + 1, -1)
    following = table[runs, steps + 1, (rollout.next_inputs or {})["states"]]
    over = rollout.terminals if bootstrap else rollout.dones
    nothing = torch.zeros_like(following)
    return replace(
        rollout,
        values=table[runs, steps, rollout.inputs["states"]],
        next_values=following if over is None else torch.where(over, nothing, following),
    )


def step(method: Method, logits: Tensor, rollout: Rollout, *, step_size: float) -> Tensor:
    """Each run's logits after one plain gradient step on its episodes, by the method's estimate and loss."""
    batch, _ = method.estimate(rollout, {})
    parameters = logits.clone().requires_grad_()
    terms, _ = method.loss(score(parameters, batch.inputs), batch, {})
    sums = (batch.weights * terms).view(len(logits), -1).sum(1) / batch.units.view(len(logits), -1).sum(1)
    sums.sum().backward()
    assert parameters.grad is not None
    return logits - step_size * parameters.grad


def expected_sum(world: Mdp, logits: Tensor, observed: Tensor, *, num_steps: int) -> Tensor:
    """`(R,)` exact expected sum of rewards of each run's policy over `num_steps` steps from the world's own starts."""
    policies = logits.softmax(-1)[:, observed]
    return vmap(lambda p: (step_marginals(world, p, num_steps=num_steps) * (p * world.rewards).sum(-1)).sum())(policies)


def _looked_up(table: Tensor, index: Tensor) -> Tensor:
    return table.flatten().index_select(0, index.flatten()).view(index.shape)
