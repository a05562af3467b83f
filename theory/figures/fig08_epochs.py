"""Figure 8: many gradient steps on one batch (lectures 000 and 004). Without a clip or a penalty the policy runs away
from the one that gathered the batch; PPO-KL steers its coefficient by how far it came.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf.algorithms import ppo, ppo_kl, trpo
from rlhf.algorithms.base import Method
from rlhf.core.kl import categorical_kl
from theory.figures.episodes import score
from theory.figures.tabular import GAMMA, Update, draw_band, random_worlds, run_means, sampler, successes, updates

NUMBER = 8
TITLE = "Several steps on one batch: KL, ratios, return, and PPO-KL's coefficient"
SEES = (
    "One step is the same for all three, KL 0.0045 nats: neither clip nor penalty acts at the old policy. With forty "
    "steps the unclipped surrogate moves the policy by 2.5 nats in the first update, PPO-clip by 0.16 and PPO-KL by "
    "0.29, thirty times its target of 0.01, which its coefficient cannot prevent before it has seen one update. "
    "Clipping takes incentives away but constrains nothing: 70 % of PPO-clip's ratios end outside the clip range. "
    "More steps help up to about five; after forty the unclipped return is 0.70 against 0.88 for a single step, PPO- "
    "clip stays at 0.97 and PPO-KL at 0.96. PPO-KL's coefficient rises eightfold in three updates, holds the KL near "
    "its target, and falls to its floor once nothing is left to learn. Its target is overshot in 26 % of the updates "
    "with ten epochs and in 66 % with forty, by more than half in 18 % and 51 %."
)

ACTOR: dict[str, Any] = {"gamma": GAMMA, "gae_lambda": 1.0}
TARGET, CLIP = 0.01, 0.2
METHODS: dict[str, Method] = {
    "unclipped": trpo.TRPO(**ACTOR),
    "PPO-clip": ppo.PPO(**ACTOR, value_coef=0.0, clip=CLIP),
    "PPO-KL": ppo_kl.PPOKL(**ACTOR, value_coef=0.0, penalty_target=TARGET),
}
SAMPLES = {"num_episodes": 8, "num_steps": 25, "seed": 8}
STEP_SIZE = 0.1
SHOWN = 10


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    epochs = np.array([1, 2, 5, SHOWN, 20, 40]) if effort > 0.1 else np.array([1, SHOWN])
    worlds = random_worlds(seeds, num_states=20, num_actions=4, seed=1)
    data = {"epochs": epochs}
    for name, method in METHODS.items():
        collect, each = sampler(method, worlds, **SAMPLES), []
        for number in epochs.tolist():
            training = updates(
                method,
                torch.zeros_like(worlds.rewards),
                collect,
                optimizer=torch.optim.Adam,
                step_sizes=[STEP_SIZE],
                epochs=number,
                num_updates=max(2, round(40 * effort)),
            )
            policies, rows = zip(*((u.new, torch.stack([*_movement(u), _penalty(u)])) for u in training), strict=True)
            each.append(torch.cat([successes(worlds, policies).unsqueeze(1), torch.stack(rows)], dim=1))
        # (epochs, updates, seeds) each.
        for label, values in zip(("return", "kl", "outside", "penalty"), torch.stack(each).unbind(2), strict=True):
            data[f"{label} {name}"] = values.numpy()
    return data


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    epochs, shown = data["epochs"], data["epochs"].tolist().index(SHOWN)
    for name in METHODS:
        draw_band(axes[0, 0], epochs, data[f"kl {name}"][:, 0], name)
        draw_band(axes[0, 1], epochs, data[f"outside {name}"][:, 0], name)
        draw_band(axes[0, 2], epochs, data[f"return {name}"][:, -1], name)
    steps = np.arange(1, data["kl PPO-KL"].shape[1] + 1)
    for name in METHODS:
        draw_band(axes[1, 0], steps, data[f"kl {name}"][shown], name)
    draw_band(axes[1, 1], steps, data["penalty PPO-KL"][shown], "median of the seeds", color="C2")
    for trace in data["penalty PPO-KL"][shown].T:
        axes[1, 1].step(steps, trace, color="C2", alpha=0.3, linewidth=0.8, where="mid")
    for bar, label in ((TARGET, "target"), (1.5 * TARGET, "1.5 x target")):
        above = (data["kl PPO-KL"] > bar).mean(axis=1)
        draw_band(axes[1, 2], epochs, above, f"above the {label}")
    axes[0, 0].axhline(TARGET, color="grey", linestyle=":", label="target of PPO-KL")
    axes[1, 0].axhline(TARGET, color="grey", linestyle=":", label="target of PPO-KL")
    axes[0, 0].set(ylabel="KL(old || new) after the first\nupdate, nats per state", yscale="log")
    axes[0, 1].set_ylabel(f"share of ratios outside 1 +- {CLIP}\nafter the first update")
    axes[0, 2].set_ylabel(f"return after {len(steps)} updates\n(uniform policy 0, best 1)")
    axes[1, 0].set(xlabel="update", ylabel="KL(old || new), nats per state", yscale="log", title=f"{SHOWN} epochs")
    axes[1, 0].set_ylim(1e-6, 2.0)
    axes[1, 1].set(xlabel="update", ylabel="coefficient of the KL", yscale="log", title=f"PPO-KL, {SHOWN} epochs")
    axes[1, 2].set(ylabel="share of PPO-KL's updates", title="PPO-KL: does it keep to its target?")
    for panel in (*axes[0], axes[1, 2]):
        panel.set(xlabel="epochs (gradient steps on one batch)", xscale="log")
    for panel in axes.flat:
        panel.legend(fontsize="small")
    return figure


def _movement(update: Update) -> tuple[Tensor, Tensor]:
    """`(R,)` exact KL(old || new), mean over the batch's states, and the share of its ratios outside the clip."""
    batch = update.batch
    divergence = categorical_kl(update.old, update.new)[batch.inputs["runs"], batch.inputs["states"]]
    ratios = torch.exp(score(update.new, batch.inputs).logprobs - batch.logprobs)
    outside = ((ratios - 1.0).abs() > CLIP).double()
    return run_means(divergence, batch, len(update.new)), run_means(outside, batch, len(update.new))


def _penalty(update: Update) -> Tensor:
    return update.state.get("penalty", torch.zeros(len(update.new), dtype=torch.float64))
