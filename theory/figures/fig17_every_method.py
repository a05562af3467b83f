"""Figure 17: One axis, every method; and how many of randomly chosen settings work (lectures 000 and 004).

Methods that learn from a replay buffer need fewer steps than those that throw each batch away, and are said to be
harder to tune. The curves are those of finished runs of recipes/cartpole.py, which take hours: `make learning-methods
learning-curves` makes them and writes fig17_every_method.npz, which is drawn here. The search is computed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from recipes.settings.control import Preset, preset
from rlhf.algorithms import trpo
from rlhf.core.random import uniforms
from rlhf.runs.evaluate import interquartile_mean
from theory.figures.trials import trained

NUMBER = 17
TITLE = "One axis, every method; and the share of random settings that work"
SEES = (
    "Curves are interquartile means over as many seeds as the legend says, and ranges of the middle half. On CartPole "
    "the mean comes to 475 after 13,000 steps of TRPO, 21,000 of PPO and PPO-KL and 26,000 of REINFORCE++, but only "
    "after 36,000 and 46,000 of discrete SAC and the replay actor-critic, so here replay saves no steps. On Acrobot "
    "and Pendulum methods without settings of their own have CartPole's (on Pendulum with scaled rewards and gamma "
    "0.95). Acrobot pays nothing until a swing reaches the goal, and who tries what matters more than who keeps what: "
    "TD actor-critic is at -100 after 10,000 steps, PPO-KL after 21,000, the replay actor-critic after 25,000, online "
    "traces, TRPO, A2C and off-policy after 28,000 to 57,000. Discrete SAC, whose temperature starts at 1, acts as a "
    "coin would for 8,000 steps and reached the goal with none of ten seeds in 40,000; the replay actor-critic, whose "
    "entropy bonus is small, with nine. REINFORCE, its ++, GRPO and RLOO, which take one step for every 16 episodes of "
    "500, are at -500 with four, two, two and two of ten seeds after 100,000, and Q actor-critic with seven. "
    "On Pendulum replay does save steps: SAC passes -200 after 4,000, PPO and TRPO after 39,000 and 41,000, PPO-KL "
    "after 103,000, A2C after 359,000; the others, with CartPole's settings, are at -840 to -1,210 after 200,000. Of "
    "20 random settings (step size 1e-4 to 1e-2, TRPO's KL bound ten times that, discount 0.9 to 0.997, half to twice "
    "the batch) and 20,000 steps, the return is at least 195 in 17 for SAC, 14 for the replay actor-critic, 18 for "
    "PPO, 20 for TRPO and 7 for A2C, and at least 475 in 5, 4, 6, 10 and 3. By the intervals 20 settings tell A2C "
    "apart from SAC, PPO and TRPO; they do not show that replay methods are harder to tune."
)

CURVES = Path(__file__).with_suffix(".npz")
PROBLEMS = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1")
METHODS = ("discrete_sac", "replay_actor_critic", "ppo", "trpo", "a2c")
# Of the random settings: steps each may take, how many there are, and the return at the end that counts as working.
STEPS, SETTINGS, WORKS = 20_000, 20, 195.0


def random_settings(number: int) -> list[dict[str, float]]:
    """The same ones for every method: Adam's step size, discount, and the batch as a multiple of the usual one."""
    draws = uniforms(0, "settings", 0, torch.arange(number), 3).tolist()
    return [
        {"learning_rate": 1e-4 * 100.0**a, "gamma": 1.0 - 0.1 * 0.03**b, "batch": (0.5, 1.0, 2.0)[int(3 * c)]}
        for a, b, c in draws
    ]


def changed(method: str, *, learning_rate: float, gamma: float, batch: float, steps: int) -> Preset:
    """The settings that a method is known to learn with, but for these; TRPO's policy steps by ten times
    `learning_rate` in nats, and Adam's step size is its critic's.
    """
    usual = preset(method, "CartPole-v1")
    optimizing, acting, replay = replace(usual.optimize, learning_rate=learning_rate), usual.collect, usual.replay
    # Not every method has a discount; those searched do.
    own: Any = usual.method
    own = replace(own, gamma=gamma)
    if isinstance(own, trpo.TRPO):
        own = replace(own, max_kl=10.0 * learning_rate)
    if own.replays:
        own = replace(own, batch_size=int(own.batch_size * batch))
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


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    """The search: one seed for each setting, so `seeds` plays no part."""
    steps, drawn = max(int(STEPS * effort), 128), random_settings(max(round(SETTINGS * effort), 1))
    data = {"steps": np.array(steps), "settings": np.array([list(setting.values()) for setting in drawn])}
    for method in METHODS:
        ends = [trained(changed(method, steps=steps, **setting), seed=i) for i, setting in enumerate(drawn)]
        data[f"returns/{method}"] = np.array([points[1, -1] for points in ends])
    return data


def interval(works: int, of: int) -> tuple[float, float]:
    """Wilson's of 95 % for a share (Wilson, 1927; https://doi.org/10.1080/01621459.1927.10502953)."""
    z, share = 1.96, works / of
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return middle - half, middle + half


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 10), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    with np.load(CURVES) as archive:
        curves = dict(archive)
    names = sorted({name.partition("/")[2] for name in curves})
    lines: dict[str, Any] = {}
    for panel, problem in zip(panels, PROBLEMS, strict=False):
        for i, name in enumerate(names):
            if f"{problem}/{name}" in curves:
                # From the second point on: on a logarithmic axis there is no step 0.
                steps, *returns = curves[f"{problem}/{name}"][:, 1:]
                middle, color = [interquartile_mean(column) for column in np.transpose(returns)], colormaps["tab20"](i)
                lines[name] = panel.plot(steps, middle, color=color)[0]
                panel.fill_between(steps, *np.quantile(returns, (0.25, 0.75), axis=0), color=color, alpha=0.12)
        panel.set(title=f"{problem}: interquartile mean and range", xlabel="environment steps", ylabel="greedy return")
        panel.set_xscale("log")
    # The first row of each is its steps.
    counts = {name: {str(len(curves[of]) - 1) for of in curves if of.endswith(f"/{name}")} for name in lines}
    labels = [f"{name}, {'/'.join(sorted(counts[name]))} seeds" for name in lines]
    figure.legend(lines.values(), labels, loc="outside lower center", ncols=6, fontsize=8)
    panel = panels[3]
    for i, method in enumerate(METHODS):
        ends = data[f"returns/{method}"]
        works = int(np.sum(ends >= WORKS))
        low, high = interval(works, len(ends))
        panel.bar(i, works / len(ends), alpha=0.4)
        panel.plot([i - 0.3, i - 0.3], [low, high], color="black")
        panel.scatter(np.full(len(ends), i), ends / 500.0, color="black", s=12, zorder=3)
        panel.text(i, 1.04, f"{works} of {len(ends)}", ha="center")
    panel.set_xticks(range(len(METHODS)), METHODS, rotation=12)
    panel.axhline(WORKS / 500.0, color="gray", linestyle="--", linewidth=0.8)
    panel.set(ylim=(0, 1.12), ylabel="share that works, 95 %; dots: return / 500")
    panel.set_title(f"CartPole, {int(data['steps']):,} steps: random settings with return >= {WORKS:g}")
    for panel in figure.axes:
        panel.grid(alpha=0.3)
    return figure
