"""Run by test_distributed.py, alone and under torchrun: one program, its environments dealt over the ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf.control.collect import Config, EnvCollector
from rlhf.control.demonstrations import demonstrations
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.evaluate import Config as EvaluationConfig
from rlhf.control.evaluate import Evaluator, replay
from rlhf.control.policy import ControlPolicy, PolicyConfig


def main() -> None:
    output = Path(sys.argv[1])
    accelerator = Accelerator()
    envs = make_envs("CartPole-v1", 4, num_processes=accelerator.num_processes)
    config = Config(num_envs=4, steps_per_rollout=30, normalise_rewards=True)
    collector = EnvCollector(envs, config=config, gamma=0.9, seed=0, accelerator=accelerator)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(normalise_observations=True), seed=0).double()
    metrics, rows = [], []
    for update in range(3):
        collected = collector.collect(policy, update)
        metrics.append(collected.metrics)
        rollout = collected.rollout
        rows += zip(rollout.sample_ids.tolist(), rollout.rewards.tolist(), rollout.values.tolist(), strict=True)
    evaluation_config = EvaluationConfig(episodes=5, sampled_episodes=3)
    cache = output / "episodes.safetensors"
    evaluator = Evaluator("CartPole-v1", config=evaluation_config, seed=0, accelerator=accelerator, cache=cache)
    evaluation = evaluator(policy)
    shown = demonstrations(policy, policy, "CartPole-v1", episodes=3, seed=0, accelerator=accelerator)
    actions = zip(shown.sample_ids.tolist(), shown.inputs["actions"].flatten().tolist(), strict=True)
    if accelerator.num_processes > 1:
        rows, actions = gather_object(rows), gather_object(list(actions))
    if accelerator.is_main_process:
        facts = {
            "num_processes": accelerator.num_processes,
            "metrics": metrics,
            "rows": sorted(rows, key=lambda row: row[0]),
            "moments": [tensor.flatten().tolist() for tensor in policy.normalizer.buffers()],
            "evaluation": evaluation._asdict(),
            "replayed": [episode.total() for episode in replay(cache)],
            "demonstrated": sorted(actions),
        }
        (output / "facts.json").write_text(json.dumps(facts))
    accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
