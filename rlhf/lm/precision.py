"""Weights that do not learn, held in the half precision that they are computed with."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf.lm.model import Model, head_of


def holds_frozen(model: Model) -> bool:
    """Whether the frozen layers may be held so: under a plain LoRA, which only multiplies by them. Other adapters
    compute with the weights themselves."""
    if not isinstance(model, PeftModel):
        return False
    return all(map(multiplies_only, model.peft_config.values()))


def multiplies_only(adapter: PeftConfig) -> bool:
    """Whether it is a plain LoRA."""
    return isinstance(adapter, LoraConfig) and not adapter.use_dora


def hold_frozen(model: Model, dtype: torch.dtype) -> None:
    """Casts in place, once, what autocast would cast at every pass: frozen linear layers. Under autocast all numbers
    stay the same to the last bit.

    The LM head stays as it is, since its logits are computed in float32, and so does all that shares its weights.
    """
    kept = {id(parameter) for parameter in head_of(model).parameters()}
    kept |= {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D):
            for parameter in module.parameters():
                if not parameter.requires_grad and id(parameter) not in kept:
                    parameter.data = parameter.data.to(dtype)
