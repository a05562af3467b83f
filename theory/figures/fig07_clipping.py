"""Figure 7: clip alone against min(surrogate, clip) (lectures 000 and 001). Both are flat where an action has gained
enough; only clip alone is flat, too, where a step has moved the ratio the wrong way, so that nothing brings it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf.algorithms import ppo, trpo
from rlhf.algorithms.actor_critic import gae_batch
from rlhf.algorithms.base import Method
from rlhf.core import importance, losses
from rlhf.rollout import Batch, PolicyOutput, Rollout
from theory.figures.episodes import score
from theory.figures.tabular import (
    GAMMA,
    Update,
    draw_band,
    exact_return,
    random_worlds,
    repeat,
    run_means,
    sampler,
    successes,
    updates,
)

NUMBER = 7
TITLE = "What the minimum in PPO's objective is for"
SEES = (
    "With clip alone the objective is flat below 1 - clip for A > 0 (above 1 + clip for A < 0) as well; with the "
    "minimum it keeps its slope there. Along the gradient of one batch the unclipped objective promises 0.79 a step "
    "where J gains 0.33; clip alone levels off at 0.12 and, on the wrong side, at -0.11; the minimum has a top at "
    "distance 2.3 and falls on both sides of it. Trained with ten steps of Adam on each batch the three are alike up "
    "to step size 0.1; after the first update at step size 0.3, 20 % of the actions are beyond the clip on the wrong "
    "side with the minimum, 29 % with clip alone, 31 % unclipped, and the final returns are 0.97, 0.94 and 0.78 "
    "(0.92, 0.77 and 0.65 at step size 1)."
)

CLIP = 0.2
SAMPLES = {"num_episodes": 8, "num_steps": 25, "seed": 7}
SHOWN = 0.3


@dataclass(frozen=True, kw_only=True)
class ClipAlone(Method):
    """The first of the lecture's two tricks, which nobody trains with."""

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        return gae_batch(rollout, kl_coef=0.0, gamma=GAMMA, gae_lambda=1.0)

    def loss(self, output: PolicyOutput, batch: Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """-clamp(ratio, 1 - clip, 1 + clip) A per action."""
        ratios = torch.exp(output.logprobs - batch.logprobs).clamp(1.0 - CLIP, 1.0 + CLIP)
        policy_loss = -ratios * batch.advantages
        return policy_loss, {"policy_loss": policy_loss.detach()}


UNCLIPPED = trpo.TRPO(gamma=GAMMA, gae_lambda=1.0)
METHODS: dict[str, Method] = {
    "unclipped": UNCLIPPED,
    "clip alone": ClipAlone(),
    "min(unclipped, clip)": ppo.PPO(gamma=GAMMA, gae_lambda=1.0, value_coef=0.0, clip=CLIP),
}
STATE = {"update": torch.tensor(0), "progress": torch.tensor(0.0)}


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    worlds = random_worlds(seeds, num_states=20, num_actions=4, seed=1)
    return along_a_line(worlds, 2 * max(2, round(20 * effort)) + 1) | _trained(worlds, effort)


def along_a_line(worlds: Any, num_points: int) -> dict[str, np.ndarray]:
    """Objectives and the true J, less their values at theta_old, on the line of one batch's policy gradient."""
    old = torch.zeros_like(worlds.rewards)
    batch = sampler(UNCLIPPED, worlds, **SAMPLES)(old, 0)
    x = old.clone().requires_grad_()
    surrogate = -UNCLIPPED.loss(score(x, batch.inputs), batch, {})[0]
    run_means(surrogate, batch, len(old)).sum().backward()
    assert x.grad is not None
    direction = x.grad / x.grad.flatten(1).norm(dim=1)[:, None, None]
    distances = torch.linspace(-15.0, 15.0, num_points, dtype=torch.float64)
    data = {"distances": distances.numpy()}
    outputs = [score(old + d * direction, batch.inputs) for d in distances]
    for name, method in METHODS.items():
        values = [run_means(-method.loss(x, batch, STATE)[0], batch, len(old)) for x in outputs]
        at_old = run_means(batch.advantages, batch, len(old))
        data[f"line {name}"] = (torch.stack(values) - at_old).detach().numpy()
    # The objectives are means over steps, J is a sum over 1 / (1 - gamma) of them.
    start = exact_return(worlds, old)
    gains = [(1.0 - GAMMA) * (exact_return(worlds, old + d * direction) - start) for d in distances]
    return data | {"line true": torch.stack(gains).numpy()}


def _trained(worlds: Any, effort: float) -> dict[str, np.ndarray]:
    sizes = np.array([0.01, 0.03, 0.1, SHOWN, 1.0])
    many, seeds = repeat(worlds, len(sizes)), len(worlds.rewards)
    data = {"sizes": sizes}
    for name, method in METHODS.items():
        training = updates(
            method,
            torch.zeros_like(many.rewards),
            sampler(method, many, **SAMPLES),
            optimizer=torch.optim.Adam,
            step_sizes=sizes.tolist(),
            epochs=10,
            num_updates=max(2, round(40 * effort)),
        )
        policies, wrong = zip(*((update.new, _wrong_way(update)) for update in training), strict=True)
        data[f"return {name}"] = successes(many, policies).view(-1, len(sizes), seeds).numpy()
        data[f"wrong {name}"] = torch.stack(wrong).view(-1, len(sizes), seeds).numpy()
    return data


def _wrong_way(update: Update) -> Tensor:
    """`(R,)` share of a batch's actions that moved beyond the clip against the sign of their advantage."""
    batch = update.batch
    moved = torch.exp(score(update.new, batch.inputs).logprobs - batch.logprobs) - 1.0
    wrong = (moved.abs() > CLIP) & (moved * batch.advantages < 0.0)
    return run_means(wrong.double(), batch, len(update.new))


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    ratios = torch.linspace(0.0, 2.0, 201, dtype=torch.float64)
    for panel, sign in zip(axes[0, :2], (1.0, -1.0), strict=True):
        advantage, old = torch.full_like(ratios, sign), torch.zeros_like(ratios)
        objectives = {
            "unclipped": -importance.surrogate_loss(ratios.log(), old, advantage),
            "clip alone": sign * ratios.clamp(1.0 - CLIP, 1.0 + CLIP),
            "min(unclipped, clip)": -losses.clipped_surrogate_loss(ratios.log(), old, advantage, clip=CLIP),
        }
        for (name, values), line in zip(objectives.items(), ("-", "--", "-"), strict=True):
            panel.plot(ratios, values, line, label=name, linewidth=3 if line == "--" else 1.5)
        panel.axvline(1.0, color="grey", linestyle=":")
        panel.set(xlabel="ratio new / old", ylabel="objective of one action", title=f"A = {sign:+.0f}")
    sizes = data["sizes"]
    shown = int(np.argmin(np.abs(sizes - SHOWN)))
    for name in METHODS:
        draw_band(axes[0, 2], data["distances"], data[f"line {name}"], name)
        returns = data[f"return {name}"]
        draw_band(axes[1, 0], np.arange(1, len(returns) + 1), returns[:, shown], name)
        draw_band(axes[1, 1], sizes, data[f"wrong {name}"][0], name)
        draw_band(axes[1, 2], sizes, returns[-1], name)
    draw_band(axes[0, 2], data["distances"], data["line true"], "true change of J (x (1 - gamma))", color="k")
    axes[0, 2].set(xlabel="distance from theta_old along the gradient", ylabel="change, reward per step")
    axes[0, 2].set(ylim=(-1.0, 1.0), title="along a line")
    axes[1, 0].set(xlabel="updates of 10 steps", ylabel="return (uniform 0, best 1)", title=f"Adam, step size {SHOWN}")
    axes[1, 1].set(
        xlabel="step size of Adam",
        ylabel="share of actions beyond the clip on the\nwrong side after the first update",
        xscale="log",
    )
    axes[1, 2].set(xlabel="step size of Adam", ylabel="return after training", xscale="log")
    for panel in axes.flat:
        panel.legend(fontsize="small")
    return figure
