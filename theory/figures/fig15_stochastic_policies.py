"""Figure 15: Where the best policy is a stochastic one (lecture 002).

In the aliased grid world two cells look alike, and whoever does one thing in both walks away from the treasure in one
of them. In iterated rock-paper-scissors an opponent that adapts beats whoever can be predicted; against one that does
not, a deterministic reply is best. Policy gradients find either, since they search among stochastic policies.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf.algorithms import reinforce
from theory.figures.episodes import alone, expected_sum, play, step
from theory.mdp import Mdp
from theory.worlds.aliased_grid import EAST, OBSERVED, SOUTH, WEST, AliasedGrid
from theory.worlds.rock_paper_scissors import RockPaperScissors

NUMBER = 15
TITLE = "Stochastic against deterministic policies: an aliased grid world, and rock-paper-scissors"
SEES = (
    "In the grid world the best of all 256 deterministic policies earns 0.6: it finds the treasure from three of "
    "five cells, and walks for ever from the others. Tossing a coin beside the middle earns 1.000 in 50 steps, "
    "and 0.97 even where the coin falls on one side 9 times in 10. REINFORCE comes to at least 0.998 in all 10 "
    "seeds, and would lose 0.4 of it if it took its likeliest actions. Against an opponent that adapts, equal "
    "odds are best and worth 0, and any deterministic player loses 0.52 a round; REINFORCE, which begins with "
    "rock in 4 rounds of 5 (-0.25), is next to even odds (-0.003) after 10 updates. Against one that plays rock "
    "half the time, it ends at 0.247, next to the 0.25 of always playing paper: there the best reply is "
    "deterministic."
)

# What one sees in a cell beside the middle.
BESIDE = 1
GRID_STEPS, ROUNDS = 50, 10
REINFORCE = reinforce.Reinforce(baseline="none")
# Of the grid world: with its discount a short way is worth more than a long one.
HURRIED = reinforce.Reinforce(baseline="none", gamma=0.95)
EPISODES, UPDATES, EVERY = 64, 300, 5
ROCK, PAPER = 0, 1
# Players of rock-paper-scissors begin with rock in 4 rounds of 5.
FIRST_LOGIT = math.log(8.0)
# Logits of actions that are never taken, and of those that are.
NEVER = 1e3


def worlds() -> dict[str, tuple[Mdp, Tensor, int]]:
    """Each with what one sees of its states, and how long an episode may last."""
    games = {name: RockPaperScissors(ROUNDS, adapts=name == "adapts").mdp for name in ("adapts", "fixed")}
    nothing = torch.zeros(len(games["fixed"].start), dtype=torch.int64)
    grid = AliasedGrid().mdp, torch.tensor(OBSERVED[:-1]), GRID_STEPS
    return {"grid": grid} | {name: (game, nothing, ROUNDS) for name, game in games.items()}


def deterministic(actions: Tensor, num_actions: int) -> Tensor:
    """Logits `(R, O, A)` of the policies that always take `actions`, `(R, O)`."""
    return NEVER * one_hot(actions, num_actions).double()


def grid_policies(shares: Tensor) -> Tensor:
    """Those that go east with these probabilities beside the middle, west otherwise, and right everywhere else."""
    logits = deterministic(torch.tensor([[EAST, EAST, SOUTH, WEST]]), 4).repeat(len(shares), 1, 1)
    logits[:, BESIDE] = -NEVER
    logits[:, BESIDE, EAST], logits[:, BESIDE, WEST] = shares.log(), (1.0 - shares).log()
    return logits.clamp(min=-NEVER)


def paper_players(shares: Tensor) -> Tensor:
    """Those that play paper with these probabilities, and both other moves alike."""
    logits = ((1.0 - shares) / 2.0).log()[:, None, None].repeat(1, 1, 3)
    logits[:, 0, PAPER] = shares.log()
    return logits.clamp(min=-NEVER)


def learned(name: str, seeds: int, updates: int) -> Tensor:
    """`(2, seeds, evaluations)` exact returns of REINFORCE's policy, and of the one of its likeliest actions."""
    world, observed, num_steps = worlds()[name]
    num_observations, num_actions = int(observed.max()) + 1, world.rewards.shape[1]
    logits = torch.zeros(seeds, num_observations, num_actions, dtype=torch.float64)
    if name != "grid":
        logits[:, 0, ROCK] = FIRST_LOGIT
    method, step_size = (HURRIED, 2.0) if name == "grid" else (REINFORCE, 0.1)
    points, sizes = [], {"num_episodes": EPISODES, "num_steps": num_steps}
    for update in range(updates + 1):
        if update % EVERY == 0:
            both = torch.cat([logits, deterministic(logits.argmax(-1), num_actions)])
            points.append(expected_sum(world, both, observed, num_steps=num_steps).view(2, seeds))
        played = play(alone(world), logits, **sizes, seed=0, update=update, observed=observed, purpose="episodes")
        logits = step(method, logits, played, step_size=step_size)
    return torch.stack(points, dim=-1)


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    tables = worlds()
    shares = torch.linspace(0.0, 1.0, max(int(100 * effort), 5), dtype=torch.float64)
    world, observed, num_steps = tables["grid"]
    every = torch.tensor(list(itertools.product(range(4), repeat=4)))
    data = {
        "shares": shares,
        "grid": expected_sum(world, grid_policies(shares), observed, num_steps=num_steps),
        "grid_deterministic": expected_sum(world, deterministic(every, 4), observed, num_steps=num_steps),
    }
    for name in ("adapts", "fixed"):
        world, observed, num_steps = tables[name]
        data[name] = expected_sum(world, paper_players(shares), observed, num_steps=num_steps) / num_steps
    for name in tables:
        pay = 1 if name == "grid" else ROUNDS
        data[f"{name}_learned"] = learned(name, seeds, max(int(UPDATES * effort), EVERY)) / pay
    return {name: tensor.numpy() for name, tensor in data.items()}


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplots(2, 2)
    panels[0, 0].plot(data["shares"], data["grid"], label="right everywhere else")
    best = data["grid_deterministic"].max()
    panels[0, 0].axhline(best, color="gray", linestyle="--", label="best of all 256 deterministic policies")
    panels[0, 0].set(xlabel="probability of going east beside the middle", title="Aliased grid world: return")
    panels[1, 0].plot(data["shares"], data["adapts"], label="opponent adapts")
    panels[1, 0].plot(data["shares"], data["fixed"], label="opponent plays rock half the time")
    panels[1, 0].set(xlabel="probability of paper, both other moves alike", title="Rock-paper-scissors: pay")
    series = {"grid": panels[0, 1], "adapts": panels[1, 1], "fixed": panels[1, 1]}
    for name, panel in series.items():
        curves = data[f"{name}_learned"]
        color = "tab:orange" if name == "fixed" else "tab:blue"
        for kind, style, each in zip(("as learned", "its likeliest actions"), ("-", "--"), curves, strict=True):
            updates = EVERY * np.arange(each.shape[1])
            label = {"grid": "", "adapts": "opponent adapts: ", "fixed": "opponent is fixed: "}[name] + kind
            panel.plot(updates, np.median(each, axis=0), style, color=color, label=label)
            panel.fill_between(updates, *np.quantile(each, (0.25, 0.75), axis=0), color=color, alpha=0.2)
    for panel in panels[:, 1]:
        panel.set(
            xlabel=f"updates of {EPISODES} episodes", title=f"REINFORCE: median and quartiles of {len(curves[0])} seeds"
        )
    for row, unit in zip(panels, (f"expected return in {GRID_STEPS} steps", "expected pay a round"), strict=True):
        for panel in row:
            panel.set_ylabel(unit)
            panel.legend(fontsize=8)
            panel.grid(alpha=0.3)
    return figure
