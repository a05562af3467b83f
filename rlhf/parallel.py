"""What of Accelerate a run cannot be under is refused by name, before anything is loaded or written."""

from __future__ import annotations

import os

from rlhf.deferred import deferred
from rlhf.errors import InputError

with deferred():
    from accelerate import Accelerator

# Under each of them some number of a run was seen to be wrong, or was never checked.
_ASKED_FOR = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config (tensor, context or sequence parallelism, or FSDP)",
}
_NAMES = {"DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM", "XLA": "torch XLA"}


def require_environment() -> None:
    """Refuses what a launcher's config asks for in the environment: Accelerate itself may fail of it.

    Raises:
        InputError: It asks for something else than plain data parallelism, or for gradient accumulation.
    """
    for variable, name in _ASKED_FOR.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on", "y", "t"):
            _refuse(name, f" ({variable} is set)")
    _require_no_accumulation(os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"))


def require_accelerator(accelerator: Accelerator) -> None:
    """Refuses all but one process or plain data parallelism, in float32 or bf16, without gradient accumulation.

    Raises:
        InputError: With the name of what is refused, and what to do.
    """
    kind = accelerator.distributed_type.value
    if kind == "FSDP":
        _refuse("FSDP2" if accelerator.is_fsdp2 else "FSDP")
    if kind != "NO" and not kind.startswith("MULTI_"):
        _refuse(_NAMES.get(kind, kind))
    if getattr(accelerator, "parallelism_config", None) is not None:
        _refuse(_ASKED_FOR["ACCELERATE_USE_PARALLELISM_CONFIG"])
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise InputError(
            f"Accelerate's mixed precision is {accelerator.mixed_precision}, which is not offered; choose no or bf16."
        )
    _require_no_accumulation(str(accelerator.gradient_accumulation_steps))


def _refuse(name: str, where: str = "") -> None:
    raise InputError(
        f"Accelerate is set to {name}{where}, under which numbers of a run would be wrong; use plain data parallelism "
        "(distributed_type MULTI_GPU or MULTI_CPU, as in recipes/accelerate/multi_gpu.yaml) or a single process."
    )


def _require_no_accumulation(steps: str) -> None:
    if steps not in ("", "1"):
        raise InputError(
            f"Accelerate's gradient_accumulation_steps is {steps}, which would divide the gradient; set it to 1. Here "
            "micro_batch_cost alone says how much is held at once, and the gradient stays that of the whole minibatch."
        )
