"""Figure 3: Policy gradient is sensitive to the scale and the offset of the rewards (lecture 003).

The rewards are multiplied by .1, 1 or 10, or each is raised by 10, which changes no optimal policy. A plain gradient
step grows with the rewards, and whitening makes it the same for every factor. An offset adds 10 for each step to go,
so one mean of the rewards to go cannot take it off, but a mean for each time step does, exactly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from rlhf.algorithms import reinforce
from rlhf.core.baselines import mean_return
from rlhf.core.masked import whiten
from rlhf.rollout import Batch
from theory.figures.episodes import play, score
from theory.figures.sampling import draw_band, horizon_values
from theory.mdp import Mdp, optimal_values, random_mdps

NUMBER = 3
TITLE = "Rewards on another scale: without baseline, with the mean as baseline, whitened"
SEES = (
    "After 30 updates at one learning rate, plain policy gradient has come to 0.29, 0.91 and 0.98 of the way from "
    "the uniform to the best policy for rewards x .1, x 1 and x 10 (medians of 10 random MDPs), and x 10 without a "
    "baseline keeps a quarter of the seeds at 0.91 or less for good. Whitened, the three are one curve. Rewards + 10 "
    "break it: 0.14 after 200 updates, and some seeds end below the uniform policy. One mean over all rewards to go "
    "hardly helps (0.30), nor is whitening enough (0.49), since the offset counts 10 for each step to go; the mean "
    "of each time step takes it off exactly, and the curve of + 10 lies on that of x 1 (0.985)."
)

REWARDS = {"x 0.1": (0.1, 0.0), "x 1": (1.0, 0.0), "x 10": (10.0, 0.0), "+ 10": (1.0, 10.0)}
STYLES = dict(zip(REWARDS, ("--", "-", "-.", ":"), strict=True))
ADVANTAGES = ("no baseline", "less the batch mean", "less the mean of each step", "whitened")
NUM_STEPS, NUM_EPISODES, LEARNING_RATE = 10, 16, 0.3
PLAIN = reinforce.Reinforce(baseline="none")


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    """Success `(advantages, rewards, seeds, updates)`: every seed is a world, the same for every way to learn in it."""
    num_updates = max(int(200 * effort), 3)
    world = random_mdps(seeds, num_states=4, num_actions=3, seed=3)
    curves = [
        [success_of(world, kind, *pay, num_updates=num_updates) for pay in REWARDS.values()] for kind in ADVANTAGES
    ]
    return {"success": torch.stack([torch.stack(row) for row in curves]).numpy()}


def success_of(world: Mdp, kind: str, factor: float, offset: float, *, num_updates: int) -> Tensor:
    """`(seeds, updates + 1)` the policy's exact return, 0 for the uniform policy and 1 for the best."""
    logits = torch.zeros(world.rewards.shape, dtype=torch.float64)
    best = vmap(lambda w: optimal_values(w, gamma=1.0, num_iterations=NUM_STEPS))(world)
    low, high = expected(world, logits), (world.start * best).sum(-1)
    curve = [torch.zeros_like(low)]
    for update in range(num_updates):
        rollout = play(world, logits, num_episodes=NUM_EPISODES, num_steps=NUM_STEPS, seed=0, update=update)
        rollout = replace(rollout, rewards=factor * rollout.rewards + offset)
        batch, _ = PLAIN.estimate(rollout, {})
        logits = logits - LEARNING_RATE * gradient(logits, adjusted(batch, kind, len(logits)))
        curve.append((expected(world, logits) - low) / (high - low))
    return torch.stack(curve, dim=1)


def adjusted(batch: Batch, kind: str, num_runs: int) -> Batch:
    """The batch with a baseline or whitening over the episodes of each run."""
    credits, mask = (x.unflatten(0, (num_runs, -1)) for x in (batch.advantages, batch.mask))
    if kind == "whitened":
        credits = vmap(whiten)(credits, mask)
    elif kind != "no baseline":
        over = (1,) if kind == "less the mean of each step" else (1, 2)
        counts = mask.double().sum(over, keepdim=True)
        credits = credits - mean_return(credits.sum(over, keepdim=True), counts)
    return batch._replace(advantages=credits.flatten(0, 1))


def gradient(logits: Tensor, batch: Batch) -> Tensor:
    """Of every run's loss: sum(weights x terms) / sum(units) over its own episodes."""
    parameters = logits.clone().requires_grad_()
    terms, _ = PLAIN.loss(score(parameters, batch.inputs), batch, {})
    (batch.weights * terms / NUM_EPISODES).sum().backward()
    assert parameters.grad is not None
    return parameters.grad


def expected(world: Mdp, logits: Tensor) -> Tensor:
    """`(seeds,)` exact return of an episode, on the first scale."""
    return (world.start * horizon_values(world, logits, num_steps=NUM_STEPS)[:, 0]).sum(-1)


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(11, 8), layout="constrained")
    for panel, kind, rows in zip(
        figure.subplots(2, 2, sharey=True, sharex=True).flat, ADVANTAGES, data["success"], strict=True
    ):
        for name, curves in zip(REWARDS, rows, strict=True):
            # Whitened, three of the four lie on one another.
            draw_band(panel, np.arange(curves.shape[1]), curves, label=f"rewards {name}", linestyle=STYLES[name])
        panel.set(xlabel="updates", ylabel="exact return: 0 uniform policy, 1 best policy", title=kind)
        panel.grid(alpha=0.3)
        panel.legend()
    return figure
