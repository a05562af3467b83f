"""What recipes on language models offer on their command lines, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import require_policy, require_rewarded, require_settings, resolved
from rlhf.algorithms.ppo import PPO
from rlhf.lm.collect import CollectResponses
from rlhf.optimize import Optimize, require_rows
from rlhf.training import Duration


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Numbers that the forward passes compute in; weights, gradients and the optimizer stay in float32."""

    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16: autocast. Log-probabilities are then scored again by the training forward."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True, kw_only=True)
class CloneConfig:
    """Behaviour cloning, which is supervised fine-tuning."""

    rows_per_update: int = 64
    """Demonstrations of one optimizer step, over all processes."""
    train: Duration = Duration(updates=1000, eval_every=0, checkpoint_every=100)
    optimize: Optimize = Optimize(epochs=1, schedule="linear", whiten="none")


@dataclass(frozen=True, kw_only=True)
class ImproveConfig:
    """A policy-gradient method on the scores of reward functions."""

    collect: CollectResponses = CollectResponses()
    method: Method = PPO()
    train: Duration = Duration(updates=100)
    optimize: Optimize = Optimize()

    def __post_init__(self) -> None:
        group_size = self.collect.responses_per_prompt
        require_rewarded(self.method)
        require_policy(self.method, memoryless=False, has_critic=True)
        require_settings(self.method, resolved(self.method, self.optimize), group_size=group_size)
        num_parts = max(self.optimize.minibatches, self.method.num_parts)
        require_rows(self.collect.prompts_per_rollout * group_size, num_parts)
