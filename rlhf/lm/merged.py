"""Weights with their adapter in them, as one model: for what reads no adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from rlhf.errors import InputError
from rlhf.lm.four_bits import FourBitLinear
from rlhf.lm.model import Model, base_of
from rlhf.lm.precision import multiplies_only


def require_mergeable(model: Model, needs: str, otherwise: str) -> None:
    """Refuses adapters that are no part of the weights, or of weights that the model has twice.

    Args:
        needs: Who needs them merged, and why.
        otherwise: What to do instead.
    """
    if not isinstance(model, PeftModel):
        return
    configs = list(model.peft_config.values())
    base = base_of(model)
    if not all(map(multiplies_only, configs)) or any(isinstance(m, AuxiliaryTrainingWrapper) for m in base.modules()):
        kinds = ", ".join(type(config).__name__ for config in configs)
        raise InputError(
            f"{needs} and plain LoRA adapters of linear layers; this one's is {kinds} with more to it (DoRA, "
            f"modules_to_save, trainable tokens). Merge it into the model, or {otherwise}."
        )
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    if any(isinstance(end, BaseTunerLayer) for end in ends) and base.config.get_text_config().tie_word_embeddings:
        raise InputError(
            f"the adapter is on the head or the embedding, which are one weight in this model, and {needs}; merging "
            f"would give it to both or to neither. Leave them out of lora_targets, or {otherwise}."
        )


@torch.no_grad()
def merged_weights(base: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of a transformers model by name, those under an adapter with that, added in float32."""
    adapted = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    packed = {name: module for name, module in base.named_modules() if isinstance(module, FourBitLinear)}
    apart = tuple(f"{name}." for name in (*adapted, *packed))
    for name, parameter in base.named_parameters():
        if not name.startswith(apart):
            yield name, parameter.detach()
    for name, layer in packed.items():
        if not name.startswith(tuple(f"{each}." for each in adapted)):
            yield from _parts(name, layer.whole(), dtype, transposed=layer.stored_transposed)
    for name, adapter in adapted.items():
        # A copy, so that the weights that learn and those beside them stay as they are to the last bit.
        merged = copy.deepcopy(adapter)
        inner = merged.get_base_layer()
        if isinstance(inner, FourBitLinear):
            cast(Any, merged).base_layer = inner.whole()
        merged.get_base_layer().float()
        merged.merge()
        transposed = isinstance(inner, FourBitLinear) and inner.stored_transposed
        yield from _parts(name, merged.get_base_layer(), dtype, transposed=transposed)


def _parts(name: str, layer: nn.Module, dtype: torch.dtype, *, transposed: bool) -> Iterator[tuple[str, Tensor]]:
    for part, parameter in layer.named_parameters():
        stored = parameter.T if transposed and part == "weight" else parameter
        yield f"{name}.{part}", stored.detach().to(dtype)
