"""Reward functions: the user's own Python, called with what it names, its answers checked and added up."""

from __future__ import annotations

import contextlib
import copy
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from rlhf.errors import InputError
from rlhf.files import load_from_file
from rlhf.lm.payments import Payment, checked
from rlhf.lm.reward_calls import call_all
from rlhf.lm.reward_logs import LOGGING, RewardLog, Weighed
from rlhf.lm.settings import Calling

RewardFunction = Callable[..., Any]
Function = TypeVar("Function", bound=RewardFunction)

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

    @property
    def names(self) -> list[str]:
        return [*KEYWORDS, *self.columns]

    def copied(self, name: str) -> list[Any]:
        """What bears this name, copied to its innermost list: a function that changes its arguments reaches neither the
        next function nor the data. Each entry by itself, since those of a group are one object in the data.

        Raises:
            InputError: An entry cannot be copied.
        """
        values = getattr(self, name) if name in KEYWORDS else self.columns[name]
        try:
            return [copy.deepcopy(value) for value in values]
        except Exception as error:
            raise InputError(
                f"column {name!r} holds what cannot be copied ({error}), and reward functions are given copies; leave "
                "it out of the data, or hold it as text or numbers."
            ) from error


class Scores(NamedTuple):
    """What the samples are paid: `rewards (B, T)` and its weighted sum `scores (B,)`, both float64.

    A function that says None for a sample adds nothing there. `valid (B,)` is False where every function did: such a
    sample scores 0 here and takes no part in anything. `parts` holds each function's unweighted sum per sample, None
    where it said None; `skipped` names the functions that failed and were left out. `extra` and `metrics` are what
    functions logged beside.
    """

    scores: Tensor
    rewards: Tensor
    valid: Tensor
    parts: dict[str, list[float | None]]
    skipped: tuple[str, ...] = ()
    extra: dict[str, list[Any]] = {}  # noqa: RUF012
    metrics: dict[str, list[Weighed]] = {}  # noqa: RUF012


class Rewards:
    """Several reward functions and their weights as one callable.

    Args:
        weights: One per function; None: every function counts 1.
        allow_none: A function may return None for a sample, on which it has no say; a sample on which none has one is
            left out of loss and statistics.
        calling: What is done with one that waits or fails.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        *,
        allow_none: bool = False,
        calling: Calling | None = None,
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
        self.allow_none, self.calling = allow_none, calling or Calling()

    def require_columns(self, columns: Iterable[str]) -> None:
        """Refuses a function that names what the data do not have, before a model is loaded.

        Raises:
            InputError: A parameter is neither known nor a column, or a column bears a known parameter's name.
        """
        columns = list(columns)
        for column in columns:
            if column in (*KEYWORDS, *LOGGING):
                raise InputError(
                    f"The data have a column {column!r}, which reward functions know otherwise; rename it."
                )
        available = {*KEYWORDS, *LOGGING, *columns}
        for name, function in self.functions.items():
            if [parameter.kind for parameter in _parameters(function)] == [inspect.Parameter.VAR_POSITIONAL]:
                raise InputError(f"reward function {name} takes arguments by position alone; name them, or take **.")
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

    def require_rows(self, data: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Shows every row to the functions that check rows, so that none stops a run midway.

        Args:
            data: What messages call them.

        Raises:
            InputError: A function cannot use a row.
        """
        for name, function in self.functions.items():
            check = getattr(function, "require_row", None)
            if check is None:
                continue
            asked = [parameter.name for parameter in _parameters(check)]
            for column in asked:
                if rows and column not in rows[0]:
                    raise InputError(f"the check of reward function {name} asks for {column!r}, which {data} have not.")
            for number, row in enumerate(rows):
                try:
                    check(**{column: row[column] for column in asked})
                except InputError as error:
                    raise InputError(f"{data}: row {number}: reward function {name}: {error}") from error

    def __call__(self, samples: Samples, *, evaluating: bool = False) -> Scores:
        """Calls every function once, the async ones together, and adds up what they pay.

        Args:
            evaluating: Numbers to be compared with others must not lack a function: where it would be skipped, it is
                tried again.

        Raises:
            InputError: An answer has the wrong length or type, or is not finite. What a function itself raises
                comes through untouched.
        """
        lengths = [len(ids) for ids in samples.completion_ids]
        calling = self.calling
        if evaluating and calling.on_error == "skip":
            calling = replace(calling, on_error="retry")

        def check(name: str, answer: Any) -> list[Payment]:
            return checked(name, answer, sample_ids=samples.sample_ids, lengths=lengths, allow_none=self.allow_none)

        log = RewardLog(len(lengths))
        calls = {name: partial(_called, function, samples, log) for name, function in self.functions.items()}
        answers = call_all(calls, check, calling)
        rewards = torch.zeros(len(lengths), max(lengths, default=0), dtype=torch.float64)
        valid = torch.zeros(len(lengths), dtype=torch.bool)
        parts: dict[str, list[float | None]] = {}
        for name, weight in zip(self.functions, self.weights, strict=True):
            payments = answers[name] or [None] * len(lengths)
            parts[name] = [sum(payment) if isinstance(payment, list) else payment for payment in payments]
            for row, payment in enumerate(payments):
                if payment is None:
                    continue
                valid[row] = True
                if isinstance(payment, list):
                    rewards[row, : lengths[row]] += weight * torch.tensor(payment, dtype=torch.float64)
                else:
                    # The last real token, also where the response was cut off: there is always one to pay.
                    rewards[row, lengths[row] - 1] += weight * payment
        skipped = tuple(name for name, answer in answers.items() if answer is None)
        return Scores(rewards.sum(dim=1), rewards, valid, parts, skipped, log.extra, log.metrics)

    @property
    def logs_metrics(self) -> bool:
        """Some function may log numbers of its own."""
        asked = [parameter.name for function in self.functions.values() for parameter in _parameters(function)]
        return "log_metric" in asked


def checks_rows(check: Callable[..., None]) -> Callable[[Function], Function]:
    """A reward function whose columns are checked for every row before a run begins.

    Args:
        check: Is given one row's columns by their names, and raises InputError where the function cannot use them.
    """

    def attached(function: Function) -> Function:
        function.require_row = check  # type: ignore[attr-defined]
        return function

    return attached


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


def _called(function: RewardFunction, samples: Samples, log: RewardLog) -> Any:
    """Its answer to what it names, or to everything of the samples if it takes `**`."""
    parameters, names = _parameters(function), samples.names
    if isinstance(function, partial):
        # What the user fixed stays fixed, even if a column bears its name.
        names = [name for name in names if name not in function.keywords]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        asked = {parameter.name for parameter in parameters if parameter.kind in _BY_KEYWORD}
        names = [name for name in names if name in asked]
    logging = {parameter.name: getattr(log, parameter.name) for parameter in parameters if parameter.name in LOGGING}
    return function(**{name: samples.copied(name) for name in names}, **logging)


def _suggestion(name: str, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
