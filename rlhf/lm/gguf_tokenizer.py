"""The tokenizer in a .gguf file, as the model's own: of the rule by which text is split, the file has the name only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rlhf.errors import InputError
from rlhf.lm.loading import opened

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = rf"{_CASED[0]}{_SHORT}?|{_CASED[1]}{_SHORT}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
# What splits a text, one after the other, by `tokenizer.ggml.pre`: as in llama.cpp's src/llama-vocab.cpp.
_SPLITS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), (_QWEN2,)),
    "tekken": (_TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
# Of these every text begins with a token, and a word that is a token is never put together from others.
_BEGUN = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def from_gguf(auto: Any, file: Path, **options: Any) -> Any:
    """What one of transformers' classes makes of a .gguf file; whatever it objects to is an InputError."""

    def load(source: str, **given: Any) -> Any:
        return auto.from_pretrained(str(Path(source).parent), gguf_file=Path(source).name, **given)

    return opened(load, str(file), **options)


def gguf_tokenizer(file: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that a .gguf file describes, with its chat template.

    Raises:
        InputError: There is none, or it splits text by a rule that is not known here.
    """
    kind, tokens = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.tokens")
    if not kind or not tokens or kind == "none":
        raise InputError(f"{file} holds a model without a tokenizer; give one with, or a folder of safetensors.")
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED.items()}
    beyond = [number for number in ids.values() if number is not None and number >= len(tokens)]
    if beyond:
        raise InputError(f"{file} names a token {beyond[0]}, and its tokenizer has {len(tokens)}; download it again.")
    named: dict[str, Any] = {name: None if number is None else tokens[number] for name, number in ids.items()}
    if kind == "gpt2":
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level(file, metadata), **named)
    else:
        tokenizer = from_gguf(AutoTokenizer, file)
        for name, token in named.items():
            setattr(tokenizer, name, token)
    # Where the file does not say it, as llama.cpp does.
    begun = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _BEGUN
    around = {
        "bos_token": metadata.get("tokenizer.ggml.add_bos_token", begun),
        "eos_token": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    bos, eos = ([named[name]] if wanted and named[name] else [] for name, wanted in around.items())
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*bos, "$A", *eos], special_tokens=[(token, tokens.index(token)) for token in {*bos, *eos}]
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    return tokenizer


def _byte_level(file: Path, metadata: dict[str, Any]) -> Tokenizer:
    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.merges", [])
    # Files from before the rule had a name are of models with GPT-2's.
    rule = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if rule not in _SPLITS:
        raise InputError(
            f"{file} splits text by the rule {rule!r}, which is not known here; give the model as a folder of "
            "safetensors with its tokenizer."
        )
    kinds = metadata.get("tokenizer.ggml.token_type") or [0] * len(tokens)
    vocabulary = {
        token: number for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED
    }
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    model = opened(lambda _: models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=rule in _BEGUN), str(file))
    tokenizer = Tokenizer(model)
    if _SPLITS[rule] == (_QWEN2,):
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in _SPLITS[rule]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        tokenizer.add_tokens(
            [
                AddedToken(token, normalized=False, special=special)
                for token, of_kind in zip(tokens, kinds, strict=True)
                if of_kind == kind
            ]
        )
    return tokenizer
