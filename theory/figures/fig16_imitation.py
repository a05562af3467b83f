"""Figure 16: Cloning stays at its demonstrator, cloning then PPO passes it, DAgger is taught as it goes (003, 001).

Exact returns on random MDPs, on a scale on which the uniform policy has 0 and the best 1. The demonstrator is PPO,
stopped early. The horizon's part is played on the road with a ditch: a clone errs seldom on the road, but was never
shown the way out of the ditch. recipes/imitation.py does the same on CartPole.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf import optimize
from rlhf.algorithms import ppo
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.control import dagger
from rlhf.control.demonstrations import demonstrations
from rlhf.control.envs import make_env, make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.demonstrations import DemonstrationCollector
from theory.figures.episodes import score
from theory.figures.tabular import GAMMA, draw_band, random_worlds, run_means, sample, sampler, success, updates
from theory.mdp import Mdp, step_marginals
from theory.worlds.road import STRAIGHT, TURN, Road

NUMBER = 16
TITLE = "Imitation: cloning, cloning then PPO, and DAgger over the horizon"
SEES = (
    "The demonstrator is at 0.61 on average. Clones of 1 episode are at 0.50, of 16 at 0.60 and of 256 at 0.61: "
    "more demonstrations take them to him, and no number past him. Their likeliest actions are another policy, at "
    "0.88 (median), as are the demonstrator's own: where he errs at random, a majority of what he shows is right. "
    "PPO passes him within an update from the clone, which saves it about 5 updates of 8 episodes; after 60 all "
    "10 seeds are above him, at 0.98, and so are those from scratch (0.99). On the road the clone errs with e = "
    "0.0009, but in the ditch, which it was never shown, it turns in 4 steps of 100 only: what it loses grows as "
    "T^1.8 between 5 and 20 steps, and comes to 4.5 of 200. DAgger errs more often on the road (0.0020), turns in "
    "96 ditches of 100, and loses e T: 0.42 of 200."
)

PPO = ppo.PPO(gamma=GAMMA, gae_lambda=1.0, value_coef=0.0)
CLONING = BehaviourCloning()
STEPS, EPISODES = 25, 8
# Updates of the demonstrator, and of PPO from the clone and from scratch.
SHORT, LONG = 4, 60
DEMONSTRATIONS, SHOWN = (1, 4, 16, 64, 256), 16
CLONE_STEPS = 200
ROAD, ROUNDS, HORIZON = "theory/Road-v0", 5, 200


def improved(worlds: Mdp, logits: Tensor, num_updates: int, seed: int) -> list[Tensor]:
    """Logits before and after each update of PPO."""
    collect = sampler(PPO, worlds, num_episodes=EPISODES, num_steps=STEPS, seed=seed)
    steps: dict[str, Any] = {"optimizer": torch.optim.Adam, "step_sizes": [0.1], "epochs": 10}
    return [logits, *(u.new for u in updates(PPO, logits, collect, **steps, num_updates=num_updates))]


def cloned(worlds: Mdp, demonstrator: Tensor, num_episodes: int, *, num_steps: int) -> Tensor:
    """The likeliest tables of logits for so many episodes of the demonstrator."""
    shown = sample(worlds, demonstrator, num_episodes=num_episodes, num_steps=STEPS, seed=2, update=num_episodes)
    batch, _ = CLONING.estimate(shown, {})
    logits = torch.zeros_like(demonstrator, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(num_steps):
        optimizer.zero_grad()
        terms, _ = CLONING.loss(score(logits, batch.inputs), batch, {})
        run_means(terms, batch, len(logits)).sum().backward()
        optimizer.step()
    return logits.detach()


def greedy(logits: Tensor) -> Tensor:
    """Logits of the policy that takes the likeliest actions alone."""
    return 1e3 * one_hot(logits.argmax(-1), logits.shape[-1]).double()


def guide(observation: np.ndarray) -> int:
    """Straight on the road, a turn in the ditch; observations are one-hot."""
    return TURN if observation[1] else STRAIGHT


def lost_on_the_road(seed: int, *, with_dagger: bool, rounds: int = ROUNDS) -> np.ndarray:
    """Probabilities of a turn on the road and in the ditch, and the exact pay lost in the first 1 to HORIZON steps."""
    accelerator = Accelerator(cpu=True)
    policy = ControlPolicy(spaces_of(make_env(ROAD)), PolicyConfig(hidden_sizes=(16,)), seed=seed)
    sizes = dagger.Dagger(num_envs=8, steps=50)
    if with_dagger:
        envs = make_envs(ROAD, sizes.num_envs)
        collector: Any = dagger.DaggerCollector(envs, guide, config=sizes, seed=seed, accelerator=accelerator)
    else:
        env_id, episodes = f"{ROAD},max_episode_steps={sizes.steps}", sizes.num_envs * rounds
        shown = demonstrations(guide, policy, env_id, episodes=episodes, seed=seed)
        collector = DemonstrationCollector(shown, rows_per_update=len(shown.mask), seed=seed, accelerator=accelerator)
    settings = optimize.Optimize(learning_rate=1e-2, epochs=20, whiten="none")
    optimizer, loss = optimize.make_optimizer(policy, settings), CLONING.objective({})
    learner = optimize.Learner(policy=policy, optimizer=optimizer, config=settings, accelerator=accelerator, seed=seed)
    for update in range(rounds):
        batch, _ = CLONING.estimate(collector.collect(policy, update).rollout, {})
        optimize.update(replace(learner, update_index=update), batch, loss)
    collector.close()
    actions = policy.actor(torch.eye(2)).detach().double().softmax(-1)
    world = Road().mdp
    paid = step_marginals(world, actions, num_steps=HORIZON) @ (actions * world.rewards).sum(-1)
    return torch.cat([actions[:, TURN], (1.0 - paid).cumsum(0)]).numpy()


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    worlds = random_worlds(seeds, num_states=20, num_actions=4, seed=3)
    judge = partial(success, worlds)
    demonstrator = improved(worlds, torch.zeros_like(worlds.rewards), SHORT, seed=0)[-1]
    sizes = [n for n in DEMONSTRATIONS if n <= max(256 * effort, SHOWN)]
    fit = max(round(CLONE_STEPS * effort), 10)
    clones = [cloned(worlds, demonstrator, n, num_steps=fit) for n in sizes]
    length = max(round(LONG * effort), 2)
    starts = {"scratch": torch.zeros_like(demonstrator), "clone": clones[sizes.index(SHOWN)]}
    data = {
        "sizes": np.array(sizes),
        "demonstrator": judge(demonstrator).numpy(),
        "demonstrator_greedy": judge(greedy(demonstrator)).numpy(),
        "clones": torch.stack([judge(clone) for clone in clones]).numpy(),
        "clones_greedy": torch.stack([judge(greedy(clone)) for clone in clones]).numpy(),
    }
    for name, start in starts.items():
        data[name] = torch.stack([judge(x) for x in improved(worlds, start, length, seed=1)]).numpy()
    for name in ("cloning", "DAgger"):
        how: dict[str, Any] = {"with_dagger": name == "DAgger", "rounds": max(round(ROUNDS * effort), 1)}
        rows = np.stack([lost_on_the_road(seed, **how) for seed in range(seeds)])
        data[f"{name} turns"], data[name] = rows[:, :2], rows[:, 2:].T
    return data


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(15, 5), layout="constrained")
    clones, improvement, road = figure.subplots(1, 3)
    draw_band(clones, data["sizes"], data["clones"], "clone")
    draw_band(clones, data["sizes"], data["clones_greedy"], "the clone's likeliest actions", linestyle="--")
    clones.set(xscale="log", xlabel=f"demonstrated episodes of {STEPS} steps", title="Cloning")
    for name, label in (("clone", f"PPO after cloning {SHOWN} episodes"), ("scratch", "PPO from scratch")):
        draw_band(improvement, np.arange(len(data[name])), data[name], label)
    improvement.set(xlabel=f"updates of {EPISODES} episodes", title="Improving")
    for panel in (clones, improvement):
        panel.axhline(np.median(data["demonstrator"]), color="black", linestyle=":", label="demonstrator")
        panel.set_ylabel("exact return (0: uniform, 1: best)")
    horizons = np.arange(1, HORIZON + 1)
    for name in ("cloning", "DAgger"):
        draw_band(road, horizons, data[name], name)
    for power, first in ((2, np.median(data["cloning"][0])), (1, np.median(data["DAgger"][0]))):
        line = first * horizons * (horizons + 1) / 2 if power == 2 else first * horizons
        road.plot(horizons, line, color="gray", linestyle=":", label=f"e T{' (T + 1) / 2' if power == 2 else ''}")
    road.set(xscale="log", yscale="log", xlabel="horizon T, steps", ylabel="pay lost, of T", title="Road with a ditch")
    for panel in (clones, improvement, road):
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    return figure
