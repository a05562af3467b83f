"""Environment steps per second of PPO on CartPole-v1, beside Stable-Baselines3, at equal hyperparameters.

    make benchmark-control            # installs Stable-Baselines3 2.9 beside the project and prints the table

One thread each, one process, the contestants in turn, round after round; evaluation is excluded, all else that
training does (logging, our checkpoints) is included. Ten seeds side by side count the steps of all ten. Hyperparameters
are those that rl-zoo tuned for CartPole: 8 environments x 32 steps, 20 epochs of one minibatch of 256. Our fastest with
which ten seeds of ten come to 475 and stay there as well are the recipe's with half its epochs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from recipes import cartpole
from rlhf import optimize
from rlhf.algorithms import ppo
from rlhf.control import collect, evaluate
from rlhf.runs.run import Run
from rlhf.task import Here, Task
from rlhf.training import Duration, train_phase

EQUAL = cartpole.Config(
    collect=collect.CollectSteps(num_envs=8, steps=32),
    # Our value loss has a half in it: 1.0 is the weight 0.5 of Stable-Baselines3.
    method=ppo.PPO(gamma=0.98, gae_lambda=0.8, clip=0.2, clip_schedule="linear", value_coef=1.0),
    optimize=optimize.Optimize(
        learning_rate=1e-3,
        schedule="linear",
        epochs=20,
        minibatches=1,
        max_gradient_norm=0.5,
        whiten="minibatch",
        adam_eps=1e-5,
    ),
    evaluate=evaluate.EvaluateEpisodes(episodes=1, sampled_episodes=0),
)
RECIPE = cartpole.default_config("ppo", "CartPole-v1")
FASTEST = replace(RECIPE, optimize=replace(RECIPE.optimize, epochs=10))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which contestants, how long, how often."""

    steps: int = 51_200
    """Environment steps of a run."""
    rounds: int = 3
    """The table shows medians over these, of the ratios as well."""
    num_seeds: int = 10
    """Seeds that are trained side by side."""


def stable_baselines3(steps: int) -> float:
    """Seconds of `learn`."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8),
        n_steps=32,
        batch_size=256,
        gamma=0.98,
        gae_lambda=0.8,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda left: 1e-3 * left,
        clip_range=lambda left: 0.2 * left,
        device="cpu",
        seed=0,
    )
    start = time.perf_counter()
    model.learn(steps)
    return time.perf_counter() - start


def ours(config: cartpole.Config, steps: int) -> float:
    """Seconds of training, less those spent in evaluations."""
    evaluating = 0.0

    class Timed(Task):
        """The recipe's task, its evaluations timed."""

        def __init__(self, task: Task) -> None:
            self.task = task

        def __getattribute__(self, name: str) -> Any:
            return object.__getattribute__(self, name) if name in ("task", "evaluate") else getattr(self.task, name)

        def evaluate(self, policy: Any, here: Here) -> Any:
            nonlocal evaluating
            start = time.perf_counter()
            evaluation = self.task.evaluate(policy, here)
            evaluating += time.perf_counter() - start
            return evaluation

    config = replace(config, steps=steps, eval_every_steps=steps)
    policy, task, method = cartpole.parts(config)
    with tempfile.TemporaryDirectory() as folder:
        phase = Run(Path(folder) / "run", config, resume=False, accelerator=Accelerator(cpu=True)).phase("ppo")
        duration = Duration(steps=steps, eval_every=steps, checkpoint_every=config.checkpoint_every_steps)
        start = time.perf_counter()
        train_phase(policy, Timed(task), method, config.optimize, duration=duration, phase=phase, seed=config.seed)
        return time.perf_counter() - start - evaluating


def main(config: Config) -> None:
    torch.set_num_threads(1)
    contestants = {"Stable-Baselines3, 1 seed": (1, partial(stable_baselines3, config.steps))}
    for name, settings in (("equal", EQUAL), ("fastest", FASTEST)):
        for num_seeds in (1, config.num_seeds):
            run = partial(ours, replace(settings, num_seeds=num_seeds), config.steps)
            contestants[f"ours, {name} settings, {num_seeds} seed{'s' * (num_seeds > 1)}"] = (num_seeds, run)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(config.rounds):
        for name, (_, run) in contestants.items():
            seconds[name].append(run())
    base = seconds["Stable-Baselines3, 1 seed"]
    table = Table("contestant", "seconds", "steps per second", "speed / SB3", "time / SB3's one run")
    for name, (num_seeds, _) in contestants.items():
        # Round by round, for the machine is not equally fast in all of them.
        times = statistics.median(own / theirs for own, theirs in zip(seconds[name], base, strict=True))
        table.add_row(
            name,
            ", ".join(f"{value:.1f}" for value in seconds[name]),
            f"{num_seeds * config.steps / statistics.median(seconds[name]):,.0f}",
            f"{num_seeds / times:.2f}",
            f"{times:.2f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
