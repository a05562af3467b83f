"""Texts as tokens, and sampled tokens as texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def encoded(tokenizer: Any, texts: list[str], *, keep_end: bool = False) -> list[list[int]]:
    """Tokens with what the tokenizer puts in front (BOS), once: texts that were rendered beforehand begin with it.

    Args:
        keep_end: Also with what it may put behind, as classifiers need it; else nothing is finished yet.
    """
    if not texts:
        return []
    whole = tokenizer(texts)["input_ids"]
    plain = tokenizer(texts, add_special_tokens=False)["input_ids"]
    result = []
    for full, bare in zip(whole, plain, strict=True):
        starts = (i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
        start = next(starts, len(full))
        front, end = full[:start], full[start + len(bare) :]
        tokens = bare if front and bare[: len(front)] == front else [*front, *full[start : start + len(bare)]]
        result.append([*tokens, *end] if keep_end else tokens)
    return result


def ended(tokenizer: Any, tokens: list[int]) -> list[int]:
    """The tokens with an end-of-sequence token behind, once, if the tokenizer has one."""
    eos = tokenizer.eos_token_id
    return tokens if eos is None or tokens[-1:] == [eos] else [*tokens, eos]


def continuation(tokenizer: Any, completion: str) -> list[int]:
    """Tokens of a text that follows another; some tokenizers would begin it with a space that it does not have."""
    alone: list[int] = tokenizer(completion, add_special_tokens=False)["input_ids"]
    if decoded(tokenizer, [alone], follows=True) == [completion]:
        return alone
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    after = tokenizer("\n" + completion, add_special_tokens=False)["input_ids"]
    rest = after[len(newline) :]
    same = after[: len(newline)] == newline and decoded(tokenizer, [rest], follows=True) == [completion]
    return rest if same else alone


def decoded(
    tokenizer: Any, rows: Sequence[Sequence[int]], *, follows: bool, skip_special_tokens: bool = False
) -> list[str]:
    """Each row as text.

    Args:
        follows: What stands before the row is text too. Tokenizers of the sentencepiece kind take a space off the
            beginning of what they decode, which is no beginning then: so a letter stands in front, and is taken off.
    """
    front: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"] if follows else []
    options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    letter = tokenizer.decode(front, **options)
    texts: list[str] = tokenizer.batch_decode([[*front, *row] for row in rows], **options)
    return [text.removeprefix(letter) for text in texts]


def response_texts(tokenizer: Any, ids: Sequence[Sequence[int]], prompts: Sequence[Any]) -> list[str]:
    """What was sampled as text: a string goes on, so that string plus response is the whole; an answer to messages
    stands for itself."""
    alone, following = (decoded(tokenizer, ids, follows=follows, skip_special_tokens=True) for follows in (False, True))
    return [
        after if isinstance(prompt, str) else text
        for text, after, prompt in zip(alone, following, prompts, strict=True)
    ]
