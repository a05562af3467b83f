"""What the figures on the gradient of whole episodes share: many runs side by side, each on a tabular MDP of its own.

Tables have a leading axis R of runs; in the seam's `(B, T)` tensors the rows of all runs lie end to end, as many for
each. Estimates work row by row and losses cell by cell, so the package's own serve all runs at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from rlhf.core.losses import categorical_entropy
from rlhf.core.mdp import Mdp, backup
from rlhf.core.random import categorical, uniforms
from rlhf.rollout import Batch, PolicyOutput, Rollout

Loss = Callable[[PolicyOutput, Batch], tuple[Tensor, Any]]


def play(world: Mdp, logits: Tensor, *, num_episodes: int, num_steps: int, seed: int, update: int = 0) -> Rollout:
    """Episodes of every run's policy, cut after `num_steps` at the latest; without a critic, all values are 0."""
    num_states = logits.shape[1]
    ids = torch.arange(len(logits) * num_episodes)
    run = ids // num_episodes
    draws = uniforms(seed, "figure episodes", update, ids, 2 * num_steps + 1).unsqueeze(-1)
    # The end of an episode is one more state; what rounding leaves beside the others is none.
    ends = 1.0 - world.transitions.sum(-1, keepdim=True)
    moves = torch.cat([world.transitions, ends.masked_fill(ends < 1e-9, 0.0)], dim=-1).log()
    path, actions = [categorical(world.start.log()[run], draws[:, 0]).squeeze(-1)], []
    for t in range(num_steps):
        at = path[-1].clamp(max=num_states - 1)
        actions.append(categorical(logits[run, at], draws[:, 2 * t + 1]).squeeze(-1))
        to = categorical(moves[run, at, actions[-1]], draws[:, 2 * t + 2]).squeeze(-1)
        path.append(torch.where(path[-1] < num_states, to, num_states))
    visited, taken = torch.stack(path, dim=1), torch.stack(actions, dim=1)
    runs, mask, ended = run.unsqueeze(1).expand_as(taken), visited[:, :-1] < num_states, visited[:, 1:] == num_states
    states = visited.clamp(max=num_states - 1)
    inputs = {"runs": runs, "states": states[:, :-1], "actions": taken}
    nothing = torch.zeros(mask.shape, dtype=torch.float64)
    logprobs = score(logits, inputs).logprobs
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=logprobs,
        logprobs=logprobs,
        values=nothing,
        next_values=nothing,
        rewards=world.rewards[runs, inputs["states"], taken],
        dones=mask & (ended | (torch.arange(num_steps) == num_steps - 1)),
        mask=mask,
        sample_ids=ids,
        costs=torch.full_like(ids, num_steps),
        terminals=ended,
        next_inputs={"runs": runs, "states": states[:, 1:]},
    )


def score(logits: Tensor, inputs: dict[str, Tensor], values: Tensor | None = None) -> PolicyOutput:
    """The seam's forward of a table of logits `(R, S, A)` and a critic `(R, S)`, if there is one."""
    index = inputs["runs"], inputs["states"]
    # Looked up in a table of log-probabilities, which is smaller than the batch.
    logprobs, entropy = logits.log_softmax(-1)[(*index, inputs["actions"])], categorical_entropy(logits)[index]
    return PolicyOutput(logprobs, 0.0 * logprobs if values is None else values[index], entropy)


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


def horizon_values(world: Mdp, logits: Tensor, *, num_steps: int) -> Tensor:
    """`(R, T + 1, S)` exact undiscounted V with T, ..., 0 steps to go."""
    values = [torch.zeros(logits.shape[:2], dtype=torch.float64)]
    for _ in range(num_steps):
        returns = vmap(lambda w, v: backup(w, v, gamma=1.0))(world, values[-1])
        values.append((logits.softmax(-1) * returns).sum(-1))
    return torch.stack(values[::-1], dim=1)


def episode_gradients(logits: Tensor, batch: Batch, loss: Loss) -> Tensor:
    """`(R, N, S, A)` the direction of ascent that each of a run's N episodes gives by itself."""

    def objective(table: Tensor, row: dict[str, Any]) -> Tensor:
        alone = Batch(*(row.get(name) for name in Batch._fields))  # type: ignore[arg-type]  # no reference: None
        inputs = alone.inputs | {"runs": torch.zeros_like(alone.inputs["runs"])}
        terms, _ = loss(score(table.unsqueeze(0), inputs), alone)
        return -(alone.weights * terms).masked_fill(~alone.mask, 0.0).sum()

    rows = {name: value for name, value in batch._asdict().items() if value is not None}
    tables = logits.repeat_interleave(len(batch.mask) // len(logits), dim=0)
    return vmap(grad(objective))(tables, rows).unflatten(0, (len(logits), -1))


def variance(gradients: Tensor) -> Tensor:
    """`(R,)` E|g - E g|^2 over a run's gradients `(R, N, S, A)`."""
    return gradients.var(dim=1).sum((-2, -1))


def band(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median and quartiles over the first axis, the seeds."""
    low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
    return middle, low, high


def draw_band(panel: Any, x: np.ndarray, rows: np.ndarray, **style: Any) -> None:
    """A line through the medians of `rows` (seeds first), with the interquartile range around it."""
    middle, low, high = band(rows)
    (line,) = panel.plot(x, middle, **style)
    panel.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
