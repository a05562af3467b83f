"""What a run will take before it starts: peak memory by part and seconds of an update by phase, measured in a minute.

    rlhf plan --model HuggingFaceTB/SmolLM2-135M-Instruct --lora
    python recipes/plan.py --model path/to/model --gpus 8 --method grpo --precision.mixed-precision bf16
    python recipes/plan.py --model path/to/model --prompt-tokens 200 --max-new-tokens 512 --memory-gib 80

The settings are those of the other recipes on language models. Of the model only the config is read, so nothing large
is downloaded; a model of its sizes and random weights acts and learns for a moment where this runs, and of a large one
a few layers do. Seconds are those of this machine, memory is that of any. What does not fit ends with status 2 and with
the settings to change.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

from tyro import MISSING

from recipes.settings.language import (
    Adapted,
    ImproveConfig,
    Precision,
    for_language_models,
    lora_settings,
    with_method,
)
from rlhf.algorithms.choices import method_help
from rlhf.deferred import deferred
from rlhf.runs.launch import launch
from rlhf.settings import Count, CountOrNone, Location, Positive

# Torch tells of its profiler's start and of blocks that were there before; it asks once, when it is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

with deferred():
    import torch

    from rlhf.lm.calibration import Planned
    from rlhf.lm.load import ModelConfig
    from rlhf.lm.plan import plan, require_fits, room, show


@dataclass(frozen=True, kw_only=True)
class Config(Adapted):
    """What a run on a language model will take."""

    model: Location
    """Hub id or folder of a causal language model or LoRA adapter, or a .gguf file."""
    gpus: Count = 1
    """Processes that share each rollout, one a device."""
    memory_gib: Positive | None = None
    """Of one device; None is what this machine has free."""
    prompt_tokens: Count = 64
    """Tokens of a prompt, with what its chat template adds."""
    max_new_tokens: Count = 64
    """Longest response, in tokens."""
    response_tokens: CountOrNone = 0
    """Tokens of a response on average, which the time follows; 0 is the longest."""
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the policy's own trunk, on a trunk of its own, or no values: all are 0."""
    precision: Precision = Precision()
    improve: ImproveConfig = ImproveConfig()


def default_config(method: str = "ppo") -> Config:
    """The settings that go with a method: critic, group size, whitening."""
    config = Config(model=MISSING)
    critic, improve = with_method(config.improve, method)
    return replace(config, critic=critic, improve=improve)


def main(config: Config) -> dict[str, float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    planned = Planned(
        model=ModelConfig(
            model=config.model,
            critic=config.critic,
            **lora_settings(config),
            gradient_checkpointing=config.precision.gradient_checkpointing,
            reference_dtype=config.improve.reference_dtype,
        ),
        method=config.improve.method,
        collect=config.improve.collect,
        optimize=config.improve.optimize,
        mixed_precision=config.precision.mixed_precision,
        prompt_tokens=config.prompt_tokens,
        max_new_tokens=config.max_new_tokens,
        response_tokens=config.response_tokens or config.max_new_tokens,
        processes=config.gpus,
    )
    free = room(device) if config.memory_gib is None else config.memory_gib * 2**30
    found = plan(planned, device)
    show(found, free)
    require_fits(planned, found, free)
    return {"peak_gib": found.peak / 2**30, "seconds": sum(found.seconds.values())}


if __name__ == "__main__":
    launch(main, Config, default=default_config, picks={"method": method_help(for_language_models())})
