"""Figure 9: gradients from stale data (lectures 003 and 004). Importance weights make the data of an old policy tell of
a new one: the ratio of the single action is biased, products over the trajectory are not, but explode with its length.
Biases are exact: every trajectory of a small world is enumerated.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from rlhf.algorithms import off_policy
from rlhf.algorithms.base import Method
from rlhf.core import importance, kl
from rlhf.core.random import categorical, gaussians, uniforms
from rlhf.rollout import Rollout
from theory import mdp
from theory.figures.episodes import score
from theory.figures.tabular import draw_band, random_worlds, run_means, sample
from theory.mdp import Mdp

NUMBER = 9
TITLE = "Stale data: bias, direction and weights of the corrected gradient"
SEES = (
    "Enumerated exactly, both the ratio of the action alone and no correction are biased, the ratio less than half as "
    "much: at a KL(old || new) of 0.008 nats 11 % of the gradient against 26 %, at 0.17 nats 32 % against 100 %. Both "
    "products and the ratio of state-action marginals (which only a tabular world gives) are unbiased to rounding. In "
    "direction, from 100 episodes of four steps, the single ratio loses little: its cosine is 0.96 or more in the "
    "median at every distance drawn, while the uncorrected gradient falls to 0.74. Along its own steps on one batch it "
    "does lose: the cosine goes from 0.98 to 0.78 in sixty steps, and to 0.92 by the product until the action, as the "
    "KL grows to 1.6 nats and the bias to 0.66 of the gradient (0.41 after five steps). What products cost shows in "
    "longer episodes: two policies 0.036 nats per step apart leave 94 % of the samples effective by the ratio of one "
    "step at any horizon, but by the product 61 % at 8 steps, 26 % at 28 and 5 % at 100."
)

STATES, ACTIONS, STEPS = 3, 2, 4
METHODS: dict[str, Method] = {
    "uncorrected": off_policy.OffPolicy(baseline="none", units="episode"),
    "ratio of the action": off_policy.OffPolicy(baseline="none", units="episode", ratios="action"),
    "marginal ratio": off_policy.OffPolicy(baseline="none", units="episode", ratios="decision"),
    "product until the action": off_policy.OffPolicy(baseline="none", units="episode", ratios="decision"),
    "product over the trajectory": off_policy.OffPolicy(baseline="none", units="episode", ratios="trajectory"),
}
EPISODES, STEP_SIZE = 100, 1.0


def trajectories(world: Mdp, old: Tensor) -> tuple[Rollout, Tensor]:
    """Every trajectory of every run as a row, and the log of its probability `(R, N)` by the transitions alone."""
    num_runs = len(old)
    every = torch.tensor(list(product(range(STATES), range(ACTIONS), repeat=STEPS)))
    runs = torch.arange(num_runs).repeat_interleave(len(every)).unsqueeze(1).expand(-1, STEPS)
    states, actions = (every[:, i::2].repeat(num_runs, 1) for i in (0, 1))
    inputs = {"runs": runs, "states": states, "actions": actions}
    moves = world.transitions[runs[:, 1:], states[:, :-1], actions[:, :-1], states[:, 1:]].log().sum(1)
    by_chance = world.start[runs[:, 0], states[:, 0]].log() + moves
    nothing, logprobs = torch.zeros(runs.shape, dtype=torch.float64), score(old, inputs).logprobs
    rollout = Rollout(
        inputs=inputs,
        behaviour_logprobs=logprobs,
        logprobs=logprobs,
        values=nothing,
        next_values=nothing,
        rewards=world.rewards[runs, states, actions],
        dones=(torch.arange(STEPS) == STEPS - 1).expand(runs.shape),
        mask=torch.ones(runs.shape, dtype=torch.bool),
        sample_ids=torch.arange(len(runs)),
        costs=torch.full((len(runs),), STEPS),
    )
    return rollout, by_chance.view(num_runs, -1)


def gradient(name: str, world: Mdp, rollout: Rollout, old: Tensor, new: Tensor, shares: Tensor) -> Tensor:
    """`(R, S, A)` what `OffPolicy` takes for the gradient of J at `new`, trajectories weighing their `shares`."""
    method, x = METHODS[name], new.clone().requires_grad_()
    logprobs = score(new, rollout.inputs).logprobs
    behaviour = logprobs if name == "uncorrected" else rollout.behaviour_logprobs
    seen = replace(rollout, logprobs=logprobs, behaviour_logprobs=behaviour)
    batch, _ = method.estimate(seen, method.initial_state())
    if name == "marginal ratio":
        batch = batch._replace(weights=_marginal_ratios(world, seen, old, new))
    counts = shares.reshape(-1, 1)
    batch = batch._replace(weights=batch.weights * counts, units=batch.units * counts)
    terms = method.loss(score(x, batch.inputs), batch, {})[0]
    return -torch.autograd.grad(run_means(terms, batch, len(new)).sum(), x)[0]


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    world = random_worlds(seeds, num_states=STATES, num_actions=ACTIONS, seed=3)
    old = _noise(world, 0)
    rollout, by_chance = trajectories(world, old)
    exactly = torch.exp(by_chance + score(old, rollout.inputs).logprobs.sum(1).view(seeds, -1))
    draws = uniforms(9, "trajectories", 0, torch.arange(seeds), EPISODES)
    drawn = torch.nn.functional.one_hot(categorical(exactly.log(), draws), exactly.shape[1]).double().mean(1)
    distances = torch.logspace(-2, 0.7, max(3, round(20 * effort)), dtype=torch.float64)
    rows: dict[str, list[Tensor]] = {}
    for distance in distances:
        new = old + distance * _noise(world, 1)
        truth = true_gradient(rollout, by_chance, new)
        rows.setdefault("kl", []).append(_old_to_new(rollout, exactly, old, new))
        for name in METHODS:
            expected = gradient(name, world, rollout, old, new, exactly)
            rows.setdefault(f"bias {name}", []).append(_norm(expected - truth) / _norm(truth))
            sampled = gradient(name, world, rollout, old, new, drawn)
            rows.setdefault(f"cosine {name}", []).append(_cosine(sampled, truth))
    new = old.clone()
    for _ in range(max(3, round(60 * effort))):
        truth = true_gradient(rollout, by_chance, new)
        rows.setdefault("steps kl", []).append(_old_to_new(rollout, exactly, old, new))
        for name in ("ratio of the action", "product until the action"):
            rows.setdefault(f"steps {name}", []).append(_cosine(gradient(name, world, rollout, old, new, drawn), truth))
        expected = gradient("ratio of the action", world, rollout, old, new, exactly)
        rows.setdefault("steps bias", []).append(_norm(expected - truth) / _norm(truth))
        new = new + STEP_SIZE * gradient("ratio of the action", world, rollout, old, new, drawn)
    return {name: torch.stack(values).numpy() for name, values in rows.items()} | _weights(seeds, effort)


def _weights(seeds: int, effort: float) -> dict[str, np.ndarray]:
    """Share of the samples that is effective, against the horizon, for a policy about 0.036 nats per step away."""
    horizons = np.unique(np.round(np.logspace(0, 2, max(2, round(12 * effort))))).astype(int)
    world = random_worlds(seeds, num_states=20, num_actions=4, seed=4)
    old = _noise(world, 0)
    new = old + 0.35 * _noise(world, 1)
    data: dict[str, list[Tensor]] = {"one step": [], "trajectory": []}
    for horizon in horizons.tolist():
        rollout = sample(world, old, num_episodes=EPISODES, num_steps=horizon, seed=9, update=1)
        log_ratios = score(new, rollout.inputs).logprobs - rollout.behaviour_logprobs
        data["one step"].append(_effective(importance.action_ratios(log_ratios)[:, -1], seeds))
        data["trajectory"].append(_effective(importance.trajectory_ratios(log_ratios, rollout.dones)[:, -1], seeds))
    return {"horizons": horizons} | {f"effective {name}": torch.stack(x).numpy() for name, x in data.items()}


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    divergence = np.median(data["kl"], axis=-1)
    for name in METHODS:
        if data[f"bias {name}"].max() > 1e-9:
            draw_band(axes[0, 0], divergence, data[f"bias {name}"], name)
        else:
            axes[0, 0].plot([], [], label=f"{name}: below 1e-9")
        draw_band(axes[0, 1], divergence, 1.0 - data[f"cosine {name}"], name)
    steps = np.arange(len(data["steps kl"]))
    for name in ("ratio of the action", "product until the action"):
        draw_band(axes[1, 0], steps, data[f"steps {name}"], f"cosine, {name}")
    draw_band(axes[1, 0], steps, data["steps bias"], "|bias| / |gradient|, ratio of the action")
    draw_band(axes[1, 0], steps, data["steps kl"], "KL(old || new), nats per step", color="grey")
    for name in ("one step", "trajectory"):
        draw_band(
            axes[1, 1], data["horizons"], data[f"effective {name}"], f"weights of one {name.removeprefix('one ')}"
        )
    away = "KL(old || new), nats per step"
    axes[0, 0].set(xlabel=away, ylabel="|E[estimate] - gradient| / |gradient|", xscale="log", yscale="log")
    axes[0, 0].set_title("bias, every trajectory enumerated")
    axes[0, 1].set(xlabel=away, ylabel="1 - cosine with the exact gradient", xscale="log", yscale="log")
    axes[0, 1].set_title(f"direction from {EPISODES} episodes")
    axes[1, 0].set(xlabel=f"gradient steps on one batch of {EPISODES} episodes", ylabel="cosine; share; nats")
    axes[1, 1].set(xlabel="steps in an episode", ylabel="effective share of the samples", xscale="log", yscale="log")
    for panel in axes.flat:
        panel.legend(fontsize="small")
    return figure


def true_gradient(rollout: Rollout, by_chance: Tensor, new: Tensor) -> Tensor:
    """Of J = sum of P(trajectory) x return, by differentiating it."""
    x = new.clone().requires_grad_()
    probabilities = torch.exp(by_chance + score(x, rollout.inputs).logprobs.sum(1).view(len(new), -1))
    expected = (probabilities * rollout.rewards.sum(1).view(len(new), -1)).sum()
    return torch.autograd.grad(expected, x)[0]


def _marginal_ratios(world: Mdp, rollout: Rollout, old: Tensor, new: Tensor) -> Tensor:
    steps = torch.arange(STEPS).expand(rollout.mask.shape)
    visited = [
        vmap(lambda w, p: mdp.step_marginals(w, p, num_steps=STEPS))(world, logits.softmax(-1))[
            rollout.inputs["runs"], steps, rollout.inputs["states"]
        ]
        for logits in (new, old)
    ]
    return mdp.marginal_ratios(rollout.logprobs - rollout.behaviour_logprobs, *visited)


def _old_to_new(rollout: Rollout, exactly: Tensor, old: Tensor, new: Tensor) -> Tensor:
    each = kl.categorical_kl(old, new)[rollout.inputs["runs"], rollout.inputs["states"]].mean(1)
    return (exactly * each.view(len(old), -1)).sum(1)


def _noise(world: Mdp, update: int) -> Tensor:
    shape = world.rewards.shape
    return gaussians(uniforms(9, "logits", update, torch.arange(shape[0]), shape[1] * shape[2])).view(shape)


def _effective(weights: Tensor, num_runs: int) -> Tensor:
    each = weights.view(num_runs, -1)
    return vmap(importance.effective_sample_size)(each.sum(1), each.square().sum(1)) / each.shape[1]


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).flatten(1).sum(1) / (_norm(x) * _norm(y))
