"""Short runs of the actor-critic methods on CartPole; run by test_actor_critics.py, there and under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize, train
from rlhf.algorithms import a2c, eligibility, impala, ppo_kl, q_actor_critic, td_actor_critic, trpo
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.catalogue import algorithm_of
from rlhf.control import collect
from rlhf.control.collectors import make_collector
from rlhf.control.envs import make_env, spaces_of
from rlhf.control.evaluate import Config, Evaluator
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.runs.launch import leave
from rlhf.runs.log import read_lines
from rlhf.runs.run import Run
from tests.whole_loops import RunConfig

# Method, steps in each environment between updates, epochs, lag.
METHODS: dict[str, tuple[Any, int, int, int]] = {
    "a2c": (a2c.Config(gamma=0.97, entropy_coef=0.01), 6, 1, 0),
    "a2c_fitted": (a2c.Config(gamma=0.97, critic=Critic(target="td0", epochs=2, renew_labels=True)), 6, 1, 0),
    "td": (td_actor_critic.Config(gamma=0.97), 6, 1, 0),
    "q": (q_actor_critic.Config(gamma=0.97, critic=Critic(target="td_lambda", td_lambda=0.9, epochs=2)), 6, 1, 0),
    "traces": (eligibility.Config(gamma=0.97), 1, 1, 0),
    "impala": (impala.Config(gamma=0.97), 6, 1, 2),
    # At the old policy, where the first epoch is, the gradient of the penalty is 0.
    "ppo_kl": (ppo_kl.Config(gamma=0.97), 6, 3, 0),
    "trpo": (trpo.Config(gamma=0.97), 6, 1, 0),
}


def trained(
    folder: Path, name: str, *, updates: int, accelerator: Accelerator, resume: bool = False
) -> tuple[Tensor, list[dict[str, Any]]]:
    """All weights, and the metrics of each update but those of the clock and of evaluations."""
    method, steps, epochs, lag = METHODS[name]
    critic = "action" if name == "q" else "state"
    config = PolicyConfig(hidden_sizes=(8,), critic=critic)
    policy = ControlPolicy(spaces_of(make_env("CartPole-v1")), config, seed=0).double()
    train.train(
        policy=policy,
        algorithm=algorithm_of(method),
        algorithm_config=method,
        optimize_config=optimize.Config(learning_rate=0.01, epochs=epochs, whiten="none"),
        collector=make_collector(
            "CartPole-v1",
            config=collect.Config(num_envs=4, steps_per_rollout=steps, lag=lag),
            gamma=method.gamma,
            seed=0,
            accelerator=accelerator,
            micro_batch_cost=1000,
        ),
        evaluate=Evaluator(
            "CartPole-v1", config=Config(episodes=2, sampled_episodes=0), seed=0, accelerator=accelerator
        ),
        phase=Run(folder, RunConfig(name=name), resume=resume, accelerator=accelerator).phase("learn"),
        accelerator=accelerator,
        config=train.Config(updates=updates, eval_every=0, checkpoint_every=0),
        seed=0,
    )
    other = ("seconds", "steps_per_second", "memory", "eval")
    rows = [
        {name: value for name, value in row.items() if not name.startswith(other)}
        for row in read_lines(folder / "learn" / "metrics.jsonl")
        if "policy_loss" in row
    ]
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]), rows


def main() -> None:
    output, accelerator = Path(sys.argv[1]), Accelerator()
    facts: dict[str, Any] = {"num_processes": accelerator.num_processes}
    for name in METHODS:
        weights, rows = trained(output / name, name, updates=4, accelerator=accelerator)
        facts[name] = {"weights": weights.tolist(), "rows": rows}
    if accelerator.is_main_process:
        (output / "facts.json").write_text(json.dumps(facts))
    leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
