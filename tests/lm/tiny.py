"""Tiny random models of several architectures, saved to a folder and loaded from it, with dropout in their configs."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlhf.lm.load import ModelConfig, policy_of
from rlhf.lm.policy import CausalLM

VOCABULARY = 61
EOS = 3

# Weights large enough that a wrong mask, position or dropout shows far above rounding. pad is eos on purpose.
_COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": EOS}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
_LLAMA = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "attention_dropout": 0.1}
_DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}

_CONFIGS: dict[str, dict[str, object]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": _LLAMA,
    "qwen2": {**_LLAMA, "tie_word_embeddings": True},
    "qwen3": {**_LLAMA, "head_dim": 8},
    "mistral": {**_LLAMA, "head_dim": 8, "sliding_window": 6},
    "gpt_neox": {**_SIZES, **_DROPOUT, "intermediate_size": 48},
    "opt": {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.1, "attention_dropout": 0.1},
    "gemma": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_LLAMA, "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 6},
    "bloom": {**_DROPOUT, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**_DROPOUT, **_SIZES, "alibi": False, "new_decoder_architecture": False},
    "lfm2": {**_LLAMA, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4},
}
ARCHITECTURES = ["gpt2", "llama", "qwen2", "gpt_neox", "opt", "gemma"]
# Soft-capped logits; ALiBi; dropout read from the config; layers without attention.
ODD_ARCHITECTURES = ["gemma2", "bloom", "falcon", "lfm2"]


def save_tiny(architecture: str, folder: Path, **changes: object) -> Path:
    """Writes a random model; returns its folder."""
    config = AutoConfig.for_model(
        architecture, **{**_COMMON, "initializer_range": 0.2, **_CONFIGS[architecture], **changes}
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def load_tiny(folder: Path) -> PreTrainedModel:
    """With plain transformers, evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tiny_policy(folder: Path, *, temperature: float = 1.0, **config: object) -> CausalLM:
    """A policy whose critic and adapter, if any, are not zero any more."""
    policy = policy_of(ModelConfig(model=str(folder), **config), temperature=temperature, seed=0)
    disturb([weight for name, weight in policy.named_parameters() if "value_head" in name or "lora_B" in name], 0.1)
    return policy


def disturb(parameters: object, scale: float) -> None:
    """Adds noise in place, as if some training had happened."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            if parameter.requires_grad:
                parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def random_prompts(lengths: tuple[int, ...] = (3, 7, 1, 5, 7, 2)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def random_inputs() -> dict[str, torch.Tensor]:
    """Rows of several lengths to score: all tokens after the first two are actions, but for a row without any."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([9, 4, 12, 3, 2])
    tokens = torch.randint(VOCABULARY, (5, 12), generator=generator)
    actions = torch.arange(2, 12).repeat(5, 1)
    return {"tokens": tokens, "lengths": lengths, "actions": actions * (actions < lengths.unsqueeze(1))}


def random_uniforms(rows: int, steps: int) -> torch.Tensor:
    return torch.rand(rows, steps, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
