"""A model's tokenizer, and which of the model's tokens it knows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from rlhf.errors import InputError
from rlhf.lm.loading import opened


def has_tokenizer(source: str) -> bool:
    """Whether a folder or a model of the hub has a tokenizer of its own."""
    return any(
        opened(cached_file, source, filename=name, _raise_exceptions_for_missing_entries=False) is not None
        for name in ("tokenizer_config.json", "tokenizer.json")
    )


def pretrained_tokenizer(source: str) -> Any:
    """The tokenizer in a folder or of a model of the hub."""
    tokenizer = opened(AutoTokenizer.from_pretrained, source, trust_remote_code=False)
    # Where a folder holds no tokenizer, transformers may make up one without a single word.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise InputError(f"{source!r} holds no tokenizer; save the model's own beside it (tokenizer.save_pretrained).")
    return tokenizer


def vocabulary_size(model: PreTrainedModel) -> int:
    """The number of tokens that a model has numbers for."""
    return model.config.get_text_config().vocab_size


def require_room(tokenizer: Any, size: int, owner: str) -> None:
    """Refuses a tokenizer that says more tokens than a model has embeddings for."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= size:
        raise InputError(
            f"the tokenizer has tokens up to number {largest}, but {owner} has embeddings for {size}, up to number "
            f"{size - 1}; resize the model (resize_token_embeddings) and save it, or take the tokenizer it was trained "
            "with."
        )


def unknown_tokens(tokenizer: Any, size: int) -> Tensor | None:
    """`(V,)`, True where a token of the model is none of the tokenizer's, as where a vocabulary was padded to a round
    size; None if there are none such. They stand for no text."""
    unknown = torch.ones(size, dtype=torch.bool)
    unknown[list(tokenizer.get_vocab().values())] = False
    return unknown if bool(unknown.any()) else None
