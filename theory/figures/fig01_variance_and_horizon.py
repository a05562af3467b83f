"""Figure 1: How the variance of a policy gradient grows with the horizon (lecture 001).

One episode's gradient is a sum of H scores, each weighed by a credit. Credits that grow with the horizon (the return,
the rewards to go) give a variance of H^3; less the value of the state, what is left of them is noise of variance H,
which gives H^2; exact advantages do not grow at all, which leaves H.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rlhf.algorithms import reinforce
from rlhf.rollout import Batch, Rollout
from theory.figures.episodes import play, with_values
from theory.figures.sampling import draw_band, episode_gradients, horizon_values, variance
from theory.mdp import Mdp, random_mdps

NUMBER = 1
TITLE = "Variance of one episode's gradient against the horizon"
SEES = (
    "The variance of one episode's gradient grows as H^3.01 for the total return, H^2.90 for the reward to go (each "
    "doubling of H brings it nearer to 3), H^1.96 less the exact value of the state and H^1.03 for exact advantages "
    "(medians of 10 random MDPs). At H = 80 the medians are 58,800, 20,000, 141 and 2.2: of a factor of 26,500, "
    "causality gives 3, the value baseline 142 and knowing the advantage 64. Rewards lie in [0, 1]; were "
    "their mean 0, returns would grow slower and so would the first two lines."
)

HORIZONS = (5, 10, 20, 40, 80)
CREDITS = {
    "total return": reinforce.Reinforce(returns="total", baseline="none"),
    "reward to go": reinforce.Reinforce(returns="to_go", baseline="none"),
    "reward to go - V(s)": reinforce.Reinforce(returns="to_go", baseline="value"),
}
EXACT = "exact advantage"


def worlds(num_worlds: int) -> Mdp:
    """MDPs that never end and whose rewards lie in [0, 1]: with a mean of 0, returns would hardly grow."""
    world = random_mdps(num_worlds, num_states=5, num_actions=3, seed=1)
    return world._replace(rewards=(world.rewards + 1.0) / 2.0)


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    """Variances `(seeds, credits, horizons)`; every seed is a world of its own, with a policy of random logits."""
    num_episodes = max(int(2000 * effort), 8)
    world = worlds(seeds)
    logits = torch.randn(seeds, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    table = torch.empty(seeds, len(CREDITS) + 1, len(HORIZONS), dtype=torch.float64)
    for h, horizon in enumerate(HORIZONS):
        values = horizon_values(world, logits, num_steps=horizon)
        rollout = play(world, logits, num_episodes=num_episodes, num_steps=horizon, seed=h)
        rollout = with_values(rollout, values, bootstrap=False)
        for c, method in enumerate(CREDITS.values()):
            batch, _ = method.estimate(rollout, {})
            table[:, c, h] = variance(gradients(logits, batch, method))
        table[:, -1, h] = variance(gradients(logits, exact(world, rollout, batch, values), method))
    slopes = np.polyfit(np.log(HORIZONS), table.log().flatten(0, 1).T.numpy(), 1)[0].reshape(table.shape[:2])
    return {"variances": table.numpy(), "slopes": slopes}


def gradients(logits: Tensor, batch: Batch, method: reinforce.Reinforce) -> Tensor:
    return episode_gradients(logits, batch, method.objective({}))


def exact(world: Mdp, rollout: Rollout, batch: Batch, values: Tensor) -> Batch:
    """The batch with A_t(s, a) = r + E V_{t+1} - V_t(s) in place of what was sampled."""
    runs, states, actions = (rollout.inputs[name] for name in ("runs", "states", "actions"))
    # (R, S, A, T): the expected value of what follows each action at each step.
    following = torch.einsum("rsaz,rtz->rsat", world.transitions, values[:, 1:])
    ahead = following[runs, states, actions, torch.arange(runs.shape[1])]
    return batch._replace(advantages=rollout.rewards + ahead - rollout.values)


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    panel = figure.subplots()
    for c, name in enumerate((*CREDITS, EXACT)):
        slope = np.median(data["slopes"][:, c])
        draw_band(panel, np.array(HORIZONS), data["variances"][:, c], marker="o", label=f"{name}: H^{slope:.2f}")
    panel.set(
        xscale="log",
        yscale="log",
        xlabel="horizon H, steps",
        ylabel="E |g - E g|^2 of one episode, return^2 per logit^2",
        title=f"Median and interquartile range of {len(data['slopes'])} random MDPs",
    )
    panel.set_xticks(HORIZONS, [str(horizon) for horizon in HORIZONS])
    panel.minorticks_off()
    panel.legend(title="credit of an action, and slope")
    panel.grid(alpha=0.3)
    return figure
