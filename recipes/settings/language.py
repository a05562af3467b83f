"""What recipes on language models offer on their command lines, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import fitting, require_learns_from, require_policy, require_settings, resolved
from rlhf.algorithms.choices import find_method, make_method, methods
from rlhf.algorithms.ppo import PPO
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.lm.settings import CollectResponses
from rlhf.loop import Duration
from rlhf.optimize import Optimize, require_rows
from rlhf.settings import Count, CountOrNone, Positive, Settings

with deferred():
    from rlhf.lm.engine import Engine
    from rlhf.lm.vllm import VLLM

# Of an adapter that is asked for without them.
LORA_RANK, LORA_ALPHA = 16, 32.0
# Responses to each prompt where a method compares them and the settings have one.
GROUP_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class Precision(Settings):
    """Numbers that the forward passes compute in; what learns, gradients and the optimizer stay in float32."""

    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16: autocast. Log-probabilities are then scored again by the training forward."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True, kw_only=True)
class CloneConfig(Settings):
    """Behaviour cloning, which is supervised fine-tuning."""

    rows_per_update: Count = 64
    """Demonstrations of one optimizer step, over all processes."""
    train: Duration = Duration(updates=1000, eval_every=0, checkpoint_every=100)
    optimize: Optimize = Optimize(epochs=1, schedule="linear", whiten="none")


@dataclass(frozen=True, kw_only=True)
class ImproveConfig(Settings):
    """A policy-gradient method on the scores of reward functions."""

    collect: CollectResponses = CollectResponses()
    method: Method = PPO()
    train: Duration = Duration(updates=100)
    optimize: Optimize = Optimize()
    reference_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen copy that KL is measured against; beside a LoRA adapter there is no copy."""
    engine: Literal["ours", "vllm"] = "ours"
    """What samples the responses: our decoder, or vLLM (takes rlhf[vllm])."""

    def __post_init__(self) -> None:
        group_size = self.collect.responses_per_prompt
        require_learns_from(self.method, "rewards")
        require_policy(self.method, memoryless=False, has_critic=True)
        require_settings(self.method, resolved(self.method, self.optimize), group_size=group_size)
        num_parts = max(self.optimize.minibatches, self.method.num_parts)
        require_rows(self.collect.prompts_per_rollout * group_size, num_parts)


@dataclass(frozen=True, kw_only=True)
class Adapted(Settings):
    """The options of a recipe that can train an adapter."""

    lora: bool = False
    """Train a LoRA adapter only, of rank 16; a learning rate ten times as large suits it."""
    lora_rank: CountOrNone = 0
    """Train a LoRA adapter only, of this rank; 0 is none, unless lora is given."""
    lora_alpha: Positive = LORA_ALPHA
    """Scale of the adapter, which adds alpha / rank times its product."""
    lora_targets: tuple[str, ...] = ()
    """Modules that get the adapter; left out, it is every linear layer but the head."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4: the layers beside a LoRA adapter are held in 4 bits (QLoRA); takes rlhf[qlora]."""


def lora_settings(config: Adapted) -> dict[str, Any]:
    """What `load_policy` is told of the adapter that a recipe's options ask for."""
    rank = config.lora_rank or (LORA_RANK if config.lora else 0)
    if rank == 0 and (config.lora_alpha != LORA_ALPHA or config.lora_targets):
        name = "lora_targets" if config.lora_targets else "lora_alpha"
        raise InputError(f"{name} is given and no adapter asked for; add lora_rank, such as {LORA_RANK}, or drop it.")
    return {
        "lora_rank": rank,
        "lora_alpha": config.lora_alpha,
        "lora_targets": config.lora_targets,
        "quantize": config.quantize,
    }


def engine_of(improve: ImproveConfig) -> Engine | None:
    """What answers the prompts; None is our decoder. One serves all tasks of a run.

    Raises:
        InputError: It is not installed.
    """
    return VLLM() if improve.engine == "vllm" else None


def for_language_models() -> list[str]:
    """Names of the methods that language models can be trained by."""
    kinds = {name: kind for name, kind in methods().items() if kind.learns_from == "rewards"}
    return [name for name, kind in kinds.items() if not (kind.replays or kind().needs_memoryless)]


def with_method(improve: ImproveConfig, name: str) -> tuple[Literal["shared", "none"], ImproveConfig]:
    """The critic and the settings that go with another method, charged for its KL as the one before.

    Args:
        name: Of `for_language_models()`, or path/to/file.py:Class.
    """
    kind = find_method(name)
    if isinstance(improve.method, kind):
        return "shared", improve
    charged = "kl_coef" in {field.name for field in fields(kind)}
    method = make_method(name, **{"kl_coef": vars(improve.method)["kl_coef"]} if charged else {})
    collect = improve.collect
    if method.needs_groups and collect.responses_per_prompt < 2:
        size = GROUP_SIZE
        collect = replace(collect, prompts_per_rollout=collect.prompts_per_rollout // size, responses_per_prompt=size)
    critic: Literal["shared", "none"] = "none" if method.critic_of == "none" else "shared"
    optimize = fitting(method, improve.optimize)
    return critic, replace(improve, collect=collect, method=method, optimize=optimize)
