"""Run by test_replay_distributed.py, alone and under torchrun: replay in float64, the buffer spread over ranks."""

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
from rlhf.control.collect import CollectSteps
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import PolicyConfig
from rlhf.control.replay import Replay, ReplayCollector
from rlhf.control.twin_policy import TwinPolicy
from rlhf.rollout import single_steps
from rlhf.runs.launch import leave
from tests.learners import learner_of

# Of each step so many transitions, and so many steps an update: of one transition alone, one process holds none.
METHODS: dict[str, tuple[Any, str, int]] = {
    "sac": (sac.SAC(batch_size=7), "Pendulum-v1", 3),
    "discrete_sac": (discrete_sac.DiscreteSAC(batch_size=7), "CartPole-v1", 3),
    "replay_actor_critic": (replay_actor_critic.ReplayActorCritic(batch_size=7), "CartPole-v1", 3),
    "sac by one": (sac.SAC(batch_size=1), "Pendulum-v1", 1),
}


def learn(
    method: Any, env_id: str, minibatches: int, accelerator: Accelerator
) -> tuple[TwinPolicy, list[dict[str, float]]]:
    """Five updates."""
    envs = make_envs(env_id, 2, num_processes=accelerator.num_processes)
    policy = TwinPolicy(spaces_of(envs), PolicyConfig(hidden_sizes=(8, 8), critic="action"), seed=0).double()
    settings = optimize.Optimize(epochs=1, minibatches=minibatches, whiten="none")
    optimizer = optimize.make_optimizer(policy, settings)
    collector = ReplayCollector(
        envs,
        config=CollectSteps(num_envs=2, steps=8),
        replay=Replay(capacity=60, random_steps=20),
        num_rows=method.batch_size * minibatches,
        seed=0,
        accelerator=accelerator,
    )
    wrapped, _ = accelerator.prepare(policy, optimizer)
    history = []
    for update in range(5):
        rollout, metrics, _ = collector.collect(policy, update)
        batch = single_steps(method.estimate(rollout, {})[0])
        learner = learner_of(wrapped, settings, optimizer=optimizer, accelerator=accelerator, update_index=update)
        learned, _ = method.update(learner, rollout, batch, {})
        history.append(metrics | learned)
    return policy, history


def main() -> None:
    output, accelerator = Path(sys.argv[1]), Accelerator()
    facts, weights = {"num_processes": accelerator.num_processes}, {}
    for name, case in METHODS.items():
        policy, facts[name] = learn(*case, accelerator)
        weights |= {f"{name} {of}": tensor.contiguous() for of, tensor in policy.state_dict().items()}
    if accelerator.is_main_process:
        save_file(weights, output / "weights.safetensors")
        (output / "facts.json").write_text(json.dumps(facts))
    leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
