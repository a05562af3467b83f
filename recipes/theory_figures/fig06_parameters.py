"""Figure 6: equal steps in theta are not equal steps in behaviour (lecture 000). pi(a_1) = sigmoid(theta) is 0.5, 0.88
and 0.98 at theta = 0, 2 and 4; a natural step is as long in theta as its KL allows.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from rlhf.core.kl import categorical_kl
from rlhf.core.trust_region import step_length

NUMBER = 6
TITLE = "Steps in theta, in probability and in KL: pi = sigmoid(theta)"
SEES = (
    "One step of +1 in theta changes the probability by 0.231 at theta = 0, by 0.072 at 2 and by 0.011 at 4, and "
    "costs a KL(old || new) of 0.120, 0.041 and 0.0066 nats; the gradient, 0.25, 0.105 and 0.018, vanishes just as "
    "the policy gets sure. For one and the same delta the natural step is longer where the policy is surer, sqrt(2 "
    "delta / (p (1 - p))): for delta = 0.01 it is 0.28, 0.44 and 1.06. The quadratic model behind it holds for small "
    "delta only: at delta = 1 the step down from theta = 4 really costs 6.4 nats and the step up 0.17, which is why "
    "TRPO searches along its line instead of trusting the length."
)

STARTS = (0.0, 2.0, 4.0)


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    starts = torch.tensor(STARTS, dtype=torch.float64).unsqueeze(1)
    steps = torch.linspace(-2.0, 2.0, max(5, 2 * round(100 * effort) + 1), dtype=torch.float64)
    limits = torch.logspace(-4, 0, max(3, round(60 * effort)), dtype=torch.float64)
    # The Fisher matrix of one logit is p (1 - p): the curvature that `step_length` asks for, of a unit step in theta.
    fisher = torch.sigmoid(starts) * torch.sigmoid(-starts)
    natural = torch.stack(
        [vmap(partial(step_length, max_kl=limit))(fisher.squeeze(1)) for limit in limits.tolist()], dim=1
    )
    theta = torch.linspace(-6.0, 6.0, 121, dtype=torch.float64)
    return {
        "theta": theta.numpy(),
        "gradient": (torch.sigmoid(theta) * torch.sigmoid(-theta)).numpy(),
        "steps": steps.numpy(),
        "change": (torch.sigmoid(starts + steps) - torch.sigmoid(starts)).numpy(),
        "kl": old_to_new(starts, starts + steps).numpy(),
        "limits": limits.numpy(),
        "natural": natural.numpy(),
    } | {
        f"natural {name} {way}": measure(starts, starts + sign * natural).numpy()
        for name, measure in (("kl", old_to_new), ("change", lambda old, new: torch.sigmoid(new) - torch.sigmoid(old)))
        for way, sign in (("up", 1.0), ("down", -1.0))
    }


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3)
    marks = np.array(STARTS)
    probabilities = 1.0 / (1.0 + np.exp(-data["theta"]))
    axes[0, 0].plot(data["theta"], probabilities, color="k", label="pi(a_1)")
    axes[0, 0].plot(data["theta"], data["gradient"], color="grey", label="gradient of J for rewards (1, 0)")
    axes[0, 0].scatter(marks, 1.0 / (1.0 + np.exp(-marks)), c=["C0", "C1", "C2"], zorder=3)
    axes[0, 0].set_ylim(-0.05, 1.5)
    axes[0, 0].set(xlabel="theta", ylabel="probability; gradient")
    for i, start in enumerate(STARTS):
        label = f"theta = {start:g}"
        axes[0, 1].plot(data["steps"], data["change"][i], label=label)
        axes[0, 2].plot(data["steps"], data["kl"][i], label=label)
        axes[1, 0].plot(data["limits"], data["natural"][i], label=label)
        for way, line in (("down", "-"), ("up", "--")):
            style = {"color": f"C{i}", "linestyle": line, "label": f"{label}, {way}"}
            axes[1, 1].plot(data["limits"], np.abs(data[f"natural change {way}"][i]), **style)
            axes[1, 2].plot(data["limits"], data[f"natural kl {way}"][i] / data["limits"], **style)
    axes[0, 1].set(xlabel="step in theta", ylabel="change of pi(a_1)")
    axes[0, 2].set(xlabel="step in theta", ylabel="KL(old || new), nats", yscale="log", ylim=(1e-6, 3))
    axes[1, 0].set(xlabel="delta, nats", ylabel="natural step in theta", xscale="log", yscale="log")
    axes[1, 1].set(xlabel="delta, nats", ylabel="change of pi(a_1) by it", xscale="log", yscale="log")
    axes[1, 2].set(xlabel="delta, nats", ylabel="KL(old || new) of it / delta", xscale="log", yscale="log")
    for panel in (*axes[0], axes[1, 0], axes[1, 2]):
        panel.legend(fontsize="small")
    return figure


def old_to_new(old: Tensor, new: Tensor) -> Tensor:
    """KL(old || new) of two actions whose logits are theta and 0, nats."""

    def logits(theta: Tensor) -> Tensor:
        return torch.stack([theta, torch.zeros_like(theta)], dim=-1)

    return categorical_kl(logits(old).expand(*new.shape, 2), logits(new))
