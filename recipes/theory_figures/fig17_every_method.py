"""Figure 17: One axis, every method; and how many of randomly chosen settings work (lectures 000 and 004).

Methods that learn from a replay buffer need fewer steps than those that throw each batch away, and are said to be
harder to tune. Curves come from the finished runs of recipes/cartpole.py in runs/learning, NAME-SEED each, where there
are any; on CartPole without them, every method is trained here for a short while, which shows how they start.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from rlhf.algorithms.catalogue import REPLAYED
from rlhf.control.presets import Preset, preset
from rlhf.core.random import uniforms
from rlhf.runs.evaluate import interquartile_mean
from rlhf.runs.log import read_lines

from .trials import trained

NUMBER = 17
TITLE = "One axis, every method; and the share of random settings that work"
SEES = (
    "Curves are interquartile means over as many seeds as the legend says, and ranges of the middle half; a page drawn "
    "without finished runs shows the first 10,000 steps of three seeds, on CartPole alone. From the runs of "
    "docs/algorithms.md: on CartPole the mean comes to 475 after 13,000 steps of TRPO, 18,000 of PPO-KL, 21,000 of PPO "
    "and 26,000 of REINFORCE++, but only after 36,000 and 46,000 of discrete SAC and the replay actor-critic, so here "
    "replay saves no steps. On Pendulum it does: SAC passes -200 after 6,000 steps, PPO and TRPO after 39,000 and "
    "41,000, A2C after 385,000. Of 8 random settings (step size 1e-4 to 1e-2, discount 0.9 to 0.997, half to twice the "
    "batch) and 20,000 steps, the return is at least 195 in 7 for SAC, 6 for the replay actor-critic, 7 for PPO, 8 for "
    "TRPO and 4 for A2C. That the replay methods are harder to tune shows in how far they come: none is at 475, where "
    "2, 3 and 1 of the others are. TRPO has it easier: the step size is its critic's only, its policy steps by a KL "
    "that was not varied. With 8 settings a share is known to about 0.3 and no better."
)

RUNS = Path("runs/learning")
PROBLEMS = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1", "pendulum": "Pendulum-v1"}
METHODS = ("discrete_sac", "replay_actor_critic", "ppo", "trpo", "a2c")
# Of the random settings: steps each may take, how many there are, and the return at the end that counts as working.
STEPS, SETTINGS, WORKS = 20_000, 8, 195.0
# Where there are no finished runs, that many seeds of each method's own settings take that many steps.
SEEDS_HERE, STEPS_HERE = 3, 10_000
GRID = 40


def random_settings(number: int) -> list[dict[str, float]]:
    """The same ones for every method: Adam's step size, discount, and the batch as a multiple of the usual one."""
    draws = uniforms(0, "settings", 0, torch.arange(number), 3).tolist()
    return [
        {"learning_rate": 1e-4 * 100.0**a, "gamma": 1.0 - 0.1 * 0.03**b, "batch": (0.5, 1.0, 2.0)[int(3 * c)]}
        for a, b, c in draws
    ]


