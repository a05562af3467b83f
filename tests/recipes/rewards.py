"""Reward functions for `--reward`, one of each kind; the words are those of tests/lm/words.py."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.lm.words import A, C


def count_a(completion_ids: list[list[int]]) -> list[float]:
    return [float(ids.count(A)) for ids in completion_ids]


async def no_b(completions: list[str]) -> list[int]:
    await asyncio.sleep(0)
    return [-completion.count("b") for completion in completions]


def every_c(completion_ids: list[list[int]], **columns: Any) -> list[list[float]]:
    """A reward for each token."""
    return [[float(token == C) for token in ids] for ids in completion_ids]


def by_bonus(completions: list[str], bonus: list[int]) -> list[float]:
    """A column of the data."""
    return [float(number) for number in bonus]


def length_of_turn(prompts: list[Any], completions: list[Any], messages: list[Any]) -> list[float]:
    """Of chat data, whose prompt is all but the last turn."""
    assert prompts == [turns[:-1] for turns in messages]
    return [float(len(turn["content"])) for (turn,) in completions]
