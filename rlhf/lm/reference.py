"""The frozen policy that KL is measured against."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel


def freeze_copy(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """A copy that never learns, its parameters in `dtype` (None: as they are).

    Buffers stay as they are: rotary frequencies in bfloat16 would turn late positions by quite another angle.
    """
    frozen: PreTrainedModel = copy.deepcopy(model).requires_grad_(False)
    if dtype is not None:
        for parameter in frozen.parameters():
            parameter.data = parameter.data.to(dtype)
    return frozen


def trained_weights(model: PeftModel) -> dict[str, Tensor]:
    """Copies of all that learns in a model with an adapter, of whatever kind: what does not learn is the same in the
    policy and in its reference."""
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.requires_grad}


def same_weights(own: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> bool:
    """Whether weights are still what was kept of them, as far as that one's precision shows."""
    return all(torch.equal(own[name].detach().to(tensor), tensor) for name, tensor in kept.items())
