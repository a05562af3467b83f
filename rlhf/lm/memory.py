"""Memory that a run takes for certain, looked at before it starts."""

from __future__ import annotations

from collections.abc import Iterable

import psutil
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor

from rlhf.errors import InputError
from rlhf.lm.policy import CausalLM
from rlhf.sharded import shards


def size(tensors: Iterable[Tensor]) -> float:
    """Bytes."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def free_memory(device: torch.device) -> float:
    """Bytes that this process can still have."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available + psutil.swap_memory().free)


def size_of_reference(policy: CausalLM) -> float:
    """Bytes that the reference takes, or will, beside the policy: of what learns beside an adapter, of a teacher, which
    is there already, none, else of a copy."""
    if policy.teacher is not None:
        return 0.0
    if isinstance(policy.model, PeftModel):
        return size(parameter for parameter in policy.model.parameters() if parameter.requires_grad)
    held = policy.reference_dtype
    return float(sum(p.numel() * (p.dtype if held is None else held).itemsize for p in policy.model.parameters()))


def certain_memory(policy: CausalLM, *, needs_reference: bool, accelerator: Accelerator) -> dict[str, float]:
    """Bytes by part that a run takes beside what there is, before it has read a token: weights that have yet to move to
    the device, a copy of them as reference, gradients (twice, if processes exchange them), and AdamW's two moments."""
    # Where they are spread over processes, each has its part.
    spread = accelerator.num_processes if shards(accelerator) else 1
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    moving = [parameter for parameter in policy.parameters() if parameter.device.type != accelerator.device.type]
    return {
        "weights": size(moving),
        "reference": size_of_reference(policy) if needs_reference else 0.0,
        "gradients": size(trained) * (2 if accelerator.num_processes > 1 else 1) / spread,
        "optimizer": 2 * size(trained) / spread,
    }


def require_memory(policy: CausalLM, *, needs_reference: bool, accelerator: Accelerator) -> None:
    """Refuses a run that memory ends for even without its activations.

    Raises:
        InputError: With the parts and the settings to change.
    """
    parts = certain_memory(policy, needs_reference=needs_reference, accelerator=accelerator)
    needed, free = sum(parts.values()), free_memory(accelerator.device)
    if needed > free:
        told = ", ".join(f"{name} {held / 2**30:.2f}" for name, held in parts.items() if held)
        raise InputError(
            f"the run takes at least {needed / 2**30:.2f} GiB more ({told}), and {free / 2**30:.2f} GiB are free on "
            f"{accelerator.device.type}. An adapter (lora_rank) needs no gradient and moments for the rest, "
            "reference_dtype bfloat16 halves a copy, kl_coef 0 needs none; `rlhf plan` tells what each takes."
        )
