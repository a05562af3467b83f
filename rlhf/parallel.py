"""What of Accelerate a run cannot be under is refused by name, before anything is loaded or written."""

from __future__ import annotations

import os

from rlhf.deferred import deferred
from rlhf.errors import InputError

with deferred():
    from accelerate import Accelerator
    from torch.distributed.fsdp import CPUOffloadPolicy

# Under each of them some number of a run was seen to be wrong, or was never checked.
_ASKED_FOR = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config (tensor, context or sequence parallelism, or FSDP)",
}
# What an FSDP config can ask for beside sharding; in the environment it is in capitals, with FSDP_ before.
_NOT_WITH_FSDP2 = {
    "cpu_ram_efficient_loading": "one process alone would read the weights",
    "offload_params": "weights would leave the GPU between passes",
    "activation_checkpointing": "here it is --precision.gradient-checkpointing that asks for it",
}
_NAMES = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM", "XLA": "torch XLA"}


def require_environment() -> None:
    """Refuses what a launcher's config asks for in the environment: Accelerate itself may fail of it.

    Raises:
        InputError: It asks for something else than data parallelism or FSDP2, or for gradient accumulation.
    """
    for variable, name in _ASKED_FOR.items():
        if _is_set(variable):
            _refuse(name, f" ({variable} is set)")
    if _is_set("ACCELERATE_USE_FSDP"):
        if os.environ.get("FSDP_VERSION", "1") != "2":
            _refuse("FSDP 1", " (ACCELERATE_USE_FSDP is set, and FSDP_VERSION is not 2)")
        for field in _NOT_WITH_FSDP2:
            _require_off(field, _is_set(f"FSDP_{field.upper()}"))
    _require_no_accumulation(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"))


def require_accelerator(accelerator: Accelerator) -> None:
    """Refuses all but one process, data parallelism and FSDP2, in float32 or bf16, without gradient accumulation.

    Raises:
        InputError: With the name of what is refused, and what to do.
    """
    kind = accelerator.distributed_type.value
    if kind == "FSDP":
        if not accelerator.is_fsdp2:
            _refuse("FSDP 1")
        plugin = accelerator.state.fsdp_plugin
        offloads = isinstance(plugin.cpu_offload, CPUOffloadPolicy)
        for field in _NOT_WITH_FSDP2:
            _require_off(field, offloads if field == "offload_params" else bool(getattr(plugin, field)))
    if kind not in ("NO", "FSDP") and not kind.startswith("MULTI_"):
        _refuse(_NAMES.get(kind, kind))
    if getattr(accelerator, "parallelism_config", None) is not None:
        _refuse(_ASKED_FOR["ACCELERATE_USE_PARALLELISM_CONFIG"])
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise InputError(
            f"Accelerate's mixed precision is {accelerator.mixed_precision}, which is not offered; choose no or bf16."
        )
    _require_no_accumulation(str(accelerator.gradient_accumulation_steps))


def require_shardable(accelerator: Accelerator, method: str, *, layers: bool, shardable: bool) -> None:
    """Refuses what cannot be spread over processes, where Accelerate's config asks for that.

    Args:
        layers: The policy names its layers.
        shardable: The method needs no process to hold all weights at once.

    Raises:
        InputError: With what to do.
    """
    if accelerator.distributed_type.value == "FSDP" and not (layers and shardable):
        what = f"{method} goes over all weights at once" if layers else "this policy names no layers to spread"
        raise InputError(
            f"Accelerate is set to FSDP2, and {what}; use plain data parallelism (recipes/accelerate/multi_gpu.yaml)."
        )


def _require_off(field: str, asked_for: bool) -> None:
    if asked_for:
        raise InputError(
            f"Accelerate's FSDP config has fsdp_{field}: {_NOT_WITH_FSDP2[field]}, which is not offered; set it to "
            "false, as in recipes/accelerate/fsdp.yaml."
        )


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "y", "t")


def _refuse(name: str, where: str = "") -> None:
    raise InputError(
        f"Accelerate is set to {name}{where}, under which numbers of a run would be wrong; use plain data parallelism "
        "(distributed_type MULTI_GPU or MULTI_CPU, as in recipes/accelerate/multi_gpu.yaml), FSDP2 "
        "(recipes/accelerate/fsdp.yaml) or a single process."
    )


def _require_no_accumulation(steps: str) -> None:
    if steps not in ("", "1"):
        raise InputError(
            f"Accelerate's gradient_accumulation_steps is {steps}, which would divide the gradient; set it to 1. Here "
            "micro_batch_cost alone says how much is held at once, and the gradient stays that of the whole minibatch."
        )
