"""Tiny models as .gguf files, written as llama.cpp's converter writes them, and the same weights as a plain folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXT = "12 times 34 is 408.\n\n1. The sea's  edge\n  2) isn't   far: 7 km"
# As the tokenizer of HuggingFaceTB/SmolLM2-135M-Instruct has it.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": 1e5,
    "initializer_range": 0.2,
}
_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def byte_tokenizer(*before: Any) -> Tokenizer:
    """Byte-pair encoding like GPT-2's, after other splits, trained on the spot."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, "    \n\n\n  the sea is far\n\n"] * 20, trainer)
    return tokenizer


def smollm_tokenizer() -> Tokenizer:
    """As in SmolLM2's tokenizer.json: digits stand alone."""
    return byte_tokenizer(pre_tokenizers.Digits(individual_digits=True))


def write_gguf(
    file: Path,
    *,
    kind: Type = Type.F32,
    architecture: str = "llama",
    tied: bool = True,
    tokenizer: Tokenizer | None = None,
    without: Iterable[str] = (),
    changes: dict[str, Any] | None = None,
    merges: tuple[str, ...] = (),
    scores: list[float] | None = None,
) -> dict[str, torch.Tensor]:
    """Writes a random model; returns its weights as the file holds them, by the names that transformers has.

    Args:
        kind: Of the matrices; vectors are float32.
        without: Tensors and keys that are left out.
        changes: Keys to set, or to leave out where they are None.
        merges: More of them, behind the tokenizer's own.
        scores: Of the pieces, which are kept in the place of merges.
    """
    tokenizer = tokenizer or smollm_tokenizer()
    model = random_model(architecture, tokenizer.get_vocab_size(), tied=tied)
    writer = gguf.GGUFWriter(file, architecture)
    config, weights = model.config, {}
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            part = _gguf_name(name)
            values = tensor.numpy()
            if architecture == "llama" and ("attn_q" in part or "attn_k" in part):
                values = _permuted(values, config.num_attention_heads if "attn_q" in part else 2)
            stored = kind if tensor.ndim == 2 else Type.F32
            raw = gguf.quants.quantize(values, stored)
            if part not in without:
                writer.add_tensor(part, raw, raw_dtype=stored)
            kept = gguf.quants.dequantize(raw, stored).reshape(values.shape)
            if architecture == "llama" and ("attn_q" in part or "attn_k" in part):
                kept = _permuted_back(kept, config.num_attention_heads if "attn_q" in part else 2)
            weights[name] = torch.from_numpy(np.array(kept, dtype=np.float32))
    keys: dict[str, Any] = {
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.key_length": _head_dim(architecture),
        f"{architecture}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{architecture}.rope.freq_base": 1e5,
        f"{architecture}.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    } | (changes or {})
    for key, value in keys.items():
        if value is not None and key not in without:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
            add[type(value)](key, value)
    if "tokenizer.ggml.tokens" not in without:
        _add_vocabulary(writer, tokenizer, merges, scores)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def random_model(architecture: str, vocabulary: int, *, tied: bool) -> Any:
    config = AutoConfig.for_model(
        architecture,
        **_SIZES,
        head_dim=_head_dim(architecture),
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _head_dim(architecture: str) -> int:
    # What transformers takes for every Qwen 3.
    return 128 if architecture == "qwen3" else 8


def _add_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, more: tuple[str, ...], scores: list[float] | None
) -> None:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocabulary])
    if scores is None:
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        writer.add_token_merges([*(" ".join(merge) for merge in merges), *more])
    else:
        writer.add_token_scores(scores)
    kinds = {"<unk>": 2} | dict.fromkeys((*SPECIAL, "<s>", "</s>"), 3) | {f"<0x{byte:02X}>": 6 for byte in range(256)}
    writer.add_token_types([kinds.get(token, 1) for token, _ in vocabulary])


def _gguf_name(name: str) -> str:
    stem, end = name.rsplit(".", 1)
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{end}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.{end}"


def _permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head as llama.cpp rotates them: pairs side by side, not half a head apart."""
    return values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def _permuted_back(values: np.ndarray, heads: int) -> np.ndarray:
    return values.reshape(heads, len(values) // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
