"""Figure 5: step size against final return (lecture 000). A step that is too large ends on a plateau: the policy has
become nearly deterministic, tries nothing else, and its gradient is all but gone. Too small a one goes nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from rlhf.algorithms import ppo, ppo_kl, reinforce, trpo
from rlhf.algorithms.base import Method
from theory.figures.tabular import (
    GAMMA,
    Update,
    draw_band,
    exact_gradient,
    random_worlds,
    repeat,
    sampler,
    success,
    successes,
    trust_region_updates,
    updates,
)

NUMBER = 5
TITLE = "Step size over five decades: the range that works"
SEES = (
    "Every method has a range of step sizes that works (a median of 0.9 of the way from the uniform to the best "
    "policy), fails slowly below it, having hardly moved in 60 batches, and fails for good above it. Ten PPO-clip "
    "steps on each batch start to work at a tenth of the step size of the plain policy gradient; with SGD the range "
    "is two decades against one. PPO-KL with SGD has the narrowest, half a decade: from step size 10 on, the step "
    "against the penalty overshoots. Neither clip nor penalty bounds a step, so at the largest sizes both end at or "
    "below the plain policy gradient (0.62 and 0.01 against 0.74). TRPO needs its limit only to within 1.5 decades, "
    "from 0.003 to 0.1 nats. Adam does not help with steps that are too large. Afterwards there is no way back: the "
    "norm of the exact gradient, 1.3 at the start, is 1e-3 for SGD, 1e-9 for the policy gradient by Adam, and below "
    "1e-11 for TRPO with 1 nat, while their returns are far from the best."
)

ACTOR: dict[str, Any] = {"gamma": GAMMA, "gae_lambda": 1.0}
# With their gradient steps on a batch.
METHODS: dict[str, tuple[Method, int]] = {
    "policy gradient, 1 step a batch": (reinforce.Reinforce(gamma=GAMMA, baseline="value", units="action"), 1),
    "PPO-clip, 10 steps": (ppo.PPO(**ACTOR, value_coef=0.0), 10),
    "PPO-KL, 10 steps": (ppo_kl.PPOKL(**ACTOR, value_coef=0.0), 10),
}
SAMPLES = {"num_episodes": 8, "num_steps": 25, "seed": 5}
WORKS = 0.9


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    num_updates, num_sizes = max(2, round(60 * effort)), max(2, round(11 * effort))
    worlds = random_worlds(seeds, num_states=20, num_actions=4, seed=1)
    sizes = {name: np.logspace(low, low + 5, num_sizes) for name, low in (("SGD", -2), ("Adam", -4), ("TRPO", -4))}
    data = {f"sizes {name}": x for name, x in sizes.items()}
    many = repeat(worlds, num_sizes)
    uniform = torch.zeros_like(many.rewards)
    for rule, optimizer in {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}.items():
        for name, (method, epochs) in METHODS.items():
            steps = {"optimizer": optimizer, "step_sizes": sizes[rule].tolist(), "epochs": epochs}
            collect = sampler(method, many, **SAMPLES)
            logits = _last(updates(method, uniform, collect, num_updates=num_updates, **steps))
            data[f"return {rule} {name}"] = success(many, logits).view(num_sizes, seeds).numpy()
            data[f"gradient {rule} {name}"] = _norms(many, logits).view(num_sizes, seeds).numpy()
    ends = []
    for max_kl in sizes["TRPO"].tolist():
        limited = trpo.TRPO(**ACTOR, max_kl=max_kl, damping=1e-3)
        collect = sampler(limited, worlds, **SAMPLES)
        ends.append(_last(trust_region_updates(limited, uniform[:seeds], collect, num_updates=num_updates)))
    data["return TRPO TRPO"] = successes(worlds, ends).numpy()
    data["gradient TRPO TRPO"] = torch.stack([_norms(worlds, x) for x in ends]).numpy()
    return data


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharex="col", sharey="row")
    units = {"SGD": "step size of SGD", "Adam": "step size of Adam", "TRPO": "limit on KL(old || new), nats per state"}
    for column, (rule, unit) in enumerate(units.items()):
        sizes = data[f"sizes {rule}"]
        for name in ["TRPO"] if rule == "TRPO" else METHODS:
            color = {"color": "C3"} if rule == "TRPO" else {}
            returns = data[f"return {rule} {name}"]
            draw_band(
                axes[0, column], sizes, returns, f"{name}: {working_decades(sizes, returns):.1f} decades", **color
            )
            draw_band(axes[1, column], sizes, data[f"gradient {rule} {name}"], name, **color)
        axes[0, column].axhline(WORKS, color="grey", linestyle=":")
        axes[0, column].legend(title=f"median of at least {WORKS} over", fontsize="small")
        axes[0, column].set_title(rule)
        axes[1, column].set(xlabel=unit, xscale="log", yscale="log", ylim=(1e-13, 10))
    axes[0, 0].set(ylabel="return after training\n(uniform policy 0, best 1)", ylim=(-0.4, 1.05))
    axes[1, 0].set_ylabel("norm of the exact gradient\nafter training")
    return figure


def working_decades(sizes: np.ndarray, returns: np.ndarray) -> float:
    """Between the smallest and the largest size whose median return reaches `WORKS`, decades."""
    works = sizes[np.median(returns, axis=-1) >= WORKS]
    return float(np.log10(works.max() / works.min())) if len(works) else 0.0


def _last(training: Iterable[Update]) -> torch.Tensor:
    *_, last = training
    return last.new


def _norms(worlds: Any, logits: torch.Tensor) -> torch.Tensor:
    return exact_gradient(worlds, logits).flatten(1).norm(dim=1)
