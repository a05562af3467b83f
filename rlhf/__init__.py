"""Fine-tune language models with reinforcement learning, by the code that solves CartPole.

A task, a method and a policy go into `train`:

    policy = rlhf.load_policy("HuggingFaceTB/SmolLM2-135M-Instruct", lora_rank=16)
    task = rlhf.Prompts("prompts.jsonl", reward, max_new_tokens=64, responses_per_prompt=8)
    rlhf.train(policy, task, rlhf.GRPO(), rlhf.Optimize(learning_rate=1e-5), updates=100, out="runs/mine")

Names are imported when they are first used: control needs no transformers, a language model no gymnasium.
"""

from __future__ import annotations

import importlib
from typing import Any

_ROOMS = {
    "rlhf.training": ("train", "train_phase", "Result"),
    "rlhf.loop": ("Duration",),
    "rlhf.optimize": ("Optimize",),
    "rlhf.task": ("Here", "Task"),
    "rlhf.watched": ("Watched",),
    "rlhf.rollout": ("Batch", "Collected", "PolicyOutput", "Rollout", "batch_of", "charge_kl"),
    "rlhf.runs.evaluate": ("Evaluation",),
    "rlhf.errors": ("InputError",),
    "rlhf.algorithms.base": ("Method",),
    "rlhf.algorithms.a2c": ("A2C",),
    "rlhf.algorithms.bradley_terry": ("BradleyTerry",),
    "rlhf.algorithms.cispo": ("CISPO",),
    "rlhf.algorithms.clone": ("BehaviourCloning",),
    "rlhf.algorithms.dpo": ("DPO",),
    "rlhf.algorithms.grpo": ("GRPO",),
    "rlhf.algorithms.gspo": ("GSPO",),
    "rlhf.algorithms.kto": ("KTO",),
    "rlhf.algorithms.ppo": ("PPO",),
    "rlhf.algorithms.reinforce": ("Reinforce",),
    "rlhf.algorithms.rloo": ("RLOO",),
    "rlhf.algorithms.sac": ("SAC",),
    "rlhf.algorithms.trpo": ("TRPO",),
    "rlhf.control.act": ("act",),
    "rlhf.control.load": ("load_control_policy",),
    "rlhf.control.tasks": ("Envs",),
    "rlhf.lm.answer": ("answer",),
    "rlhf.lm.classifier": ("save_reward_model",),
    "rlhf.lm.conversations": ("Conversations",),
    "rlhf.lm.demonstrations": ("Demonstrations", "Texts"),
    "rlhf.lm.endpoint": ("Endpoint", "Judge"),
    "rlhf.lm.engine": ("Engine", "Generation", "Sampling"),
    "rlhf.lm.load": ("load_policy",),
    "rlhf.lm.preferences": ("Preferences",),
    "rlhf.lm.prompts": ("Prompts",),
    "rlhf.lm.sampled_pairs": ("sample_pairs",),
    "rlhf.lm.vllm": ("VLLM",),
}
_PLACES = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'rlhf' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
