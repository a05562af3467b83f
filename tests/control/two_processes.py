"""Run by test_distributed.py, alone and under torchrun: one program, its environments spread over the ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf.control.collect import CollectSteps, EnvCollector
from rlhf.control.dagger import Dagger, DaggerCollector
from rlhf.control.demonstrations import demonstrations
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.evaluate import EvaluateEpisodes, Evaluator, replay_episodes
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.demonstrations import DemonstrationCollector
from rlhf.rollout import Rollout
from rlhf.runs.launch import leave


def main() -> None:
    output = Path(sys.argv[1])
    accelerator = Accelerator()
    envs = make_envs("CartPole-v1", 4, num_processes=accelerator.num_processes)
    config = CollectSteps(num_envs=4, steps=30, normalise_rewards=True)
    collector = EnvCollector(envs, config=config, gamma=0.9, seed=0, accelerator=accelerator)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(normalise_observations=True), seed=0).double()
    metrics, rows = [], []
    for update in range(3):
        collected = collector.collect(policy, update)
        metrics.append(collected.metrics)
        rollout = collected.rollout
        rows += zip(rollout.sample_ids.tolist(), rollout.rewards.tolist(), rollout.values.tolist(), strict=True)
    evaluation_config = EvaluateEpisodes(episodes=5, sampled_episodes=3)
    cache = output / "episodes.safetensors"
    evaluator = Evaluator("CartPole-v1", config=evaluation_config, seed=0, accelerator=accelerator, cache=cache)
    evaluation = evaluator(policy)
    cloning, labelling = dealer(policy, accelerator), teacher(accelerator)
    drawn = [cloning.collect(policy, update).rollout for update in range(3)]
    labelled = [labelling.collect(policy, update) for update in range(2)]
    demonstrated, labels = named(*drawn), named(labelled[-1].rollout)
    if accelerator.num_processes > 1:
        rows, demonstrated, labels = gather_object(rows), gather_object(demonstrated), gather_object(labels)
    if accelerator.is_main_process:
        facts = {
            "num_processes": accelerator.num_processes,
            "metrics": metrics,
            "rows": sorted(rows, key=lambda row: row[0]),
            "moments": [tensor.flatten().tolist() for tensor in policy.normalizer.buffers()],
            "evaluation": evaluation._asdict(),
            "replayed": [episode.total() for episode in replay_episodes(cache)],
            "demonstrated": sorted(demonstrated),
            "labelled": sorted(labels),
            "labelling": [collected.metrics for collected in labelled],
        }
        (output / "facts.json").write_text(json.dumps(facts))
    leave(0)


def dealer(policy: ControlPolicy, accelerator: Accelerator) -> DemonstrationCollector:
    shown = demonstrations(policy, policy, "CartPole-v1", episodes=3, seed=0)
    return DemonstrationCollector(shown, rows_per_update=10, seed=0, accelerator=accelerator)


def teacher(accelerator: Accelerator) -> DaggerCollector:
    envs = make_envs("CartPole-v1", 4, num_processes=accelerator.num_processes)
    config = Dagger(num_envs=4, steps=10, expert_share=0.5)
    return DaggerCollector(envs, lambda x: int(x[2] > 0), config=config, seed=0, accelerator=accelerator)


def named(*rollouts: Rollout) -> list[tuple[int, int]]:
    """Actions with the ids of their rows."""
    return [
        pair
        for rollout in rollouts
        for pair in zip(rollout.sample_ids.tolist(), rollout.inputs["actions"].flatten().tolist(), strict=True)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
