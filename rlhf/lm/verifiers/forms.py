"""The form of a response as a reward: JSON that fits a schema, a pattern that is found, a length within bounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

import regex

from rlhf.errors import InputError
from rlhf.lm.extras import needed
from rlhf.lm.rewards import checks_rows
from rlhf.lm.verifiers import counting
from rlhf.settings import Count, CountOrNone, checked

Unit = Literal["words", "characters", "tokens"]

SECONDS = 1.0
"""A pattern that is not found by then counts as not there: some take longer than any run lasts."""


def read_json(text: str) -> Any:
    """The value that a text is, in a fence of three backticks or not.

    Raises:
        ValueError: It is no JSON, or nested deeper than Python follows.
    """
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        return json.loads(text.removesuffix("```").strip(), parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def require_schema(schema: Mapping[str, Any] | str) -> None:
    """Refuses what is no JSON schema."""
    _validator(schema)


@checks_rows(require_schema)
def fits_schema(responses: list[str], schema: list[Mapping[str, Any] | str]) -> list[float]:
    """1 for a response that is JSON and fits its row's schema, a dict or the text of one; else 0."""
    return [float(_fits(response, _validator(each))) for response, each in zip(responses, schema, strict=True)]


def require_pattern(pattern: str) -> None:
    """Refuses what is no regular expression."""
    _compiled(pattern)


@checks_rows(require_pattern)
def matches(responses: list[str], pattern: list[str]) -> list[float]:
    """1 for a response in which its row's pattern is found, in the syntax of the package regex; else 0."""
    return [float(_found(_compiled(each), response)) for response, each in zip(responses, pattern, strict=True)]


@checked
def length_within(*, least: CountOrNone = 0, most: Count | None = None, unit: Unit = "words") -> Callable[..., Any]:
    """A reward function: 1 for a response of so many words, characters or tokens, else 0.

    Args:
        most: None is no bound.
    """
    if most is not None and most < least:
        raise InputError(f"least is {least} and most {most}; least must not be more than most.")

    def within(responses: list[str], completion_ids: list[list[int]]) -> list[float]:
        sizes = {
            "words": lambda: map(counting.num_words, responses),
            "characters": lambda: map(len, responses),
            "tokens": lambda: map(len, completion_ids),
        }
        return [float(least <= size and (most is None or size <= most)) for size in sizes[unit]()]

    within.__name__ = f"{unit}_within"
    return within


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is Python's, not JSON's")


def _validator(schema: Any) -> Any:
    """Of the draft that the schema names. It looks nothing up elsewhere."""
    jsonschema, referencing = needed("jsonschema", extra="schema"), needed("referencing", extra="schema")
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InputError(f"schema is {schema!r:.60}, which is no JSON: {error}.") from error
    if not isinstance(schema, Mapping):
        raise InputError(f"schema is {schema!r:.60}; it must be a JSON schema: a dict, or the text of one.")
    kind = jsonschema.validators.validator_for(schema)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InputError(f"schema is no JSON schema: {error.message} at {error.json_path}.") from error
    return kind(schema, registry=referencing.Registry())


def _fits(response: str, validator: Any) -> bool:
    try:
        fits: bool = validator.is_valid(read_json(response))
    except (ValueError, RecursionError):
        return False
    return fits


def _compiled(pattern: Any) -> Any:
    if not isinstance(pattern, str):
        raise InputError(f"pattern is {pattern!r:.60}; it must be text.")
    try:
        return regex.compile(pattern)
    except regex.error as error:
        raise InputError(f"pattern is {pattern!r:.60}, which is no regular expression: {error}.") from error


def _found(pattern: Any, response: str) -> bool:
    try:
        return pattern.search(response, timeout=SECONDS) is not None
    except TimeoutError:
        return False
