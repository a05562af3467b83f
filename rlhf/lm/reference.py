"""The frozen policy that KL is measured against."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from rlhf.lm.model import Model, prepare

_ADAPTER = "reference"


def freeze_copy(model: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """A copy that never learns, in `dtype` (None: as it is)."""
    frozen: Any = copy.deepcopy(model).requires_grad_(False)
    return frozen if dtype is None else frozen.to(dtype)


def freeze_adapter(model: PeftModel) -> bool:
    """Keeps the adapter as it is now beside the one that learns; False if it adds nothing yet, so needs no copy."""
    if adds_nothing(model):
        return False
    weights = get_peft_model_state_dict(model, adapter_name="default")
    if _ADAPTER not in model.peft_config:
        with torch.random.fork_rng(devices=[]):
            model.add_adapter(_ADAPTER, copy.deepcopy(model.peft_config["default"]))
        prepare(model)
    set_peft_model_state_dict(model, weights, adapter_name=_ADAPTER)
    return True


def adds_nothing(model: PeftModel) -> bool:
    """The adapter is as it was made: it leaves every output as it is."""
    weights = get_peft_model_state_dict(model, adapter_name="default")
    fresh = [tensor for name, tensor in weights.items() if "lora_B" in name or "lora_embedding_B" in name]
    return bool(fresh) and all(not tensor.any() for tensor in fresh)


def same_adapter(model: PeftModel) -> bool:
    """The adapter that learns is still the one that was kept."""
    own, kept = (get_peft_model_state_dict(model, adapter_name=name) for name in ("default", _ADAPTER))
    return all(torch.equal(own[name], kept[name]) for name in own)


def same_weights(model: nn.Module, frozen: nn.Module) -> bool:
    """The model is still what the copy was made of, as far as the copy's precision shows."""
    pairs = zip(model.parameters(), frozen.parameters(), strict=True)
    return all(torch.equal(own.detach().to(kept), kept) for own, kept in pairs)


@contextmanager
def reference_adapter(model: PeftModel, *, kept: bool) -> Iterator[Model]:
    """The model with its kept adapter in place of the learning one, or with none if none was kept."""
    tuner: Any = model.base_model
    try:
        if kept:
            tuner.set_adapter(_ADAPTER)
        else:
            tuner.disable_adapter_layers()
        yield model
    finally:
        if not kept:
            tuner.enable_adapter_layers()
        tuner.set_adapter("default")
