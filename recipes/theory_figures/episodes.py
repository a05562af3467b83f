"""What figures on problems whose episodes end share: whole episodes of many tabular policies, as the seam's Rollout.

As in tabular.py, tables have a leading axis R of runs, and the rows of all runs lie end to end, as many for each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from rlhf.core.mdp import Mdp, step_marginals
from rlhf.core.random import categorical, uniforms
from rlhf.rollout import PolicyOutput, Rollout


def score(logits: Tensor, inputs: dict[str, Tensor]) -> PolicyOutput:
    """The seam's forward for tables `(R, O, A)`: what is observed is a row of its run's table. There is no critic."""
    logprobs = logits.log_softmax(-1)[inputs["runs"], inputs["observations"]]
    chosen = logprobs.gather(-1, inputs["actions"].unsqueeze(-1)).squeeze(-1)
    return PolicyOutput(chosen, torch.zeros_like(chosen), -(logprobs.exp() * logprobs).sum(-1))


def play(
    world: Mdp,
    logits: Tensor,
    observed: Tensor,
    *,
    starts: Tensor,
    num_episodes: int,
    num_steps: int,
    seed: int,
    update: int,
) -> Rollout:
    """Episodes of every run's policy in the one world until they end, or for `num_steps` steps.

    Args:
        observed: `(S,)` what one sees of each state.
        starts: `(R, S)` probabilities of each run's first states.
    """
    ids = torch.arange(len(logits) * num_episodes)
    run = ids // num_episodes
    draws = uniforms(seed, "episodes", update, ids, 2 * num_steps + 1).unsqueeze(-1)
    # One more state, in which everything has ended and nothing is paid.
    ends = 1.0 - world.transitions.sum(-1, keepdim=True)
    moves = torch.cat([world.transitions, ends], dim=-1).log()
    state, alive = categorical(starts.log()[run], draws[:, 0]).squeeze(-1), torch.ones_like(run, dtype=torch.bool)
    columns: dict[str, list[Tensor]] = {"states": [], "actions": [], "mask": [], "rewards": []}
    for t in range(num_steps):
        action = categorical(logits[run, observed[state]], draws[:, 2 * t + 1]).squeeze(-1)
        for name, column in zip(columns, (state, action, alive, world.rewards[state, action]), strict=True):
            columns[name].append(column)
        following = categorical(moves[state, action], draws[:, 2 * t + 2]).squeeze(-1)
        alive = alive & (following < starts.shape[1])
        state = torch.where(alive, following, state)
    stacked = {name: torch.stack(column, dim=1) for name, column in columns.items()}
    return rollout_of(logits, stacked, observed, run, ids)


def rollout_of(logits: Tensor, steps: dict[str, Tensor], observed: Tensor, run: Tensor, ids: Tensor) -> Rollout:
    mask = steps["mask"]
    inputs = {
        "runs": run.unsqueeze(1).expand(mask.shape),
        "observations": observed[steps["states"]],
        "actions": steps["actions"],
    }
    logprobs = score(logits, inputs).logprobs.detach()
    nothing = torch.zeros_like(logprobs)
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=logprobs,
        logprobs=logprobs,
        values=nothing,
        next_values=nothing,
        rewards=steps["rewards"],
        dones=mask & (torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1),
        mask=mask,
        sample_ids=ids,
        costs=mask.sum(1),
    )


def step(algorithm: Any, config: Any, logits: Tensor, rollout: Rollout, *, step_size: float) -> Tensor:
    """Each run's logits after one plain gradient step on its episodes, by the algorithm's estimate and loss."""
    batch, _ = algorithm.estimate(rollout, {}, config)
    parameters = logits.clone().requires_grad_()
    terms, _ = algorithm.loss(score(parameters, batch.inputs), batch, {}, config)
    sums = (batch.weights * terms).view(len(logits), -1).sum(1) / batch.units.view(len(logits), -1).sum(1)
    sums.sum().backward()
    assert parameters.grad is not None
    return logits - step_size * parameters.grad


def expected_sum(world: Mdp, logits: Tensor, observed: Tensor, *, num_steps: int) -> Tensor:
    """`(R,)` exact expected sum of rewards of each run's policy over `num_steps` steps from the world's own starts."""
    policies = logits.softmax(-1)[:, observed]
    return vmap(lambda p: (step_marginals(world, p, num_steps=num_steps) * (p * world.rewards).sum(-1)).sum())(policies)
