"""Classic control: the algorithms that train the language models, on problems whose answer is known.

    python recipes/cartpole.py                              # CartPole-v1, 100k steps
    python recipes/cartpole.py --env-id Pendulum-v1
    python recipes/cartpole.py --algorithm trpo             # or any other of rlhf/algorithms/catalogue.py
    python recipes/cartpole.py --env-id Acrobot-v1
    python recipes/cartpole.py --num-seeds 10               # ten seeds side by side, and their interquartile mean
    python recipes/cartpole.py --resume                     # goes on after a kill, bit for bit

Every evaluation plays the same 200 greedy episodes. CartPole is solved where their mean return is at least 475.
Settings that are known to learn are in rlhf/control/presets.py; what is given on the command line wins.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from rlhf import optimize
from rlhf.algorithms.catalogue import ALGORITHMS, Method, algorithm_of, require_settings
from rlhf.control import collect, evaluate, replay
from rlhf.control.assemble import assemble
from rlhf.control.policy import PolicyConfig
from rlhf.control.presets import preset
from rlhf.errors import InputError
from rlhf.runs.evaluate import judged
from rlhf.runs.launch import launch
from rlhf.runs.log import read_lines, trackers
from rlhf.runs.run import Run
from rlhf.runs.summary import conclude

# Mean return at which a problem counts as solved, for first_hit_step and stays_from_step.
SOLVED = {"CartPole-v1": 475.0, "Acrobot-v1": -90.0, "Pendulum-v1": -200.0}

DEFAULT = preset("ppo", "CartPole-v1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A policy-gradient method on a gymnasium environment."""

    algorithm: str = "ppo"
    """One of rlhf/algorithms/catalogue.py; `method` holds its settings."""
    env_id: str = "CartPole-v1"
    """A registered gymnasium environment with vector observations."""
    seed: int = 0
    """Everything random follows from it."""
    num_seeds: int = 1
    """Runs of seeds seed, seed + 1, ... side by side, each what it is alone, in a fraction of the time."""
    output_dir: Path = Path("runs/cartpole")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    steps: int = DEFAULT.steps
    """Environment steps in all, rounded up to whole updates; a finished run with more is extended."""
    eval_every_steps: int = DEFAULT.eval_every_steps
    """Environment steps between evaluations."""
    checkpoint_every_steps: int = 10_240
    """Environment steps between checkpoints."""
    collect: collect.Config = DEFAULT.collect
    replay: replay.Config = DEFAULT.replay
    policy: PolicyConfig = DEFAULT.policy
    method: Method = DEFAULT.method
    optimize: optimize.Config = DEFAULT.optimize
    evaluate: evaluate.Config = DEFAULT.evaluate

    def __post_init__(self) -> None:
        for name in ("num_seeds", "steps", "eval_every_steps", "checkpoint_every_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if algorithm_of(self.method) is not ALGORITHMS.get(self.algorithm):
            raise InputError(f"algorithm is {self.algorithm}, but method holds settings of {type(self.method)}.")
        group_size = self.collect.episodes_per_start
        require_settings(self.method, self.optimize, lag=self.collect.lag, group_size=group_size)
        if getattr(self.method, "kl_coef", 0.0):
            raise InputError(
                "method.kl_coef charges for the KL to a reference policy, and there is none here; set it to 0, or see "
                "recipes/imitation.py, whose `ppo_kl` is charged for its KL to the clone."
            )


def default_config(algorithm: str, env_id: str) -> Config:
    return Config(algorithm=algorithm, env_id=env_id, **vars(preset(algorithm, env_id)))


def main(config: Config) -> dict[str, float | None]:
    # Networks this small run faster without threads, which also do not disturb neighbours.
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir))
    parts = assemble(config, accelerator)
    run = Run(config.output_dir, config, resume=config.resume, accelerator=accelerator, extendable={"steps"})
    phase = run.phase(config.algorithm)
    parts.train(config, phase=phase, accelerator=accelerator)
    result = summarise(phase.folder / "metrics.jsonl", config)
    conclude(run, result)
    return result


def summarise(metrics: Path, config: Config) -> dict[str, float | None]:
    """The headline: the last evaluation, when the solved level was first hit and from when it held."""
    rows = read_lines(metrics)
    evaluated = [row for row in rows if "eval_return_mean" in row]
    steps = [row["steps"] // config.num_seeds for row in evaluated]
    solved = SOLVED.get(config.env_id, float("inf"))
    result: dict[str, float | None] = {
        "eval_return_mean": evaluated[-1]["eval_return_mean"],
        "eval_episodes": config.evaluate.episodes,
    }
    if config.num_seeds > 1:
        result |= {name: value for name, value in evaluated[-1].items() if name.startswith("eval_return_iqm")}
    for suffix in [""] if config.num_seeds == 1 else [f"/{i}" for i in range(config.num_seeds)]:
        means = [row[f"eval_return_mean{suffix}"] for row in evaluated]
        result |= {f"{name}{suffix}": value for name, value in judged(steps, means, solved).items()}
    seconds = sum(row["seconds/collect"] + row["seconds/update"] for row in rows[1:])
    return result | {"env_steps_per_second": rows[-1]["steps"] / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algorithm", default="ppo")
    parser.add_argument("--env-id", "--env_id", default="CartPole-v1")
    launch(main, Config, default=lambda: default_config(**vars(parser.parse_known_args()[0])))
