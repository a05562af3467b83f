"""A3C on classic control: several processes act, and update the same weights without waiting for each other.

    python recipes/a3c.py                                   # CartPole-v1, 500k steps, two workers
    python recipes/a3c.py --num-workers 1

The workers pause while an evaluation plays the same 200 greedy episodes as those of recipes/cartpole.py with the same
seed. Two runs of one seed differ, and there is no --resume: who updates first is up to the machine. The loss is that of
`recipes/cartpole.py --method a2c`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlhf import optimize
from rlhf.algorithms import a2c
from rlhf.algorithms.actor_critic import Critic
from rlhf.control.settings import CollectSteps, EvaluateEpisodes, PolicyConfig
from rlhf.deferred import deferred
from rlhf.runs.launch import launch
from rlhf.settings import Count, Seed, Settings, Total

with deferred():
    import torch
    from accelerate import Accelerator

    from rlhf.control import a3c, evaluate
    from rlhf.control.policy import ControlPolicy
    from rlhf.control.trial import tried
    from rlhf.runs.evaluate import judged
    from rlhf.runs.log import read_lines
    from rlhf.runs.run import Run
    from rlhf.runs.summary import conclude


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Asynchronous advantage actor-critic on a gymnasium environment."""

    env_id: str = "CartPole-v1"
    """A registered gymnasium environment, module:Name-v0 of one that a module registers, or path/to/file.py:Class of
    your own; arguments follow after commas (Pendulum-v1,g=9.8)."""
    solved: float = 475.0
    """Mean return at which it counts as solved, for first_hit_step and stays_from_step."""
    seed: Seed = 0
    """The starts of episodes and the first weights follow from it; the rest is up to the machine."""
    output_dir: Path = Path("runs/a3c")
    """Folder for what the run leaves behind."""
    num_workers: Count = 2
    """Processes that act and update."""
    steps: Total = 500_000
    """Environment steps of all workers together."""
    eval_every_steps: Total = 10_240
    """Environment steps between evaluations."""
    collect: CollectSteps = CollectSteps(num_envs=8, steps=8)
    """What each worker collects between two gradients."""
    policy: PolicyConfig = PolicyConfig()
    method: a2c.A2C = a2c.A2C(gamma=0.99, gae_lambda=0.95, entropy_coef=0.01, critic=Critic(td_lambda=0.95))
    optimize: optimize.Optimize = optimize.Optimize(
        learning_rate=7e-4, schedule="linear", epochs=1, max_gradient_norm=0.5, whiten="none", adam_eps=1e-5
    )
    evaluate: EvaluateEpisodes = EvaluateEpisodes(sampled_episodes=0)


def main(config: Config) -> dict[str, float | None]:
    torch.set_num_threads(1)
    job = a3c.Job(config.env_id, config.steps, config.collect, config.method, config.optimize, config.seed)
    workers = {"num_workers": config.num_workers, "eval_every_steps": config.eval_every_steps}
    a3c.check(config.policy, job, **workers)
    accelerator = Accelerator(cpu=True)
    policy = ControlPolicy(tried(config.env_id), config.policy, seed=config.seed)
    run = Run(config.output_dir, config, resume=False, accelerator=accelerator)
    phase = run.phase("a3c")
    phase.finished(config.steps, "steps")
    play = evaluate.Evaluator(
        config.env_id,
        config=config.evaluate,
        seed=config.seed,
        accelerator=accelerator,
        cache=phase.folder / "episodes.safetensors",
    )
    num_logged = 0

    def log(row: dict[str, float]) -> None:
        nonlocal num_logged
        evaluation = play(policy)
        phase.record([{"update": num_logged, "kind": "evaluation", **sample} for sample in evaluation.samples])
        phase.log({"update": num_logged, **row, **evaluation.metrics})
        num_logged += 1

    try:
        a3c.train(policy, job, **workers, log=log)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; A3C cannot be resumed, another --output-dir starts anew.") from None
    phase.finish(config.steps, {"policy": policy.save})
    rows = read_lines(phase.folder / "metrics.jsonl")
    steps, means = [row["steps"] for row in rows], [row["eval_return_mean"] for row in rows]
    result = {
        "eval_return_mean": means[-1],
        "eval_episodes": config.evaluate.episodes,
        **judged(steps, means, config.solved),
        "env_steps_per_second": steps[-1] / rows[-1]["seconds/train"],
    }
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config)
