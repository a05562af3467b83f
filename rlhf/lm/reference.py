"""The frozen policy that KL is measured against."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rlhf.sharded import together


def freeze_copy(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """A copy that never learns, its parameters in `dtype` (None: as they are).

    Buffers stay as they are: rotary frequencies in bfloat16 would turn late positions by quite another angle.
    """
    frozen = _copy(model).requires_grad_(False)
    if dtype is not None:
        for parameter in frozen.parameters():
            parameter.data = parameter.data.to(dtype)
    return frozen


def _copy(model: PreTrainedModel) -> PreTrainedModel:
    """Of what is spread over processes, which cannot be copied as it is, each gets all."""
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        copied: Any = type(model)(copy.deepcopy(model.config))
    copied = copied.to(device=model.device)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(model.dtype)
    copied.load_state_dict({name: together(tensor) for name, tensor in model.state_dict().items()})
    return cast(PreTrainedModel, copied)


def trained_weights(model: PeftModel) -> dict[str, Tensor]:
    """Copies of all that learns in a model with an adapter, of whatever kind: what does not learn is the same in the
    policy and in its reference."""
    return {
        name: together(tensor.detach()).clone() for name, tensor in model.named_parameters() if tensor.requires_grad
    }


def same_weights(own: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> bool:
    """Whether weights are still what was kept of them, as far as that one's precision shows."""
    pairs = ((together(own[name].detach()), together(tensor)) for name, tensor in kept.items())
    return all(torch.equal(mine.to(theirs), theirs) for mine, theirs in pairs)
