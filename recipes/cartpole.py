"""Classic control: the algorithms that train the language models, on problems whose answer is known.

    python recipes/cartpole.py                              # CartPole-v1, 100k steps
    python recipes/cartpole.py --env-id Pendulum-v1
    python recipes/cartpole.py --method trpo                # or any other of docs/algorithms.md, or my_file.py:MyMethod
    python recipes/cartpole.py --env-id Acrobot-v1
    python recipes/cartpole.py --num-seeds 10               # ten seeds side by side, and their interquartile mean
    python recipes/cartpole.py --resume                     # goes on after a kill, bit for bit

Every evaluation plays the same 200 greedy episodes. CartPole is solved where their mean return is at least 475.
Settings that are known to learn are in recipes/settings/control.py; what is given on the command line wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.settings.control import PRESETS, preset
from rlhf.algorithms.base import Method
from rlhf.algorithms.choices import method_help
from rlhf.control.settings import CollectSteps, EvaluateEpisodes, PolicyConfig, Replay
from rlhf.deferred import deferred
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.settings import Count, Seed, Settings, Total

with deferred():
    import torch
    from accelerate import Accelerator

    from rlhf.control.seeds import SeedsOfEnvs
    from rlhf.control.stack import StackedMethod
    from rlhf.control.tasks import Envs
    from rlhf.runs.evaluate import judged
    from rlhf.runs.log import read_lines, trackers
    from rlhf.runs.run import Run
    from rlhf.runs.summary import conclude
    from rlhf.sources import code_sums
    from rlhf.task import Task
    from rlhf.training import require, train_phase

# Mean return at which a problem counts as solved, for first_hit_step and stays_from_step.
SOLVED = {"CartPole-v1": 475.0, "Acrobot-v1": -90.0, "Pendulum-v1": -200.0}

DEFAULT = preset("ppo", "CartPole-v1")


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """A policy-gradient method on a gymnasium environment."""

    env_id: str = "CartPole-v1"
    """A registered gymnasium environment, module:Name-v0 of one that a module registers, or path/to/file.py:Class of
    your own; arguments follow after commas (Pendulum-v1,g=9.8)."""
    seed: Seed = 0
    """Everything random follows from it."""
    num_seeds: Count = 1
    """Runs of seeds seed, seed + 1, ... side by side, each what it is alone, in a fraction of the time."""
    output_dir: Path = Path("runs/cartpole")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    steps: Total = DEFAULT.steps
    """Environment steps in all, rounded up to whole updates; a finished run with more is extended."""
    eval_every_steps: Total = DEFAULT.eval_every_steps
    """Environment steps between evaluations."""
    checkpoint_every_steps: Total = 10_240
    """Environment steps between checkpoints."""
    collect: CollectSteps = DEFAULT.collect
    replay: Replay = DEFAULT.replay
    policy: PolicyConfig = DEFAULT.policy
    method: Method = DEFAULT.method
    optimize: Optimize = DEFAULT.optimize
    evaluate: EvaluateEpisodes = DEFAULT.evaluate


def default_config(method: str = "ppo", env_id: str = "CartPole-v1") -> Config:
    return Config(env_id=env_id, **vars(preset(method, env_id)))


def main(config: Config) -> dict[str, float | None]:
    # Networks this small run faster without threads, which also do not disturb neighbours.
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir))
    policy, task, method = parts(config)
    require(policy, task, method, config.optimize, accelerator)
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"steps"},
        inputs=lambda: task.inputs() | code_sums("method", config.method),
        accept_changes=config.accept_changes,
    )
    phase = run.phase(method.name)
    duration = Duration(
        steps=config.steps, eval_every=config.eval_every_steps, checkpoint_every=config.checkpoint_every_steps
    )
    train_phase(policy, task, method, config.optimize, duration=duration, phase=phase, seed=config.seed)
    result = summarise(phase.folder / "metrics.jsonl", config)
    conclude(run, result)
    return result


def parts(config: Config) -> tuple[Any, Task, Method]:
    """Policy, task and method, for one seed or for several side by side."""
    method, sizes = config.method, vars(config.policy)
    envs = Envs(config.env_id, replay=config.replay, evaluate=config.evaluate, **vars(config.collect))
    if config.num_seeds == 1:
        return envs.policy(replays=method.replays, seed=config.seed, **sizes), envs, method
    seeds = range(config.seed, config.seed + config.num_seeds)
    task = SeedsOfEnvs(envs, seeds)
    return task.policy(**sizes), task, StackedMethod(method=method, seeds=tuple(seeds))


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
    launch(
        main, Config, default=default_config, picks={"method": method_help(dict.fromkeys(name for name, _ in PRESETS))}
    )
