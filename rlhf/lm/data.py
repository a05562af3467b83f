"""Data for language models: reads rows, and is the only place that tokenizes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlhf.core.random import hashed_order
from rlhf.errors import InputError, no_exit
from rlhf.files import load_from_file, users_code
from rlhf.lm.chat import Chat, conversations, prompt_tokens, require_messages, require_prompt
from rlhf.lm.readers import READERS, read_hub, require_characters
from rlhf.lm.templates import Message, template_arguments
from rlhf.lm.texts import continuation, encoded
from rlhf.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class Data:
    """Rows with the same columns, and what error messages call them. Rows are counted from 0."""

    name: str
    rows: list[dict[str, Any]]

    def values(self, column: str) -> list[Any]:
        """One column, whose every row must hold something.

        Raises:
            InputError: There is no such column, or a row of it is empty.
        """
        if column not in self.columns:
            raise InputError(f"{self.name} has no column {column!r}; its columns are {', '.join(self.columns)}.")
        values = [row[column] for row in self.rows]
        for row, value in enumerate(values):
            content = value.strip() if isinstance(value, str) else value
            # A number is content, 0 too.
            if content is None or content in ("", [], {}):
                raise InputError(f"{self.name}: row {row} has an empty {column}.")
        return values

    def strings(self, column: str) -> list[str]:
        values = self.values(column)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise InputError(f"{self.name}: {column} of row {row} is {value!r:.60}; it must be a string.")
        return values

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0])

    @property
    def reward_columns(self) -> list[str]:
        """What reward functions may ask for besides the prompt."""
        return [column for column in self.columns if column != "prompt"]


class Prompt(NamedTuple):
    """One prompt, ready to be answered.

    Args:
        row: Its row in the data.
        prompt: As in the data: a string, or a list of messages.
        text: What the model reads, as a string.
        tokens: The same as tokens, with the tokenizer's BOS or the chat template's generation prompt.
        columns: The row's other columns, for reward functions.
    """

    row: int
    prompt: str | list[Message]
    text: str
    tokens: list[int]
    columns: dict[str, Any]


def load_data(
    source: str | Path | Sequence[Mapping[str, Any]],
    *,
    split: str = "train",
    subset: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> Data:
    """Rows of a .jsonl, .json, .csv or .parquet file, of a list of dicts, of a data set on the Hugging Face hub, or of
    what a function returns (path/to/file.py:function).

    A CSV's cells are texts, whatever they look like.

    Args:
        split: Of a hub data set.
        subset: Of a hub data set, which calls it a configuration; None: its only one.
        rename: From a column's name in the source to the name it is needed under (`{"question": "prompt"}`).
    """
    if isinstance(source, (str, Path)):
        path, name = Path(source).expanduser(), str(source)
        read = READERS.get(path.suffix.lower())
        if ".py:" in name:
            rows = _returned(name)
        elif read is not None:
            if not os.path.isfile(path):
                raise InputError(f"there is no data file {path.absolute()}.")
            rows = read(path)
        elif os.path.isfile(path):
            raise InputError(f"{path} is no data file that can be read; it must end in {', '.join(READERS)}.")
        else:
            rows = read_hub(name, split, subset)
    else:
        name, rows = "the data", list(source)
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}: row {index} is {type(row).__name__} {row!r:.60}; each row must be a dict.")
        require_characters(row, f"{name}: row {index}")
    if not rows:
        raise InputError(f"{name} has no rows.")
    found = list(dict.fromkeys(column for row in rows for column in row))
    for column in found:
        if not isinstance(column, str):
            raise InputError(f"{name} has a column called {column!r}; columns must be called by strings.")
    names = {column: (rename or {}).get(column, column) for column in found}
    for column in rename or {}:
        if column not in found:
            raise InputError(f"{name} has no column {column!r} to rename; its columns are {', '.join(found)}.")
    if len(set(names.values())) < len(found):
        raise InputError(f"{name}: after renaming, two columns have one name ({', '.join(names.values())}).")
    return Data(name=name, rows=[{new: row.get(old) for old, new in names.items()} for row in rows])


def _returned(location: str) -> list[Any]:
    """The rows that a function of the user's returns."""
    function = load_from_file(location, what="data", kind="function")
    with users_code(), no_exit(f"data {location}"):
        rows = function()
    if not isinstance(rows, list):
        raise InputError(f"data {location} returned {type(rows).__name__}; it must return a list of rows, each a dict.")
    return rows


