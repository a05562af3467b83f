"""Prompts to train on: requests with one to three instructions that a program checks. None is IFEval's."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlhf.core.random import hashed_order
from rlhf.errors import InputError
from rlhf.lm.verifiers.drawn import Draws, Request, fit, keywords, together
from rlhf.lm.verifiers.kinds import CHECKERS
from rlhf.lm.verifiers.topics import FORMS, TOPICS, YES_OR_NO
from rlhf.lm.verifiers.wordings import LANGUAGES, WORDINGS
from rlhf.settings import Count, Seed, checked

KINDS = tuple(CHECKERS)

# One topic in eight is held out, whatever the seed.
_PARTS = 8
# As many instructions as are drawn of these, if so many fit.
_NUM_INSTRUCTIONS = (1, 1, 1, 1, 1, 2, 2, 2, 3, 3)


@checked
def instruction_prompts(
    *, num_rows: Count, seed: Seed, held_out: bool = False, kinds: Sequence[str] = KINDS, most: Count = 3
) -> list[dict[str, Any]]:
    """Rows for `Prompts` and the rewards of instructions.py: `prompt` (chat messages), `request` (what is asked for,
    without its instructions: what a relevant answer is relevant to), `topic`, `instruction_id_list`, `kwargs`.

    A row follows from the seed and its number, so fewer rows are the first of more.

    Args:
        held_out: Of topics that are in no other rows, at whatever seed; and drawn apart.
        kinds: Those that the rows have, of kinds.py. Those left out in training can be evaluated: they show whether
            the model follows better, or only these.
        most: Instructions of one row.

    Raises:
        InputError: There is no such kind.
    """
    unknown = [kind for kind in kinds if kind not in CHECKERS]
    if unknown or not kinds:
        raise InputError(
            f"kinds is {list(kinds)!r:.60}{f', and {unknown[0]!r} is none' if unknown else ''}; take at least one of "
            f"{', '.join(CHECKERS)}."
        )
    purpose = "held-out instructions" if held_out else "instructions"
    topics = _topics(held_out=held_out)
    return [_row(Draws(seed, purpose, row), topics, kinds, most) for row in range(num_rows)]


def kinds_but(left_out: Sequence[str]) -> list[str]:
    """All kinds but these."""
    return [kind for kind in KINDS if kind not in left_out]


def _topics(*, held_out: bool) -> list[tuple[str, str]]:
    """(sort, topic): of every sort the same share is held out."""
    found = []
    for sort, topics in TOPICS.items():
        order = hashed_order(0, f"held-out {sort}", 0, torch.arange(len(topics))).tolist()
        apart = len(topics) // _PARTS
        found += [(sort, topics[place]) for place in (order[:apart] if held_out else order[apart:])]
    return found


def _row(draws: Draws, topics: list[tuple[str, str]], kinds: Sequence[str], most: int) -> dict[str, Any]:
    # The first instruction before the request, so that every kind is as frequent as any other.
    kind = draws.one(kinds)
    sort, topic = draws.one(topics)
    yes_or_no = YES_OR_NO[sort]
    form = draws.one(yes_or_no if kind == "detectable_format:constrained_response" else FORMS[sort] + yes_or_no)
    request = Request(form.format(topic=topic), topic, form in yes_or_no)
    chosen = {kind: keywords(kind, request, draws)}
    wanted = min(most, draws.one(_NUM_INSTRUCTIONS))
    left = [other for other in kinds if fit(other, chosen, request)]
    while left and len(chosen) < wanted:
        kind = left.pop(left.index(draws.one(left)))
        more = chosen | {kind: keywords(kind, request, draws)}
        if together(more, request):
            chosen = more
            left = [other for other in left if fit(other, chosen, request)]
    return {
        "prompt": [{"role": "user", "content": _worded(chosen, request, draws)}],
        "request": request.text,
        "topic": request.topic,
        "instruction_id_list": list(chosen),
        "kwargs": list(chosen.values()),
    }


def _worded(chosen: Mapping[str, Mapping[str, Any]], request: Request, draws: Draws) -> str:
    sentences = draws.some([_sentence(kind, asked, draws) for kind, asked in chosen.items()], len(chosen))
    # After an example, or what is no full stop, on a line of its own.
    ends = [" " if sentence.endswith(".") and "\n" not in sentence else "\n" for sentence in sentences[:-1]]
    instructions = "".join(itertools.chain.from_iterable(zip(sentences, [*ends, ""], strict=True)))
    if "combination:repeat_prompt" in chosen:
        # It speaks of what stands above it.
        return f"{request.text}\n\n{instructions}"
    return draws.one(
        (
            f"{request.text} {instructions}",
            f"{request.text} {instructions}",
            f"{request.text}\n{instructions}",
            f"{request.text}\n\n{instructions}",
            f"{instructions}\n\n{request.text}",
        )
    )


def _sentence(kind: str, asked: Mapping[str, Any], draws: Draws) -> str:
    relations = [value for value in asked.values() if value in ("at least", "less than")]
    wording = draws.one(WORDINGS[" ".join([kind, *relations])])
    return wording.format(**{name: _written(name, value) for name, value in asked.items()})


def _written(name: str, value: Any) -> str:
    if name == "language":
        return LANGUAGES[value]
    if isinstance(value, list):
        *others, last = (f'"{word}"' for word in value)
        return f"{', '.join(others)} and {last}" if others else last
    return f'"{value}"' if name in ("keyword", "letter", "first_word") else str(value)
