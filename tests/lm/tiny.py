"""Tiny random models of several architectures, saved to a folder and loaded from it, with dropout in their configs."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 61
EOS = 3

_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": EOS}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
_LLAMA = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "attention_dropout": 0.1}
# Weights large enough that a wrong mask, position or dropout shows.
_WIDE = {"initializer_range": 0.3}

_CONFIGS = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": _LLAMA,
    "qwen2": {**_LLAMA, "tie_word_embeddings": True},
    "gpt_neox": {**_SIZES, "intermediate_size": 48, "attention_dropout": 0.1, "hidden_dropout": 0.1},
    "opt": {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1, "attention_dropout": 0.1},
    "gemma": {**_LLAMA, "head_dim": 8},
    "gemma2": {
        **_LLAMA,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 3.0,
        "sliding_window": 6,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.1, "attention_dropout": 0.1},
}
ARCHITECTURES = ["gpt2", "llama", "qwen2", "gpt_neox", "opt", "gemma"]


def save_tiny(architecture: str, folder: Path, **changes: object) -> Path:
    """A random model's folder."""
    config = AutoConfig.for_model(architecture, **{**_COMMON, **_WIDE, **_CONFIGS[architecture], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def load_tiny(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