def changed(method: str, *, learning_rate: float, gamma: float, batch: float, steps: int) -> Preset:
    """The settings that a method is known to learn with, but for these; replay takes a gradient step every 4 steps."""
    usual = preset(method, "CartPole-v1")
    optimizing, own = replace(usual.optimize, learning_rate=learning_rate), replace(usual.method, gamma=gamma)
    acting, replay = usual.collect, usual.replay
    if method in REPLAYED:
        optimizing, own = replace(optimizing, minibatches=32), replace(own, batch_size=int(128 * batch))
        replay = replace(replay, random_steps=min(replay.random_steps, steps // 10))
    else:
        acting = replace(acting, num_envs=int(acting.num_envs * batch))
    return replace(
        usual,
        steps=steps,
        eval_every_steps=steps,
        collect=acting,
        replay=replay,
        method=own,
        optimize=optimizing,
    )


def finished_runs(folder: Path) -> dict[str, list[np.ndarray]]:
    """By "problem/name": the curves of all its seeds that are done."""
    curves: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for metrics in sorted(folder.glob("*/*/metrics.jsonl")):
        # Without a method in its name a run is PPO's.
        name = re.fullmatch(rf"({'|'.join(PROBLEMS)})(?:-(.+))?-(\d+)", metrics.parent.parent.name)
        if name and (metrics.parent / "final").exists():
            rows = [row for row in read_lines(metrics) if "eval_return_mean" in row]
            points = [[row["steps"] for row in rows], [row["eval_return_mean"] for row in rows]]
            curves[f"{PROBLEMS[name[1]]}/{name[2] or 'ppo'}"][name[3]] = np.array(points, dtype=float)
    return {name: list(seeds.values()) for name, seeds in curves.items()}


def inputs() -> str:
    """Which finished runs there are: with others the figure is another."""
    counts = {name: len(curves) for name, curves in sorted(finished_runs(RUNS).items())}
    return f"runs {counts}"


def on_one_grid(curves: list[np.ndarray]) -> np.ndarray:
    """`(1 + seeds, GRID)`: steps, up to where all have come, and each curve's returns there."""
    steps = np.linspace(0.0, min(curve[0, -1] for curve in curves), GRID)
    return np.stack([steps, *(np.interp(steps, *curve) for curve in curves)])


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    curves = finished_runs(RUNS)
    if not any(name.startswith("CartPole") for name in curves):
        steps = max(int(STEPS_HERE * effort), 128)
        for method in METHODS:
            settings = replace(preset(method, "CartPole-v1"), steps=steps, eval_every_steps=max(steps // 5, 128))
            each = [trained(method, settings, seed=seed) for seed in range(min(seeds, SEEDS_HERE))]
            curves[f"CartPole-v1/{method} (trained here)"] = each
    data = {f"curve/{name}": on_one_grid(each) for name, each in curves.items()}
    steps, drawn = max(int(STEPS * effort), 128), random_settings(max(round(SETTINGS * effort), 1))
    data["steps"] = np.array(steps)
    data["settings"] = np.array([list(setting.values()) for setting in drawn])
    for method in METHODS:
        ends = [trained(method, changed(method, steps=steps, **setting), seed=i) for i, setting in enumerate(drawn)]
        data[f"returns/{method}"] = np.array([points[1, -1] for points in ends])
    return data


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for panel, problem in zip(panels, PROBLEMS.values(), strict=False):
        names = [name for name in data if name.startswith(f"curve/{problem}/")]
        for i, name in enumerate(names):
            # From the second point on: on a logarithmic axis there is no step 0.
            steps, returns = data[name][0, 1:], data[name][1:, 1:]
            label = f"{name.split('/', 2)[2]}, {len(returns)} seeds"
            color = colormaps["tab20"](i)
            panel.plot(steps, [interquartile_mean(column) for column in returns.T], label=label, color=color)
            panel.fill_between(steps, *np.quantile(returns, (0.25, 0.75), axis=0), color=color, alpha=0.12)
        panel.set(title=f"{problem}: interquartile mean and range", xlabel="environment steps", ylabel="greedy return")
        if names:
            panel.set_xscale("log")
            panel.legend(fontsize=7)
        else:
            panel.text(0.5, 0.5, f"no finished runs in {RUNS}", ha="center", transform=panel.transAxes)
    panel = panels[3]
    for i, method in enumerate(METHODS):
        ends = data[f"returns/{method}"]
        panel.bar(i, np.mean(ends >= WORKS), alpha=0.4)
        panel.scatter(np.full(len(ends), i), ends / 500.0, color="black", s=12, zorder=3)
        panel.text(i, 1.04, f"{np.sum(ends >= WORKS)} of {len(ends)}", ha="center")
    panel.set_xticks(range(len(METHODS)), METHODS, rotation=12)
    panel.axhline(WORKS / 500.0, color="gray", linestyle="--", linewidth=0.8)
    panel.set(ylim=(0, 1.12), ylabel="share that works; dots: return / 500")
    panel.set_title(f"CartPole, {int(data['steps']):,} steps: random settings with return >= {WORKS:g}")
    for panel in figure.axes:
        panel.grid(alpha=0.3)
    return figure
