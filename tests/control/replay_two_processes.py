"""Run by test_replay_distributed.py, alone and under torchrun: replay methods in float64, their buffer dealt out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from rlhf import optimize
from rlhf.algorithms import discrete_sac, replay_actor_critic, sac
from rlhf.control.collect import Config
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import PolicyConfig
from rlhf.control.replay import Config as ReplayConfig
from rlhf.control.replay import ReplayCollector
from rlhf.control.twin_policy import TwinPolicy
from rlhf.rollout import single_steps
from rlhf.runs.launch import leave
from tests.learners import learner_of

# Of each step so many transitions, and so many steps an update: of one transition alone, one process holds none.
METHODS = {
    "sac": (sac, "Pendulum-v1", 7, 3),
    "discrete_sac": (discrete_sac, "CartPole-v1", 7, 3),
    "replay_actor_critic": (replay_actor_critic, "CartPole-v1", 7, 3),
    "sac by one": (sac, "Pendulum-v1", 1, 1),
}


def learn(
    algorithm: Any, env_id: str, batch_size: int, minibatches: int, accelerator: Accelerator
) -> tuple[TwinPolicy, list[dict[str, float]]]:
    """Five updates."""
    envs = make_envs(env_id, 2, num_processes=accelerator.num_processes)
    policy = TwinPolicy(spaces_of(envs), PolicyConfig(hidden_sizes=(8, 8), critic="action"), seed=0).double()
    config = algorithm.Config(batch_size=batch_size)
    how = optimize.Config(epochs=1, minibatches=minibatches, whiten="none")
    optimizer = optimize.make_optimizer(policy, how)
    collector = ReplayCollector(
        envs,
        config=Config(num_envs=2, steps_per_rollout=8),
        replay=ReplayConfig(capacity=60, random_steps=20),
        num_rows=batch_size * minibatches,
        seed=0,
        accelerator=accelerator,
    )
    wrapped, _ = accelerator.prepare(policy, optimizer)
    history = []
    for update in range(5):
        rollout, metrics, _ = collector.collect(policy, update)
        batch = single_steps(algorithm.estimate(rollout, {}, config)[0])
        learner = learner_of(wrapped, how, optimizer=optimizer, accelerator=accelerator, update_index=update)
        learned, _ = algorithm.update(learner, rollout, batch, {}, config)
        history.append(metrics | learned)
    return policy, history


def main() -> None:
    output, accelerator = Path(sys.argv[1]), Accelerator()
    facts, weights = {"num_processes": accelerator.num_processes}, {}
    for name, method in METHODS.items():
        policy, facts[name] = learn(*method, accelerator)
        weights |= {f"{name} {of}": tensor.contiguous() for of, tensor in policy.state_dict().items()}
    if accelerator.is_main_process:
        save_file(weights, output / "weights.safetensors")
        (output / "facts.json").write_text(json.dumps(facts))
    leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
