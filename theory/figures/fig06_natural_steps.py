"""Figure 6: Equal steps in the parameter are not equal steps in the policy (lecture 000).

One state, two actions, pi = sigmoid(theta) for the better one, which pays 1: J = pi. The same change of theta moves the
policy much at theta = 0 and hardly at all at theta = 4, and the gradient vanishes where the policy is sure. A natural
step divides by the Fisher matrix, so it covers the same KL wherever it starts.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, hessian, vmap

from rlhf.core.kl import categorical_kl
from rlhf.core.trust_region import step_length

NUMBER = 6
TITLE = "Equal steps in theta, unequal steps in the policy; natural steps"
SEES = (
    "A step of 1 logit raises pi by 0.231 from theta = 0, by 0.072 from 2 and by 0.011 from 4; its KL falls from "
    "0.120 to 0.041 and 0.0065 nats. The gradient, which is p (1 - p), falls from 0.25 to 0.018 on the way, so its "
    "steps shrink twice over: at theta = 4 their KL is 2,800 times less than at 0. The natural gradient is 1 "
    "everywhere, and its steps of quadratic KL 0.01 cost 0.010 nats at 0 and 0.007 at 4; the slope that is left is "
    "the error of the quadratic. They raise pi by 0.070 from 0, 0.039 from 2 and 0.012 from 4, where gradient steps "
    "of rate 1 do by 0.062, 0.011 and 0.0003."
)

STARTS = (0.0, 2.0, 4.0)
MAX_KL = 0.01
LEARNING_RATE = 1.0


def logits(theta: Tensor) -> Tensor:
    return torch.stack([theta, torch.zeros_like(theta)], dim=-1)


def moved(theta: Tensor, step: Tensor) -> Tensor:
    """KL(old || new) of a step, nats."""
    return categorical_kl(logits(theta), logits(theta + step))


def fisher(theta: Tensor) -> Tensor:
    """The Hessian of KL(old || new) at new = old, which is p (1 - p)."""
    return hessian(lambda step: moved(theta, step))(torch.zeros_like(theta))


def natural_step(theta: Tensor) -> Tensor:
    """The multiple of F^-1 g whose quadratic KL is MAX_KL."""
    direction = grad(torch.sigmoid)(theta) / fisher(theta)
    return step_length(direction * fisher(theta) * direction, max_kl=MAX_KL) * direction


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    """Exact: nothing is sampled, so `seeds` plays no part."""
    points = max(int(200 * effort), 10)
    steps = torch.logspace(-2, 1, points, dtype=torch.float64)
    thetas = torch.linspace(-4, 6, points, dtype=torch.float64)
    starts = torch.tensor(STARTS, dtype=torch.float64)
    gradients, naturals = vmap(grad(torch.sigmoid))(thetas), vmap(natural_step)(thetas)
    columns = {
        "steps": steps,
        "thetas": thetas,
        "kl_of_steps": moved(starts[:, None].expand(-1, points), steps.expand(len(STARTS), -1)),
        "change_of_steps": torch.sigmoid(starts[:, None] + steps) - torch.sigmoid(starts[:, None]),
        "gradient": gradients,
        "natural_gradient": gradients / vmap(fisher)(thetas),
        "kl_gradient": moved(thetas, LEARNING_RATE * gradients),
        "kl_natural": moved(thetas, naturals),
        "change_gradient": torch.sigmoid(thetas + LEARNING_RATE * gradients) - torch.sigmoid(thetas),
        "change_natural": torch.sigmoid(thetas + naturals) - torch.sigmoid(thetas),
    }
    return {name: column.numpy() for name, column in columns.items()}


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    panels = figure.subplots(2, 3)
    for start, kl, change in zip(STARTS, data["kl_of_steps"], data["change_of_steps"], strict=True):
        panels[0, 0].loglog(data["steps"], kl, label=f"from theta = {start:g}")
        panels[0, 1].semilogx(data["steps"], change, label=f"from theta = {start:g}")
    panels[0, 0].set(ylabel="KL(old || new), nats", title="KL of one step", ylim=(1e-7, 10))
    panels[0, 1].set(ylabel="change of pi", title="How much surer the policy becomes")
    thetas = data["thetas"]
    panels[1, 0].semilogy(thetas, data["gradient"], label="gradient of J")
    panels[1, 0].semilogy(thetas, data["natural_gradient"], label="natural gradient")
    panels[1, 0].set(ylabel="size, return per unit of theta", title="Gradients")
    for panel, name in ((panels[1, 1], "kl"), (panels[1, 2], "change")):
        panel.semilogy(thetas, data[f"{name}_gradient"], label=f"gradient step, rate {LEARNING_RATE:g}")
        panel.semilogy(thetas, data[f"{name}_natural"], label=f"natural step, quadratic KL = {MAX_KL:g}")
    panels[1, 1].axhline(MAX_KL, color="gray", linewidth=0.8, linestyle="--")
    panels[1, 1].set(ylabel="KL(old || new), nats", title="KL of the two steps")
    panels[1, 2].set(ylabel="change of pi", title="How much surer the two steps make it")
    panels[0, 2].remove()
    for panel in panels[0, :2]:
        panel.set_xlabel("step in theta, logits")
    for panel in panels[1]:
        panel.set_xlabel("theta, the logit of the better action")
        for start in STARTS:
            panel.axvline(start, color="gray", linewidth=0.6, linestyle=":")
    for panel in figure.axes:
        panel.legend()
        panel.grid(alpha=0.3)
    return figure
