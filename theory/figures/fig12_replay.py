"""Figure 12: the replay ladder (lecture 004). Old actions mislead both halves of an actor-critic: a critic of states
learns the value of whoever acted, and the buffer's actions are not those the policy would take. A critic of actions
with a' ~ pi mends the first, a_i ~ pi the second. Then: two ways to differentiate through an action, by dimension.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, vmap

from rlhf.core import losses
from rlhf.core.kl import categorical_kl
from rlhf.core.random import categorical, gaussians, uniforms
from theory import mdp
from theory.figures.replay_tables import (
    BOTH,
    DRAWN,
    LADDER,
    Q,
    V,
    accepted_gradient,
    expected_gradients,
    loss,
    transitions,
)
from theory.figures.tabular import GAMMA, draw_band, exact_gradient, random_worlds, sample, successes
from theory.mdp import Mdp

NUMBER = 12
TITLE = "Replay: what each resampling mends; score function against reparameterisation"
SEES = (
    "Take as right the gradient on the buffer's states. With the buffer's actions the expected gradient misses it by "
    "14 % with a critic of states and by 12 % with one of actions when the policy is 0.012 nats from the buffer, and "
    "by 0.47 and 0.53 of its length at 0.25 nats; once a_i ~ pi as well, one or the mean of several, the error is 0 "
    "to rounding. The states that are then just accepted cost little: the cosine with the gradient of J is still 0.96 "
    "at 2 nats, against 0.56 and 0.47 for the lower rungs. More actions at a state lower the noise, from 3.2 times the "
    "gradient for K = 1 to 1.8 for 16; the choice of the state remains. On the policy's own buffer all rungs learn "
    "alike, to 0.97 or more. On a fixed buffer of another policy they do not: 0.72 with V, which knows only what that "
    "policy is worth, 0.88 with Q, 0.89 to 0.90 with both resamplings, which are ahead after 200 of the 800 gradient "
    "steps, 0.84 against 0.73 and 0.62. The variance of the score function, relative to the squared gradient, grows "
    "with the dimension from 2.9 to 74 at 64; reparameterised it is 0.25, sigma^2, in every dimension."
)

SKEW, KEPT, NUM_ROWS, ITERATIONS, GRADIENT_STEPS = 2.0, 8 * 25, 128, 40, 20
RATES = (0.03, 0.1)
SPREAD = 0.5


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    data = _biases(seeds, effort) | by_dimension(seeds, effort) | _noise(seeds, effort)
    return data | _trained(seeds, effort, offline=False) | _trained(seeds, effort, offline=True)


def _biases(seeds: int, effort: float) -> dict[str, np.ndarray]:
    world = random_worlds(seeds, num_states=5, num_actions=3, seed=12)
    acted, direction = (gaussians(uniforms(12, "logits", i, torch.arange(seeds), 15)).view(-1, 5, 3) for i in (0, 1))
    rows: dict[str, list[Tensor]] = {}
    for distance in torch.logspace(-2, 0.6, max(2, round(20 * effort)), dtype=torch.float64):
        logits = acted + distance * direction
        accepted, true = accepted_gradient(world, acted, logits), exact_gradient(world, logits)
        rows.setdefault("kl", []).append(categorical_kl(acted, logits).mean(-1))
        rows.setdefault("cosine accepted", []).append(_cosine(accepted, true))
        for rung in (V, Q, BOTH.format(1)):
            found, _ = expected_gradients(rung, world, acted, logits)
            rows.setdefault(f"bias {rung}", []).append(_norm(found - accepted) / _norm(accepted))
            rows.setdefault(f"cosine {rung}", []).append(_cosine(found, true))
    return {name: torch.stack(values).numpy() for name, values in rows.items()}


def _noise(seeds: int, effort: float) -> dict[str, np.ndarray]:
    """Root mean square error of the gradient from single replayed states, over the size of its mean, by K."""
    num_rows = max(50, round(4000 * effort))
    world = random_worlds(seeds, num_states=5, num_actions=3, seed=12)
    logits = gaussians(uniforms(12, "logits", 0, torch.arange(seeds), 15)).view(seeds, 5, 3)
    accepted = accepted_gradient(world, logits, logits)
    critic = vmap(lambda w, p: mdp.action_values(w, p, gamma=GAMMA))(world, logits.softmax(-1))
    visits = vmap(lambda w, p: mdp.occupancy(w, p, gamma=GAMMA))(world, logits.softmax(-1))
    errors = []
    for drawn in DRAWN:
        draws = uniforms(12, "states", drawn, torch.arange(seeds * num_rows), 2 + drawn)
        runs = torch.arange(seeds).repeat_interleave(num_rows)
        cells = {"runs": runs, "states": categorical(visits.log()[runs], draws[:, :1]).squeeze(1)}
        cells |= {name: torch.zeros_like(runs) for name in ("actions", "next_states")}
        batch = transitions(world, cells, draws[:, 1:], torch.ones(len(runs), dtype=torch.float64))
        # One policy for each row: the gradient of each is that of its row alone.
        alone = batch._replace(inputs=batch.inputs | {"runs": torch.arange(len(runs)).unsqueeze(1)})
        tables = (logits[runs], critic[runs])
        each = -grad(lambda x, b=alone, c=tables[1], k=drawn: loss(BOTH.format(k), x, c, b).sum())(tables[0])
        squares = (each - accepted[runs]).square().flatten(1).sum(1).view(seeds, -1).mean(1)
        errors.append(squares.sqrt() / _norm(accepted))
    return {"drawn": np.array(DRAWN), "error": torch.stack(errors).numpy()}


def _trained(seeds: int, effort: float, *, offline: bool) -> dict[str, np.ndarray]:
    """Every iteration takes `GRADIENT_STEPS` on random rows of a buffer that keeps everything: what the policy does
    itself, `KEPT` steps an iteration, or, offline, as many steps in all of one policy that is far from good.
    """
    world = random_worlds(seeds, num_states=20, num_actions=4, seed=1)
    runs, num_iterations = torch.arange(seeds).repeat_interleave(NUM_ROWS), max(2, round(ITERATIONS * effort))
    num_steps = GRADIENT_STEPS if effort > 0.1 else 2
    skewed = SKEW * gaussians(uniforms(12, "skew", 0, torch.arange(seeds), 80)).view(seeds, 20, 4)
    data: dict[str, Any] = {}
    for rung, (of_actions, _) in LADDER.items():
        logits = torch.zeros_like(world.rewards).requires_grad_()
        critic = torch.zeros_like(world.rewards[..., : None if of_actions else 1]).requires_grad_()
        optimizer = torch.optim.Adam([{"params": [x], "lr": lr} for x, lr in zip((logits, critic), RATES, strict=True)])
        kept = _steps(world, skewed, 8 * num_iterations, 0) if offline else torch.empty(seeds, 0, 3, dtype=torch.int64)
        policies = []
        for i in range(num_iterations):
            if not offline:
                kept = torch.cat([kept, _steps(world, logits.detach(), 8, i)], dim=1)
            for step in range(i * GRADIENT_STEPS, i * GRADIENT_STEPS + num_steps):
                draws = uniforms(12, "replay", step, torch.arange(len(runs)), 2 + DRAWN[-1])
                rows = kept[runs, (draws[:, 0] * kept.shape[1]).long()]
                cells = dict(zip(("states", "actions", "next_states"), rows.unbind(1), strict=True)) | {"runs": runs}
                used = draws[:, 1 : 2 + LADDER[rung][1]]
                batch = transitions(world, cells, used, torch.ones(len(runs), dtype=torch.float64))
                optimizer.zero_grad()
                loss(rung, logits, critic, batch).sum().backward()
                optimizer.step()
            policies.append(logits.detach().clone())
        data[f"return {offline} {rung}"] = successes(world, policies).numpy()
    return data


def _steps(world: Mdp, logits: Tensor, num_episodes: int, update: int) -> Tensor:
    """`(R, N, 3)` states, actions and next states of the policy."""
    acted = sample(world, logits, num_episodes=num_episodes, num_steps=25, seed=12, update=update)
    assert acted.next_inputs is not None
    parts = (acted.inputs["states"], acted.inputs["actions"], acted.next_inputs["states"])
    return torch.stack(parts, dim=-1).view(len(logits), -1, 3)


def by_dimension(seeds: int, effort: float) -> dict[str, np.ndarray]:
    """Variance over |gradient|^2 of one action's gradient in the mean of N(0, SPREAD^2), Q(a) = -|a - 1|^2 / 2."""
    dimensions = np.array([1, 2, 4, 8, 16, 32, 64]) if effort > 0.1 else np.array([1, 4])
    num_samples = max(50, round(4000 * effort))
    rows: dict[str, list[Tensor]] = {"score function": [], "reparameterised": []}
    for d in dimensions.tolist():
        noise = gaussians(uniforms(12, "noise", d, torch.arange(seeds * num_samples), d))
        gains = _quality(SPREAD * noise) + 0.5 * d * (1.0 + SPREAD**2)

        def score_loss(mean: Tensor, e: Tensor, gain: Tensor) -> Tensor:
            logprob = -0.5 * ((SPREAD * e - mean) / SPREAD).square().sum()
            return losses.policy_gradient_loss(logprob, gain)

        origin = torch.zeros(d, dtype=torch.float64)
        found = {
            "score function": -vmap(grad(score_loss), in_dims=(None, 0, 0))(origin, noise, gains),
            "reparameterised": vmap(grad(lambda mean, e: _quality(mean + SPREAD * e)), in_dims=(None, 0))(
                origin, noise
            ),
        }
        for name, gradients in found.items():
            # The gradient in the mean is 1 in every dimension.
            rows[name].append((gradients.view(seeds, -1, d) - 1.0).square().mean(1).sum(-1) / d)
    return {"dimensions": dimensions} | {f"variance {name}": torch.stack(x).numpy() for name, x in rows.items()}