def hold_out(num_rows: int, *, num_held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and row numbers to evaluate on, both ascending: a split by hash of the row number."""
    if not 0 <= num_held_out < num_rows:
        raise InputError(f"{num_held_out} rows cannot be held out of {num_rows}; some must be left to train on.")
    order = hashed_order(seed, "held out", 0, torch.arange(num_rows))
    return order[num_held_out:].sort().values, order[:num_held_out].sort().values


def prompt_rows(
    data: Data, tokenizer: Any, *, max_new_tokens: int, context: int | None, today: bool = False
) -> list[Prompt]:
    """Every row's `prompt`, tokenized: a string, or a list of messages that the chat template renders; it is told the
    row's `tools` and `chat_template_kwargs`.

    Without such a column, what `messages` hold before the assistant's last turn is the prompt.

    Args:
        context: The most tokens the model can take; None where the architecture has no limit.
        today: The chat template may write the date of today, as in no run that may be resumed tomorrow.

    Raises:
        InputError: A prompt is missing, empty, or leaves no room for `max_new_tokens`. Nothing is ever cut.
    """
    prompts = _prompts(data)
    texts = iter(encoded(tokenizer, [prompt for prompt in prompts if isinstance(prompt, str)]))
    messages = [_chat(data, row, each, today=today) for row, each in enumerate(prompts) if isinstance(each, list)]
    chats = iter(prompt_tokens(tokenizer, messages))
    result = []
    for row, prompt in enumerate(prompts):
        where = f"{data.name}: row {row}"
        tokens = next(texts) if isinstance(prompt, str) else next(chats)
        if not tokens:
            raise InputError(f"{where}: the tokenizer makes no tokens of the prompt {prompt!r:.60}.")
        if context is not None and len(tokens) + max_new_tokens > context:
            raise InputError(
                f"{where}: {len(tokens)} prompt tokens and max_new_tokens {max_new_tokens} exceed the model's context "
                f"of {context}; leave long prompts out or lower max_new_tokens."
            )
        text = prompt if isinstance(prompt, str) else tokenizer.decode(tokens)
        columns = {column: data.rows[row][column] for column in data.reward_columns}
        result.append(Prompt(row=row, prompt=prompt, text=text, tokens=tokens, columns=columns))
    return result


def _prompts(data: Data) -> list[Any]:
    if "prompt" in data.columns or "messages" not in data.columns:
        prompts = data.values("prompt")
        for row, prompt in enumerate(prompts):
            require_prompt(prompt, f"{data.name}: row {row}")
        return prompts
    prompts = []
    for row, messages in enumerate(data.values("messages")):
        require_messages(messages, f"{data.name}: row {row}")
        prompts.append(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
    return prompts


def _chat(data: Data, row: int, messages: list[Message], *, today: bool = False) -> Chat:
    where = f"{data.name}: row {row}"
    return Chat(messages=messages, where=where, arguments=template_arguments(data.rows[row], where), today=today)


def demonstration_rollout(data: Data, tokenizer: Any, *, context: int | None) -> Rollout:
    """Every row as a demonstration, by the columns it has; sample ids are row numbers, costs are tokens.

    `text`: every token but the first is an action. `prompt` and `completion` (strings, or messages): the completion
    is. `messages`: the assistant's turns are, each to its end-of-sequence token if the template writes one. What ends
    without that token gets it, as an action.

    Args:
        context: The most tokens the model can take; None where the architecture has no limit.

    Raises:
        InputError: The columns fit no format, or a row is empty, longer than the context, or cannot be rendered.
    """
    sequences = demonstration_sequences(data, tokenizer, context=context)
    inputs, mask = lm_inputs([tokens for tokens, _ in sequences], [actions for _, actions in sequences])
    return Rollout.demonstrations(inputs, mask, torch.arange(len(sequences)), inputs["lengths"])


def demonstration_sequences(data: Data, tokenizer: Any, *, context: int | None) -> list[tuple[list[int], list[int]]]:
    """The tokens of each row, and the positions of those that are actions; see `demonstration_rollout`."""
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token, so no demonstration could teach when to stop.")
    found = [columns for columns in _FORMATS if set(columns) <= set(data.columns)]
    if len(found) != 1:
        needed = " or ".join(" and ".join(columns) for columns in _FORMATS)
        raise InputError(
            f"{data.name} has columns {', '.join(data.columns)}, which fit {len(found)} of the formats; demonstrations "
            f"need {needed}. Rename columns until one format fits."
        )
    sequences = _FORMATS[found[0]](data, tokenizer)
    for row, (tokens, _) in enumerate(sequences):
        if context is not None and len(tokens) > context:
            raise InputError(
                f"{data.name}: row {row} has {len(tokens)} tokens, more than the model's context of {context}; leave "
                "long rows out."
            )
    return sequences


def lm_inputs(sequences: Sequence[Sequence[int]], actions: Sequence[Sequence[int]]) -> tuple[dict[str, Tensor], Tensor]:
    """What the policy reads, `(B, S)` tokens padded on the right, and the mask `(B, T)` of its actions.

    Args:
        actions: For each sequence the positions of the tokens that the policy chose, each at least 1.
    """
    counts = torch.tensor([len(positions) for positions in actions])
    inputs = {
        "tokens": _padded(sequences),
        "lengths": torch.tensor([len(tokens) for tokens in sequences]),
        "actions": _padded(actions),
    }
    return inputs, torch.arange(inputs["actions"].shape[1]) < counts.unsqueeze(1)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    # The filling is never read: everything comes from lengths and positions.
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True)


def _ended(tokenizer: Any, tokens: list[int], start: int) -> tuple[list[int], list[int]]:
    """The tokens with an end, and the positions from `start` on; the first token of all is nobody's action."""
    if tokens[-1:] != [tokenizer.eos_token_id]:
        tokens = [*tokens, tokenizer.eos_token_id]
    return tokens, list(range(max(start, 1), len(tokens)))


def _texts(data: Data, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    return [_ended(tokenizer, tokens, 1) for tokens in encoded(tokenizer, data.strings("text"))]


def _completions(data: Data, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    if isinstance(data.rows[0]["prompt"], list):
        return _answers(data, tokenizer)
    prompts, completions = data.strings("prompt"), data.strings("completion")
    for row, prompt in enumerate(prompts):
        require_prompt(prompt, f"{data.name}: row {row}")
    starts = encoded(tokenizer, prompts)
    together = encoded(tokenizer, [p + c for p, c in zip(prompts, completions, strict=True)])
    sequences = []
    for start, whole, completion in zip(starts, together, completions, strict=True):
        # A completion must follow the very tokens of its prompt, also where the tokenizer would merge across.
        tokens = whole if whole[: len(start)] == start else start + continuation(tokenizer, completion)
        sequences.append(_ended(tokenizer, tokens, len(start)))
    return sequences


def _answers(data: Data, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    chats, num_given = [], []
    for row, (prompt, completion) in enumerate(zip(data.values("prompt"), data.values("completion"), strict=True)):
        where = f"{data.name}: row {row}"
        answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        require_messages(prompt, where)
        require_messages(answer, where)
        chats.append(_chat(data, row, [*prompt, *answer]))
        num_given.append(len(prompt))
    return conversations(tokenizer, chats, num_given)


def _conversations(data: Data, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    chats = [_chat(data, row, messages) for row, messages in enumerate(data.values("messages"))]
    return conversations(tokenizer, chats, [0] * len(chats))


_FORMATS = {("text",): _texts, ("prompt", "completion"): _completions, ("messages",): _conversations}
