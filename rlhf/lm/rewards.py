"""Reward functions: the user's own Python, called with what it names, its answers checked."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import inspect
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.errors import InputError
from rlhf.files import load_from_file

RewardFunction = Callable[..., Any]

KEYWORDS = ("prompts", "responses", "completions", "completion_ids", "finished")
"""What every reward function may ask for, besides the columns of the data."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Responses as reward functions see them: one entry a sample in every list.

    Args:
        prompts: Strings, or message lists for chat data.
        responses: Plain text without special tokens, whatever the data are.
        completions: The same strings for text data; lists of one assistant message each for chat data.
        completion_ids: The sampled tokens, with the stop token where there is one.
        finished: True where the response ended by itself, False where max_new_tokens cut it.
        columns: Every other column of the data set.
        sample_ids: What error messages call the samples.
    """

    prompts: list[Any]
    responses: list[str]
    completions: list[Any]
    completion_ids: list[list[int]]
    finished: list[bool]
    columns: dict[str, list[Any]]
    sample_ids: list[int]

    def keywords(self) -> dict[str, list[Any]]:
        """Fresh lists, so that a function that changes its arguments cannot reach the next one's."""
        own = {name: list(getattr(self, name)) for name in KEYWORDS}
        return own | {name: list(values) for name, values in self.columns.items()}


class Scores(NamedTuple):
    """What the samples are paid: `rewards (B, T)` and its weighted sum `scores (B,)`, both float64.

    `valid (B,)` is False where a function returned None: such a sample scores 0 here and takes no part in anything.
    `parts` holds each function's unweighted sum per sample, None where it returned None.
    """

    scores: Tensor
    rewards: Tensor
    valid: Tensor
    parts: dict[str, list[float | None]]


class Rewards:
    """Several reward functions and their weights as one callable.

    Args:
        weights: One per function; None: every function counts 1.
        allow_none: A function may return None for a sample, which takes the sample out of loss and statistics.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        *,
        allow_none: bool = False,
    ) -> None:
        if not functions:
            raise InputError("There is no reward function; give at least one, such as path/to/file.py:function.")
        self.weights = [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(functions):
            raise InputError(
                f"{len(self.weights)} reward weights for {len(functions)} functions; give one per function."
            )
        self.functions: dict[str, RewardFunction] = {}
        for function in functions:
            name = _name(function)
            if name in self.functions:
                which = "lambdas, which have no name of their own" if name == _LAMBDA else f"named {name}"
                raise InputError(
                    f"Two reward functions are {which}, and each is logged by its name; write them with def, or set "
                    "__name__ on one of them."
                )
            self.functions[name] = function
        self.allow_none = allow_none

    def require_columns(self, columns: Iterable[str]) -> None:
        """Refuses a function that names what the data do not have, before a model is loaded.

        Raises:
            InputError: A parameter is neither known nor a column, or a column bears a known parameter's name.
        """
        columns = list(columns)
        for column in columns:
            if column in KEYWORDS:
                raise InputError(
                    f"The data have a column {column!r}, which reward functions know otherwise; rename it."
                )
        available = {*KEYWORDS, *columns}
        for name, function in self.functions.items():
            for parameter in _parameters(function):
                required = parameter.default is parameter.empty and parameter.kind in _BY_KEYWORD
                if parameter.kind is parameter.POSITIONAL_ONLY:
                    raise InputError(f"reward function {name} takes {parameter.name} by position; drop the '/'.")
                if required and parameter.name not in available:
                    raise InputError(
                        f"reward function {name} asks for {parameter.name!r}, which is neither one of "
                        f"{', '.join(KEYWORDS)} nor a column of the data ({', '.join(columns) or 'there is none'})"
                        f"{_suggestion(parameter.name, available)}."
                    )

    def __call__(self, samples: Samples) -> Scores:
        """Calls every function once, the async ones together, and adds up what they pay.

        Raises:
            InputError: An answer has the wrong length or type, or is not finite. What a function itself raises
                comes through untouched.
        """
        lengths = [len(ids) for ids in samples.completion_ids]
        rewards = torch.zeros(len(lengths), max(lengths, default=0), dtype=torch.float64)
        valid = torch.ones(len(lengths), dtype=torch.bool)
        parts: dict[str, list[float | None]] = {}
        answers = _call_all(list(self.functions.values()), samples)
        for (name, answer), weight in zip(zip(self.functions, answers, strict=True), self.weights, strict=True):
            payments = _checked(name, answer, samples, self.allow_none)
            parts[name] = [sum(payment) if isinstance(payment, list) else payment for payment in payments]
            for row, payment in enumerate(payments):
                if payment is None:
                    valid[row] = False
                elif isinstance(payment, list):
                    rewards[row, : lengths[row]] += weight * torch.tensor(payment, dtype=torch.float64)
                else:
                    # The last real token, also where the response was cut off: there is always one to pay.
                    rewards[row, lengths[row] - 1] += weight * payment
        rewards[~valid] = 0.0
        return Scores(rewards.sum(dim=1), rewards, valid, parts)


def load_reward(location: str) -> RewardFunction:
    """The function at `path/to/file.py:function`. What the file itself raises comes through untouched.

    Raises:
        InputError: There is no such file or function.
    """
    function: RewardFunction = load_from_file(location, what="reward", kind="function")
    if getattr(function, "__name__", "<lambda>") == "<lambda>":
        # Lambdas, partials and objects are logged by what their file calls them; an object may refuse to hold a name.
        with contextlib.suppress(AttributeError):
            function.__name__ = location.rpartition(":")[2]
    return function


_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


_LAMBDA = "lambda"


def _name(function: RewardFunction) -> str:
    """What it is logged by: its own `__name__`, else that of what a partial calls, else its class's."""
    name = getattr(function, "__name__", None)
    if name is not None:
        return _LAMBDA if name == "<lambda>" else name
    return _name(function.func) if isinstance(function, partial) else type(function).__name__


