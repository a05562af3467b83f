"""Pairs and labels as people have them, and as the rows that methods learn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.errors import InputError
from rlhf.lm.chat import Chat, require_messages, require_prompt, whole_tokens
from rlhf.lm.data import Data, demonstration_sequences, lm_inputs
from rlhf.lm.templates import template_arguments
from rlhf.lm.texts import encoded, ended
from rlhf.rollout import Rollout

_TOLD = ("tools", "chat_template_kwargs")


class Answers(NamedTuple):
    """Prompts with an answer each, and what that is worth.

    Args:
        data: Columns prompt and completion, and what the chat template is told.
        worth: `(N,)`, above 0 for what was chosen or is desirable, below 0 for the others; of a pair the difference is
            the margin.
    """

    data: Data
    worth: Tensor


def preferred(data: Data) -> tuple[Answers, ...]:
    """What the rows say that people prefer: what was chosen and what was rejected, or what was labelled one by one.

    `chosen` and `rejected` are strings or lists of messages, with a `prompt` (string or messages) or without: then what
    both begin with is the prompt, of strings up to the last space. A column `margin`, or `score_chosen` and
    `score_rejected`, says by how much. `prompt`, `completion` and `label` (true: desirable) is one answer a row.

    Raises:
        InputError: The columns fit neither; a side is missing, the two are equal or share no prompt; a margin is no
            number above 0; all labels are the same.
    """
    if {"chosen", "rejected"} <= set(data.columns):
        return _pairs(data)
    if {"prompt", "completion", "label"} <= set(data.columns):
        return _labelled(data)
    raise InputError(
        f"{data.name} has columns {', '.join(data.columns)}; preferences need chosen and rejected, with a prompt or "
        "with what both begin with, or prompt, completion and label (true or false). Rename columns until one fits."
    )


def _pairs(data: Data) -> tuple[Answers, ...]:
    chosen, rejected = data.values("chosen"), data.values("rejected")
    prompts = data.values("prompt") if "prompt" in data.columns else [None] * len(chosen)
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for row, (prompt, better, worse) in enumerate(zip(prompts, chosen, rejected, strict=True)):
        where = f"{data.name}: row {row}"
        told = {name: data.rows[row][name] for name in _TOLD if name in data.columns}
        shared, *answers = _split(prompt, better, worse, where)
        for side, answer in zip(sides, answers, strict=True):
            side.append({"prompt": shared, "completion": answer, **told})
    halves = 0.5 * _margins(data)
    return tuple(
        Answers(Data(name=f"{data.name}, {name}", rows=rows), worth)
        for name, rows, worth in zip(("chosen", "rejected"), sides, (halves, -halves), strict=True)
    )


def _split(prompt: Any, chosen: Any, rejected: Any, where: str) -> tuple[Any, Any, Any]:
    """The prompt, and what follows it on either side."""
    if type(chosen) is not type(rejected) or not isinstance(chosen, str | list):
        raise InputError(
            f"{where}: chosen is {type(chosen).__name__} and rejected {type(rejected).__name__}; both must be strings, "
            "or both lists of messages."
        )
    if chosen == rejected:
        raise InputError(f"{where}: chosen and rejected are equal ({chosen!r:.60}), so there is nothing to prefer.")
    if isinstance(chosen, str):
        if prompt is not None:
            require_prompt(prompt, where)
            return prompt, chosen, rejected
        return _common_text(chosen, rejected, where)
    for messages in (chosen, rejected):
        require_messages(messages, where)
    if isinstance(prompt, list) and chosen[: len(prompt)] != prompt and rejected[: len(prompt)] != prompt:
        return prompt, chosen, rejected
    if isinstance(prompt, str) and chosen[0]["role"] == "assistant":
        raise InputError(
            f"{where}: the prompt is a string, and what was chosen are messages that begin with the assistant's; give "
            "the prompt as a list of messages."
        )
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if isinstance(prompt, list):
        same = min(same, len(prompt))
    if same == 0:
        raise InputError(
            f"{where}: chosen and rejected share no prompt: their first messages differ. Give the prompt in a column "
            "of its own, or as the messages that both begin with."
        )
    if same in (len(chosen), len(rejected)):
        raise InputError(f"{where}: one side ends where both are still the same, so its answer is missing.")
    return chosen[:same], chosen[same:], rejected[same:]


def _common_text(chosen: str, rejected: str, where: str) -> tuple[str, str, str]:
    shorter = min(len(chosen), len(rejected))
    same = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    # Not within a word: its beginning is the answer's.
    start = max(chosen.rfind(space, 0, same) for space in (" ", "\n", "\t"))
    if not chosen[: max(start, 0)].strip():
        raise InputError(
            f"{where}: chosen and rejected share no prompt: they begin with {chosen!r:.40} and {rejected!r:.40}. Give "
            "the prompt in a column of its own, or in front of both."
        )
    return chosen[:start], chosen[start:], rejected[start:]


def _margins(data: Data) -> Tensor:
    """`(N,)`, 1 where nothing is said."""
    if "margin" in data.columns:
        margins = _numbers(data, "margin")
    elif {"score_chosen", "score_rejected"} <= set(data.columns):
        better, worse = _numbers(data, "score_chosen"), _numbers(data, "score_rejected")
        margins = [a - b for a, b in zip(better, worse, strict=True)]
    else:
        return torch.ones(len(data.rows))
    for row, margin in enumerate(margins):
        if not margin > 0:
            raise InputError(
                f"{data.name}: the margin of row {row} is {margin:g}; what was chosen must be better, so it must be "
                "above 0. Exchange the sides, or leave the row out."
            )
    return torch.tensor(margins)


def _numbers(data: Data, column: str) -> list[float]:
    numbers = []
    for row, value in enumerate(data.values(column)):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{data.name}: {column} of row {row} is {value!r:.60}; it must be a finite number.")
        numbers.append(number)
    return numbers


_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def _labelled(data: Data) -> tuple[Answers, ...]:
    labels = [_LABELS.get(str(label).strip().lower()) for label in data.values("label")]
    for row, label in enumerate(labels):
        if label is None:
            shown = data.rows[row]["label"]
            raise InputError(f"{data.name}: the label of row {row} is {shown!r:.60}; it must be true or false.")
    if len(set(labels)) == 1:
        raise InputError(
            f"{data.name}: every label is {str(labels[0]).lower()}; both desirable and undesirable answers are needed."
        )
    columns = ["prompt", "completion", *(name for name in _TOLD if name in data.columns)]
    data.values("completion")
    for row, prompt in enumerate(data.values("prompt")):
        require_prompt(prompt, f"{data.name}: row {row}")
    rows = [{name: row[name] for name in columns} for row in data.rows]
    worth = torch.tensor([1.0 if label else -1.0 for label in labels])
    return (Answers(Data(name=data.name, rows=rows), worth),)


def answer_rollout(sides: Sequence[Answers], tokenizer: Any, *, context: int | None) -> Rollout:
    """Rows whose answers are actions: the first of each side, then the second, and so on; a group each.

    What an answer is worth is paid at its last action.
    """
    of_sides = [demonstration_sequences(_of_one_form(side.data), tokenizer, context=context) for side in sides]
    return _rollout(_interleaved(of_sides), sides)


def ends_rollout(sides: Sequence[Answers], tokenizer: Any, *, context: int | None) -> Rollout:
    """The same rows as a reward model reads them (`RewardModel`), whose only action comes after the last token: what it
    is worth to be there is the row's score."""
    of_sides = []
    for side in sides:
        rows = _read_whole(side.data, tokenizer)
        for row, tokens in enumerate(rows):
            if context is not None and len(tokens) >= context:
                raise InputError(
                    f"{side.data.name}: row {row} has {len(tokens)} tokens, and the model's context of {context} must "
                    "leave room for one more; leave long rows out."
                )
        # Which token it is plays no part.
        of_sides.append([([*tokens, tokens[-1]], [len(tokens)]) for tokens in rows])
    return _rollout(_interleaved(of_sides), sides)


