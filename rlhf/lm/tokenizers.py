"""Tokenizers made on the spot, for models that are trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from rlhf.errors import InputError

# The bytes, and `<pad>`, `<bos>` and `<eos>`.
_SMALLEST = 256 + 3


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """One token a character, beside `<eos>`, which also pads and stands for any other.

    Raises:
        InputError: A character is given twice.
    """
    if len(set(characters)) < len(characters):
        raise InputError(f"the characters are {characters!r}; give each once.")
    vocabulary = {token: i for i, token in enumerate(["<eos>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")


def byte_pair_tokenizer(texts: Iterable[str], *, size: int) -> PreTrainedTokenizerFast:
    """Byte-pair encoding trained on the texts; every text begins with `<bos>`.

    Args:
        size: Most tokens, of which 259 are single bytes and what begins, ends and pads; short texts give fewer.

    Raises:
        InputError: `size` is below 259.
    """
    if size < _SMALLEST:
        raise InputError(f"size is {size}; bytes and special tokens alone are {_SMALLEST}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
