"""Figure 2: Which baseline has the least variance (lectures 001, 002 and 003).

No baseline biases the gradient as long as it does not know the action, but none is sure to lower the variance either:
only the optimal one, b* = E[|grad log pi|^2 Q] / E[|grad log pi|^2], is the least of its class. The mean return is a
different number, and a batch's own mean knows the action and shrinks the gradient to (N - 1) / N.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import grad

from rlhf.algorithms import reinforce
from rlhf.rollout import Batch, PolicyOutput, single_steps
from theory.figures.episodes import play, score, with_values
from theory.figures.sampling import band, draw_band, episode_gradients, horizon_values, variance
from theory.mdp import Mdp, random_mdps

NUMBER = 2
TITLE = "Variance of the gradient against the baseline"
SEES = (
    "Of two actions with p = (.9, .1), r = (1, 0) the mean reward as a baseline has 64 times the variance of none "
    "(.0576 against .0009), and b* = .1 has none at all. In 10 random MDPs of ten steps E[G_t] and b* are within 5 % "
    "of each other and leave 24 % of the variance; so the mean is a good guess, not a rule. The mean of whole "
    "episodes' returns, twice as large, helps little (77 %, without oneself 82 %); a mean for each time step does "
    "much more (3.2 and 5.7 %), like the exact value (4.3 %). That a mean which holds one's own return looks best is "
    "its shrinkage: its gradient is 0.746 of the true one, where (N - 1) / N is 0.75; all others are unbiased within "
    "their intervals."
)

# Two actions with these probabilities and rewards: so sure of itself that the mean reward is a bad baseline.
PROBABILITIES, REWARDS = (0.9, 0.1), (1.0, 0.0)
NUM_STEPS, BATCH = 10, 4
PLAIN = reinforce.Reinforce(baseline="none")
KINDS = ("none", "mean", "leave_one_out", "step_mean", "step_leave_one_out", "least_variance", "value")


class Table(nn.Module):
    """A table of logits as a policy of the seam, for what asks for a module."""

    memoryless = True

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs: dict[str, Tensor]) -> PolicyOutput:
        return score(self.logits.unsqueeze(0), inputs | {"runs": torch.zeros_like(inputs["runs"])})


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    """The bandit exactly; for each seed a random MDP, by samples."""
    shares = torch.linspace(-0.5, 2.0, max(int(60 * effort), 6), dtype=torch.float64)
    world = random_mdps(seeds, num_states=4, num_actions=3, seed=2)
    world = world._replace(rewards=(world.rewards + 1.0) / 2.0)
    logits = torch.randn(seeds, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    constants, marks = against_constants(world, logits, shares, num_episodes=max(int(4000 * effort), 8))
    alone = [(Mdp(*(x[i : i + 1] for x in world)), logits[i : i + 1]) for i in range(seeds)]
    num_batches = max(int(400 * effort), 8)
    kinds = [[by_kind(*one, kind, num_batches=num_batches) for kind in KINDS] for one in alone]
    return {
        "bandit_baselines": np.linspace(-0.2, 1.1, 131),
        "bandit": bandit(torch.linspace(-0.2, 1.1, 131, dtype=torch.float64)).numpy(),
        "shares": shares.numpy(),
        "constants": constants.numpy(),
        "marks": marks.numpy(),
        "kinds": np.array(kinds),
    }


def bandit(baselines: Tensor) -> Tensor:
    """Variance of grad log pi (r - b) in the one parameter, the difference of the logits; exact."""
    p, r = torch.tensor(PROBABILITIES, dtype=torch.float64), torch.tensor(REWARDS, dtype=torch.float64)
    each = torch.stack([p[1], -p[0]]) * (r - baselines.unsqueeze(-1))
    return (p * each.square()).sum(-1) - (p * each).sum(-1).square()


def against_constants(world: Mdp, logits: Tensor, shares: Tensor, *, num_episodes: int) -> tuple[Tensor, Tensor]:
    """Variances of an episode's gradient with `shares` of E[G_t] as the baseline, `(seeds, points)`, in that without;
    and, in E[G_t], b* of single actions and the constant that is best for the whole episode, `(seeds, 2)`.
    """
    rollout = play(world, logits, num_episodes=num_episodes, num_steps=NUM_STEPS, seed=0)
    batch, _ = PLAIN.estimate(rollout, {})
    # A gradient is linear in the baseline, so two of them make all.
    plain, scores = (
        gradients(logits, batch),
        gradients(logits, batch._replace(advantages=torch.ones_like(batch.weights))),
    )
    mean = batch.advantages.unflatten(0, (len(logits), -1)).mean((1, 2))
    table = torch.stack([variance(plain - (x * mean).view(-1, 1, 1, 1) * scores) for x in shares], dim=1)
    best = ((plain - plain.mean(1, keepdim=True)) * scores).sum((1, 2, 3)) / scores.square().sum((1, 2, 3))
    single = []
    for i, rows in enumerate(torch.arange(len(batch.mask)).chunk(len(logits))):
        part = batch.rows(rows[:400])
        baselines = reinforce.batch_baseline(
            Table(logits[i]), single_steps(part), part.mask, "least_variance", Accelerator(cpu=True)
        )
        single.append(baselines.mean())
    return table / variance(plain).unsqueeze(1), torch.stack([torch.stack(single), best], dim=1) / mean.unsqueeze(1)


def by_kind(world: Mdp, logits: Tensor, kind: Any, *, num_batches: int) -> tuple[float, float]:
    """Variance of the gradient of a batch, and the part of the exact gradient that its mean has."""
    values = horizon_values(world, logits, num_steps=NUM_STEPS)
    rollout = play(world, logits, num_episodes=num_batches * BATCH, num_steps=NUM_STEPS, seed=1)
    rollout = with_values(rollout, values, bootstrap=False)
    batch, _ = replace(PLAIN, baseline=kind).estimate(rollout, {})
    if kind not in ("none", "value"):
        policy, accelerator = Table(logits[0]), Accelerator(cpu=True)
        parts = [batch.rows(rows) for rows in torch.arange(len(batch.mask)).split(BATCH)]
        baselines = [
            reinforce.batch_baseline(policy, single_steps(part), part.mask, kind, accelerator) for part in parts
        ]
        batch = batch._replace(advantages=batch.advantages - torch.cat(baselines))
    each = gradients(logits, batch).unflatten(1, (num_batches, BATCH)).mean(2)
    exact = grad(lambda x: (world.start * horizon_values(world, x, num_steps=NUM_STEPS)[:, 0]).sum())(logits)
    return variance(each).item(), ((each.mean(1) * exact).sum() / exact.square().sum()).item()


def gradients(logits: Tensor, batch: Batch) -> Tensor:
    return episode_gradients(logits, batch, PLAIN.objective({}))


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    (coin, constant), (kinds, bias) = figure.subplots(2, 2)
    mean = np.dot(PROBABILITIES, REWARDS)
    coin.plot(data["bandit_baselines"], data["bandit"], label="exact variance")
    for b, name in ((0.0, "none"), (mean, "E[r]"), (1.0 - mean, "b*")):
        coin.plot(b, bandit(torch.tensor([b])).item(), "o", label=f"{name} = {b:.1f}")
    coin.set(
        xlabel="baseline b, return",
        ylabel="variance, (return / logit)^2",
        title="Two actions: p = (.9, .1), r = (1, 0)",
    )
    draw_band(constant, data["shares"], data["constants"], label=f"{len(data['kinds'])} random MDPs")
    constant.axvline(1.0, color="black", linestyle="--", label="E[G_t]")
    for mark, name, color in zip(data["marks"].T, ("b* of single actions", "best for the episode"), "gr", strict=True):
        constant.axvspan(*np.quantile(mark, (0.25, 0.75)), color=color, alpha=0.2, linewidth=0)
        constant.axvline(np.median(mark), color=color, label=name)
    constant.set(
        xlabel="constant baseline, in E[G_t]",
        ylabel="variance, in that without a baseline",
        title="Ten steps, one constant",
    )
    relative, rows = data["kinds"][:, :, 0] / data["kinds"][:, :1, 0], np.arange(len(KINDS))
    middle, low, high = band(relative)
    kinds.errorbar(middle, rows, xerr=(middle - low, high - middle), fmt="o", label="median, interquartile range")
    kinds.set(xlabel="variance, in that without a baseline", title=f"Batches of {BATCH} episodes", xscale="log")
    part = data["kinds"][:, :, 1]
    error = 2.0 * part.std(0, ddof=1) / len(part) ** 0.5
    bias.errorbar(part.mean(0), rows, xerr=error, fmt="o", label="mean, 95 % interval")
    bias.axvline(1.0, color="gray", linewidth=0.8)
    bias.axvline(1.0 - 1.0 / BATCH, color="gray", linestyle="--", label="(N - 1) / N")
    bias.set(xlabel="share of the exact gradient in the mean gradient", title="Bias of the same batches")
    for panel in (kinds, bias):
        panel.set_yticks(rows, KINDS)
        panel.invert_yaxis()
    for panel in (coin, constant, kinds, bias):
        panel.grid(alpha=0.3)
        panel.legend()
    return figure
