"""Run by test_episodes_distributed.py, alone and under torchrun: whole episodes, in groups, spread over the ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms import grpo, reinforce_pp, rloo
from rlhf.control.collect import CollectSteps
from rlhf.control.envs import make_env, make_many, spaces_of
from rlhf.control.episode_collect import EpisodeCollector
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.rollout import single_steps
from rlhf.runs.launch import leave
from tests.learners import learner_of

METHODS: dict[str, Any] = {
    "grpo": grpo.GRPO(),
    "dr_grpo": grpo.GRPO(scale="none", average="constant", constant=500.0),
    "rloo": rloo.RLOO(gamma=0.99),
    "reinforce_pp": reinforce_pp.ReinforcePP(gamma=0.99, baseline="group"),
}


def learn(name: str, accelerator: Accelerator) -> dict[str, Tensor]:
    """What three updates do to every weight, in one vector, and after them the metrics of the last rollout; and how far
    the first scoring was from acting.
    """
    method = METHODS[name]
    policy = ControlPolicy(
        spaces_of(make_env("CartPole-v1")), PolicyConfig(hidden_sizes=(8,), normalise_observations=True), seed=0
    ).double()
    start = torch.cat([parameter.detach().clone().flatten() for parameter in policy.parameters()])
    collector = EpisodeCollector(
        make_many("CartPole-v1", 8 // accelerator.num_processes),
        config=CollectSteps(episodes=8, episodes_per_start=2, normalise_rewards=True),
        gamma=method.gamma,
        seed=0,
        accelerator=accelerator,
    )
    settings = optimize.Optimize(
        learning_rate=0.01, epochs=2, minibatches=2, whiten=method.whitens[-1], micro_batch_cost=50
    )
    optimizer = optimize.make_optimizer(policy, settings)
    wrapped, _ = accelerator.prepare(policy, optimizer)
    loss = method.objective({})
    learned = []
    for update in range(3):
        rollout, metrics, _ = collector.collect(policy, update)
        batch = single_steps(method.estimate(rollout, {})[0])
        learner = learner_of(wrapped, settings, optimizer=optimizer, accelerator=accelerator, update_index=update)
        learned.append(optimize.update(learner, batch, loss))
    moved = torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]) - start
    seen = torch.tensor(list(metrics.values()), dtype=torch.float64)
    return {
        name: torch.cat([moved, policy.normalizer.mean, policy.normalizer.var, seen]),
        f"{name} first ratio error": torch.tensor(learned[0]["ratio_error_max"], dtype=torch.float64),
    }


def main() -> None:
    accelerator = Accelerator(cpu=True)
    result: dict[str, Tensor] = {}
    for name in METHODS:
        result |= learn(name, accelerator)
    result["processes"] = torch.tensor(accelerator.num_processes)
    if accelerator.is_main_process:
        save_file(result, Path(sys.argv[1]) / "result.safetensors")
    leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
