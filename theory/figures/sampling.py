"""What the figures on the gradient of whole episodes share, and how they draw; tables as in episodes.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from rlhf.rollout import Batch, PolicyOutput
from theory.figures.episodes import score
from theory.mdp import Mdp, backup

Loss = Callable[[PolicyOutput, Batch], tuple[Tensor, Any]]


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
