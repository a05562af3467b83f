"""Figure 14: Policy gradients cannot explore; cloning and resets help them (lecture 001).

One of three actions leads on in each state of a chain of length H, and only its end pays. A batch of N episodes in
which nobody gets there has a gradient of exactly zero, which has probability (1 - 3^-H)^N under the uniform policy. A
policy that starts as a clone, or episodes that start along the chain, show the reward; a small one nearby hides it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf.algorithms import clone, reinforce
from theory.figures.episodes import alone, expected_sum, play, step
from theory.worlds.chain import Chain

NUMBER = 14
TITLE = "The chain: gradients that are exactly zero, and what helps"
SEES = (
    "The share of batches whose gradient is exactly zero is (1 - 3^-H)^N, up to the noise of 200 batches (0.04): "
    "at H = 10 even 1,024 episodes see nothing in 98 batches of 100. From the start the luckiest of 10 seeds is "
    "at 0.0001 after 250 updates (H = 10), and the others where they began. Clones of a demonstrator who is right "
    "9 times in 10 start at 0.32 (H = 10) and 0.06 (H = 20), where he is at 0.35 and 0.12, and end at 0.997 and "
    "0.995, far above him. Episodes that start along the chain reach one half after 25 updates (H = 10) and 104 "
    "(H = 20); resets to demonstrated states after 26 and 139, since a demonstrator who fails on the way seldom "
    "shows late states. With 0.1 for a wrong first action, policy gradients from the start settle there, and the "
    "three others pass it."
)

REINFORCE = reinforce.Reinforce(baseline="none")
BATCH_SIZES, HORIZONS, BATCHES = (16, 128, 1024), 10, 200
WAYS = ("from the start", "after cloning", "uniform resets", "demonstration resets")
# Demonstrators who are right this often in each state, and what they show.
SKILL, DEMONSTRATIONS = 0.9, 20
CHAINS = {"10": Chain(horizon=10), "20": Chain(horizon=20), "near": Chain(horizon=10, near_reward=0.1)}
UPDATES, EPISODES, STEP_SIZE = 250, 32, 10.0
# Of the draws.
PURPOSE = "episodes"


def share_of_zero_gradients(horizon: int, batch_size: int, num_batches: int) -> float:
    """Of batches of the uniform policy, each a run with its own gradient."""
    world, logits = alone(Chain(horizon=horizon).mdp), torch.zeros(num_batches, horizon, 3, dtype=torch.float64)
    sizes: dict[str, Any] = {"num_episodes": batch_size, "num_steps": horizon}
    played = play(world, logits, **sizes, seed=batch_size, update=horizon, purpose=PURPOSE)
    moved = step(REINFORCE, logits, played, step_size=1.0) != 0
    return float((~moved.flatten(1).any(1)).double().mean())


def demonstrated(chain: Chain, num_runs: int) -> tuple[Tensor, Tensor]:
    """Each run's clone of its own demonstrations, and how often their states occur: `(R, H, 3)` and `(R, H)`."""
    states = torch.arange(chain.horizon)
    demonstrator = torch.full((chain.horizon, 3), (1.0 - SKILL) / 2.0, dtype=torch.float64)
    demonstrator[states, torch.as_tensor(chain.right_actions)] = SKILL
    sizes: dict[str, Any] = {"num_episodes": DEMONSTRATIONS, "num_steps": chain.horizon}
    shown = play(alone(chain.mdp), demonstrator.log().expand(num_runs, -1, -1), **sizes, seed=1, purpose=PURPOSE)
    cloned = torch.zeros(num_runs, chain.horizon, 3, dtype=torch.float64)
    for _ in range(200):
        cloned = step(clone.BehaviourCloning(), cloned, shown, step_size=STEP_SIZE)
    seen = torch.zeros(num_runs, chain.horizon, dtype=torch.float64)
    seen.index_put_((shown.inputs["runs"], shown.inputs["states"]), shown.mask.double(), accumulate=True)
    return cloned, seen / seen.sum(-1, keepdim=True)


def returns(chain: Chain, seeds: int, updates: int) -> np.ndarray:
    """`(ways, seeds, updates + 1)` exact expected return from the start of the chain, before and after each update."""
    world, states = chain.mdp, torch.arange(chain.horizon)
    cloned, seen = demonstrated(chain, seeds)
    blank, start = torch.zeros_like(cloned), world.start.expand(seeds, -1)
    logits = torch.cat([blank, cloned, blank, blank])
    starts = torch.cat([start, start, torch.full_like(start, 1.0 / chain.horizon), seen])
    begun = alone(world)._replace(start=starts)
    sizes: dict[str, Any] = {"num_episodes": EPISODES, "num_steps": chain.horizon}
    curve = [expected_sum(world, logits, states, num_steps=chain.horizon)]
    for update in range(updates):
        played = play(begun, logits, **sizes, seed=0, update=update, purpose=PURPOSE)
        logits = step(REINFORCE, logits, played, step_size=STEP_SIZE)
        curve.append(expected_sum(world, logits, states, num_steps=chain.horizon))
    return torch.stack(curve, dim=1).view(len(WAYS), seeds, -1).numpy()


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    horizons, num_batches = np.arange(1, HORIZONS + 1), max(int(BATCHES * effort), 5)
    shares = [[share_of_zero_gradients(int(h), n, num_batches) for h in horizons] for n in BATCH_SIZES]
    data = {"horizons": horizons, "shares": np.array(shares)}
    return data | {name: returns(chain, seeds, max(int(UPDATES * effort), 2)) for name, chain in CHAINS.items()}


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    horizons = data["horizons"]
    for size, shares in zip(BATCH_SIZES, data["shares"], strict=True):
        (line,) = panels[0].plot(horizons, (1 - 3.0**-horizons) ** size, label=f"(1 - 3^-H)^{size}")
        panels[0].plot(horizons, shares, "o", color=line.get_color(), label=f"measured, {size} episodes")
    panels[0].set(xlabel="length H of the chain", ylabel="share of batches", title="Gradient of exactly zero")
    titles = {"10": "H = 10", "20": "H = 20", "near": "H = 10, and 0.1 for a wrong first action"}
    for panel, (name, title) in zip(panels[1:], titles.items(), strict=True):
        for way, curves in zip(WAYS, data[name], strict=True):
            updates = np.arange(curves.shape[1])
            (line,) = panel.plot(updates, np.median(curves, axis=0), label=way)
            panel.fill_between(updates, *np.quantile(curves, (0.25, 0.75), axis=0), color=line.get_color(), alpha=0.2)
        panel.set(xlabel=f"updates of {EPISODES} episodes", ylabel="exact return from the start", ylim=(-0.03, 1.03))
        panel.set_title(f"{title}; median and quartiles of {data[name].shape[1]} seeds", fontsize=11)
    for panel in panels:
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    return figure