def exchanged(side: Answers) -> Answers:
    """Each prompt with the answer to the next other one, which is worth nothing."""
    rows = side.data.rows
    following = _next_other([row["prompt"] for row in rows], side.data.name)
    others = [{**row, "completion": rows[other]["completion"]} for row, other in zip(rows, following, strict=True)]
    return Answers(Data(name=f"{side.data.name}, answers exchanged", rows=others), torch.zeros(len(rows)))


def _next_other(prompts: list[Any], name: str) -> list[int]:
    """For each row the next one, round and round, that has another prompt."""
    count = len(prompts)
    start = next((row for row in range(count) if prompts[row] != prompts[(row + 1) % count]), None)
    if start is None:
        raise InputError(f"{name}: all rows have the same prompt, so no answer belongs to another.")
    following = [0] * count
    # Backwards, so that a row with the prompt of the next one takes what that has found.
    for row in ((start - step) % count for step in range(count)):
        behind = (row + 1) % count
        following[row] = behind if prompts[behind] != prompts[row] else following[behind]
    return following


def _of_one_form(data: Data) -> Data:
    """Prompts of all rows as strings, or all as messages, as the first has it."""
    kinds = {isinstance(row["prompt"], list) for row in data.rows}
    if len(kinds) > 1:
        raise InputError(f"{data.name}: some prompts are strings and others messages; write all of them in one way.")
    return data


def _read_whole(data: Data, tokenizer: Any) -> list[list[int]]:
    """Each prompt with its answer as one text, as a reward model reads what is finished."""
    if isinstance(_of_one_form(data).rows[0]["prompt"], str):
        texts = [row["prompt"] + row["completion"] for row in data.rows]
        return [ended(tokenizer, tokens) for tokens in encoded(tokenizer, texts, keep_end=True)]
    chats = []
    for number, row in enumerate(data.rows):
        where, answer = f"{data.name}: row {number}", row["completion"]
        messages = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        chats.append(Chat(messages=[*row["prompt"], *messages], where=where, arguments=template_arguments(row, where)))
    return whole_tokens(tokenizer, chats)


def _interleaved(of_sides: list[list[Any]]) -> list[Any]:
    return [one for unit in zip(*of_sides, strict=True) for one in unit]


def _rollout(sequences: list[tuple[list[int], list[int]]], sides: Sequence[Answers]) -> Rollout:
    inputs, mask = lm_inputs([tokens for tokens, _ in sequences], [actions for _, actions in sequences])
    rows, worth = torch.arange(len(sequences)), torch.stack([side.worth for side in sides], dim=1).flatten()
    last = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
    plain = Rollout.demonstrations(inputs, mask, rows, inputs["lengths"])
    return replace(plain, dones=last, rewards=last * worth.unsqueeze(1), groups=rows // len(sides))