def _quality(actions: Tensor) -> Tensor:
    return -0.5 * (actions - 1.0).square().sum(-1)


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(14, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    divergence = np.median(data["kl"], axis=-1)
    for rung in (V, Q):
        draw_band(axes[0, 0], divergence, data[f"bias {rung}"], rung)
    largest = data[f"bias {BOTH.format(1)}"].max()
    axes[0, 0].plot([], [], label=f"{BOTH.format('any')}: at most {largest:.0e}")
    for rung in (V, Q, BOTH.format(1)):
        draw_band(axes[0, 1], divergence, data[f"cosine {rung}"], rung)
    draw_band(axes[0, 2], data["drawn"], data["error"], BOTH.format("K"), marker=".", color="C2")
    for panel, offline in ((axes[1, 0], False), (axes[1, 1], True)):
        for rung in LADDER:
            returns = data[f"return {offline} {rung}"]
            draw_band(panel, GRADIENT_STEPS * np.arange(1, len(returns) + 1), returns, rung)
        panel.set(xlabel="gradient steps", ylabel="return (uniform policy 0, best 1)")
        panel.set_title(
            "buffer of another policy" if offline else f"own buffer, {KEPT} more every {GRADIENT_STEPS} gradient steps"
        )
    for name in ("score function", "reparameterised"):
        draw_band(axes[1, 2], data["dimensions"], data[f"variance {name}"], name, marker=".")
    away = "KL(buffer || policy), nats per state"
    axes[0, 0].set(xlabel=away, ylabel="|E[estimate] - g| / |g|, g on the buffer's states", xscale="log", yscale="log")
    axes[0, 1].set(xlabel=away, ylabel="cosine of E[estimate] with grad J", xscale="log")
    axes[0, 2].set(xlabel="K, actions drawn at a replayed state", ylabel="error of one state's gradient / |g|")
    axes[0, 2].set(xscale="log", yscale="log")
    axes[1, 2].set(xlabel="dimensions of the action", ylabel="variance of one action's gradient / |gradient|^2")
    axes[1, 2].set(xscale="log", yscale="log")
    for panel in axes.flat:
        panel.legend(fontsize="small")
    return figure


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(1) / (_norm(x) * _norm(y))
