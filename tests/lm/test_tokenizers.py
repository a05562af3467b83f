"""What tokenizers made on the spot promise."""

from __future__ import annotations

import pytest

from rlhf.errors import InputError
from rlhf.lm.tokenizers import byte_pair_tokenizer, character_tokenizer

TEXTS = ["a fine film", "a fine and warm film", "un café"]


def test_character_tokenizer_has_one_token_a_character_and_reads_them_back() -> None:
    tokenizer = character_tokenizer("0123456789+=")
    assert tokenizer("12+3=")["input_ids"] == [2, 3, 11, 4, 12]
    assert tokenizer.decode([2, 3, 11, 4, 12]) == "12+3="
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0


def test_character_tokenizer_takes_line_ends_and_refuses_a_character_twice() -> None:
    assert character_tokenizer("ab\n")("a\nb")["input_ids"] == [1, 3, 2]
    with pytest.raises(InputError, match="give each once"):
        character_tokenizer("0120")


def test_byte_pair_tokenizer_refuses_a_size_below_the_bytes() -> None:
    assert len(byte_pair_tokenizer(TEXTS, size=259)) == 259
    with pytest.raises(InputError, match="size is 258; bytes and special tokens alone are 259"):
        byte_pair_tokenizer(TEXTS, size=258)


def test_byte_pair_tokenizer_begins_with_bos_and_reads_back_any_text() -> None:
    tokenizer = byte_pair_tokenizer(TEXTS, size=270)
    assert len(tokenizer) == 270
    for text in (*TEXTS, "never seen: Ω"):
        tokens = tokenizer(text)["input_ids"]
        assert tokens[0] == tokenizer.bos_token_id
        assert tokenizer.eos_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True).strip() == text


def test_byte_pair_tokenizer_merges_what_comes_often() -> None:
    few, many = (byte_pair_tokenizer(TEXTS, size=size) for size in (259, 275))
    assert len(many(TEXTS[1])["input_ids"]) < len(few(TEXTS[1])["input_ids"]) == len(" a fine and warm film") + 1
