"""Figure 11: Gradients are best with large batches and dense rewards (lecture 003); a critic that knows the way
needs no success to learn from an episode (lecture 004).

A corridor is crossed from end to end within a time limit. Sparse: crossing it pays 1. Dense: each step ahead pays
1 / length and each step back costs as much, which adds up to 1 as well and has the same best policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad

from rlhf.algorithms import a2c, reinforce
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.base import Method
from theory.figures.episodes import play, score, with_values
from theory.figures.sampling import draw_band, episode_gradients, horizon_values, variance
from theory.mdp import Mdp

NUMBER = 11
TITLE = "Signal and noise of the gradient: batch size, dense and sparse rewards, rare successes"
SEES = (
    "Signal to noise grows as the root of the batch (0.46 to 3.9 from 2 to 128 episodes) and is three times as large "
    "with dense rewards as with sparse ones. So large steps need large batches: at rate 10, dense rewards learn "
    "reliably from 8 episodes a batch on, sparse ones from 32, and below that at least a quarter of the seeds end "
    "under 0.01, where the uniform policy has 0.02. It is not a law of all budgets: with small steps (rate 0.3) and "
    "1,024 episodes in all, batches of 2 come to 0.995 and 1.000, batches of 128 to 0.06 and 0.03. One-step "
    "advantages of an exact critic have 3.0 to 4.8 times the signal to noise of REINFORCE, which the same critic as "
    "a mere baseline raises by 5 to 6 % where successes are rare. A critic that must first learn from the same rare "
    "successes does not help here: with lambda = 1 it learns as fast as REINFORCE, with 0.9 at half the speed."
)

LENGTH, NUM_STEPS, AHEAD = 12, 24, 1
# An undirected walk hardly ever comes to the end of the longer ones in time.
LENGTHS, RARE = (4, 6, 8, 10, 12, 14), 14
SIZES = (2, 8, 32, 128)
# Learning rates of plain gradient steps.
SMALL, LARGE = 0.3, 10.0
REWARDS = ("dense", "sparse")
PLAIN = reinforce.Reinforce(baseline="none")
CREDITS: dict[str, Method] = {
    "REINFORCE": PLAIN,
    "less the exact V": reinforce.Reinforce(baseline="value"),
    "one step and the exact V": a2c.A2C(gae_lambda=0.0),
}
METHODS: dict[str, Method] = {
    "REINFORCE": PLAIN,
    "actor-critic, lambda = 1": a2c.A2C(gae_lambda=1.0, critic=Critic(td_lambda=1.0)),
    "actor-critic, lambda = 0.9": a2c.A2C(gae_lambda=0.9, critic=Critic(td_lambda=0.9)),
}


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    """Signal to noise `(rewards, sizes, seeds)`, success by batch size likewise, and of the methods by update."""
    num_updates, total = max(int(32 * effort), 2), max(int(1024 * effort), 2)
    columns: dict[str, list[Tensor]] = {"ratios": [], "same_updates": [], "same_episodes": []}
    for pay in REWARDS:
        world = corridor(LENGTH, pay, seeds)
        columns["ratios"].append(signal_to_noise(world, SIZES, PLAIN, num_episodes=4096 * effort))
        learn = partial(success, world, PLAIN)
        large = [learn(num_episodes=n, num_updates=num_updates, rate=LARGE) for n in SIZES]
        small = [learn(num_episodes=n, num_updates=max(total // n, 1), rate=SMALL) for n in SIZES]
        columns["same_updates"].append(torch.stack([curve[:, -1] for curve in large]))
        columns["same_episodes"].append(torch.stack([curve[:, -1] for curve in small]))
    walks = [corridor(length, "sparse", seeds) for length in LENGTHS]
    credits = [
        torch.stack([signal_to_noise(world, [16], method, num_episodes=4096 * effort)[0] for world in walks])
        for method in CREDITS.values()
    ]
    learn = partial(
        success, walks[LENGTHS.index(RARE)], num_episodes=16, num_updates=max(int(200 * effort), 2), rate=1.0
    )
    methods = [learn(method) for method in METHODS.values()]
    untrained = [expected(world, torch.zeros_like(world.rewards)) for world in walks]
    columns |= {"credits": credits, "methods": methods, "untrained": untrained}
    return {name: torch.stack(column).numpy() for name, column in columns.items()}


def corridor(length: int, pay: str, num_runs: int) -> Mdp:
    """The same corridor for every run; the step ahead from its last state ends the episode."""
    at = torch.arange(length)
    transitions = torch.zeros(length, 2, length, dtype=torch.float64)
    transitions[at, 1 - AHEAD, (at - 1).clamp(min=0)] = 1.0
    transitions[at[:-1], AHEAD, at[1:]] = 1.0
    rewards = torch.zeros(length, 2, dtype=torch.float64)
    if pay == "dense":
        rewards[:, AHEAD], rewards[1:, 1 - AHEAD] = 1.0 / length, -1.0 / length
    else:
        rewards[-1, AHEAD] = 1.0
    tables = transitions, rewards, (at == 0).double()
    return Mdp(*(table.expand(num_runs, *table.shape) for table in tables))


def signal_to_noise(world: Mdp, sizes: Sequence[int], method: Method, *, num_episodes: float) -> Tensor:
    """`(sizes, seeds)` |E g| / sqrt(E|g - E g|^2) of batches, at the uniform policy; the numerator is exact."""
    logits = torch.zeros(world.rewards.shape, dtype=torch.float64)
    exact = grad(lambda x: expected(world, x).sum())(logits).flatten(1).norm(dim=1)
    total = max(int(num_episodes), 2 * max(sizes))
    rollout = play(world, logits, num_episodes=total, num_steps=NUM_STEPS, seed=0)
    rollout = with_values(rollout, horizon_values(world, logits, num_steps=NUM_STEPS), bootstrap=False)
    batch, _ = method.estimate(rollout, {})
    each = episode_gradients(logits, batch, method.objective({}))
    batches = [each[:, : total // n * n].unflatten(1, (-1, n)).mean(2) for n in sizes]
    return torch.stack([exact / variance(means).sqrt() for means in batches])


def success(world: Mdp, method: Method, *, num_episodes: int, num_updates: int, rate: float) -> Tensor:
    """`(seeds, updates + 1)` exact probability of crossing in time, as the policy learns by plain gradient steps."""
    logits = torch.zeros(world.rewards.shape, dtype=torch.float64, requires_grad=True)
    critic = torch.zeros(logits.shape[:2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [logits], "lr": rate}, {"params": [critic], "lr": 0.5}])
    measured = corridor(logits.shape[1], "sparse", len(logits))
    curve = [expected(measured, logits)]
    for update in range(num_updates):
        rollout = play(world, logits.detach(), num_episodes=num_episodes, num_steps=NUM_STEPS, seed=1, update=update)
        if isinstance(method, a2c.A2C):
            rollout = with_values(rollout, critic.detach(), bootstrap=False)
        batch, _ = method.estimate(rollout, {})
        optimizer.zero_grad()
        terms, _ = method.loss(score(logits, batch.inputs, critic), batch, {})
        # Per episode for both, so that a step of either is as long.
        (batch.weights * terms).sum().div(num_episodes).backward()
        optimizer.step()
        curve.append(expected(measured, logits))
    return torch.stack(curve, dim=1).detach()


def expected(world: Mdp, logits: Tensor) -> Tensor:
    return (world.start * horizon_values(world, logits, num_steps=NUM_STEPS)[:, 0]).sum(-1)


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    (noise, learning), (credits, methods) = figure.subplots(2, 2)
    sizes = np.array(SIZES)
    for i, (pay, color) in enumerate(zip(REWARDS, ("tab:blue", "tab:orange"), strict=True)):
        draw_band(noise, sizes, data["ratios"][i].T, marker="o", color=color, label=pay)
        draw_band(learning, sizes, data["same_updates"][i].T, marker="o", color=color, label=f"{pay}, 32 large steps")
        style = {"marker": "s", "linestyle": "--", "color": color}
        draw_band(learning, sizes, data["same_episodes"][i].T, label=f"{pay}, 1024 episodes, small steps", **style)
    for name, rows in zip(CREDITS, data["credits"], strict=True):
        draw_band(credits, 1.0 / data["untrained"][:, 0], rows.T, marker="o", label=name)
    for name, rows in zip(METHODS, data["methods"], strict=True):
        draw_band(methods, 16 * np.arange(rows.shape[1]), rows, label=name)
    noise.set(ylabel="|E g| / noise, uniform policy", yscale="log", title=f"Signal to noise, {LENGTH} states")
    learning.set(ylabel="probability of crossing in time", title=f"REINFORCE after training, {LENGTH} states")
    credits.set(xlabel="episodes per success of the uniform policy", xscale="log", yscale="log")
    credits.set(ylabel="|E g| / noise, uniform policy", title="Sparse, batches of 16 episodes, 4 to 14 states")
    methods.set(xlabel="episodes", ylabel="probability of crossing in time", title=f"Sparse, {RARE} states")
    for panel in (noise, learning):
        panel.set(xlabel="episodes in a batch", xscale="log")
        panel.set_xticks(SIZES, [str(n) for n in SIZES])
        panel.minorticks_off()
    for panel in (noise, learning, credits, methods):
        panel.grid(alpha=0.3)
        panel.legend()
    return figure