def _parameters(function: RewardFunction) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise InputError(f"reward function {_name(function)} cannot be called: {error}.") from error


def _keywords(function: RewardFunction, samples: Samples) -> dict[str, list[Any]]:
    parameters, keywords = _parameters(function), samples.keywords()
    if isinstance(function, partial):
        # What the user fixed stays fixed, even if a column bears its name.
        keywords = {name: values for name, values in keywords.items() if name not in function.keywords}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return keywords
    return {p.name: keywords[p.name] for p in parameters if p.kind in _BY_KEYWORD and p.name in keywords}


def _call_all(functions: list[RewardFunction], samples: Samples) -> list[Any]:
    """Every function's answer; coroutines run together in one event loop."""
    answers: list[Any] = []
    try:
        for function in functions:
            answers.append(function(**_keywords(function, samples)))
    except BaseException:
        for answer in answers:
            if inspect.iscoroutine(answer):
                answer.close()
        raise
    waiting = [index for index, answer in enumerate(answers) if inspect.isawaitable(answer)]
    if waiting:
        results = _run(_gather([answers[index] for index in waiting]))
        for index, result in zip(waiting, results, strict=True):
            answers[index] = result
    return answers


async def _gather(awaitables: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*awaitables))


def _run(coroutine: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    # A notebook's loop is running already, and a thread can have but one.
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, coroutine).result()


Payment = float | list[float] | None


def _checked(name: str, answer: Any, samples: Samples, allow_none: bool) -> list[Payment]:
    """One finite number, or one list of finite numbers, per sample."""
    answer = _plain(answer)
    if not isinstance(answer, list):
        raise InputError(f"reward function {name} returned {_kind(answer)}; return a list with one entry per sample.")
    # Not even a list of one is broadcast: every sample would silently be paid the same.
    if len(answer) != len(samples.sample_ids):
        raise InputError(
            f"reward function {name} returned {len(answer)} scores for {len(samples.sample_ids)} samples; "
            "return one per sample."
        )
    payments: list[Payment] = []
    for entry, ids, sample in zip(answer, samples.completion_ids, samples.sample_ids, strict=True):
        entry = _plain(entry)
        if isinstance(entry, list) and len(entry) != len(ids):
            raise InputError(
                f"reward function {name} returned {len(entry)} token rewards for sample {sample}, "
                f"whose response has {len(ids)} tokens; return one per token."
            )
        if entry is None and not allow_none:
            raise InputError(
                f"reward function {name} returned None for sample {sample}; return a number, "
                "or set allow_none to leave such samples out."
            )
        if isinstance(entry, list):
            payments.append([_number(name, number, sample) for number in entry])
        else:
            payments.append(None if entry is None else _number(name, entry, sample))
    return payments


def _number(name: str, value: Any, sample: int) -> float:
    value = _plain(value)
    if not isinstance(value, Real):
        raise InputError(f"reward function {name} returned {_kind(value)} for sample {sample}; return a number.")
    if not math.isfinite(value):
        raise InputError(f"reward function {name} returned {value} for sample {sample}; return finite numbers.")
    return float(value)


def _plain(value: Any) -> Any:
    """Tensors, arrays and their scalars as Python lists and numbers; anything else as it is."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _suggestion(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"[:80]
