"""Settings, and the one gate that every value of one passes: of its declared type, finite, within its bounds.

A settings class is a frozen, keyword-only dataclass that inherits from `Settings`. Its annotations are what is checked,
wherever the value comes from: `gamma: Share`, `epochs: Count`, `schedule: Literal["constant", "linear"]`. What takes
several fields stands in its `__post_init__`, which runs after the gate.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from rlhf.errors import InputError

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])

# What tensors hold: beyond, a float is infinite and an integer cannot be stored.
MOST_FLOAT = 3.4e38
MOST_INT = 2**63 - 1
# Nobody makes a million environments or passes; what would try to does not answer for hours.
MOST_COUNTED = 1_000_000
LONGEST_TEXT, LONGEST_NAME = 4096, 255


class Interval(NamedTuple):
    """Bounds of a number, and how they are said."""

    low: float
    high: float
    needed: str
    low_in: bool = True
    high_in: bool = True

    def fault(self, value: float) -> str | None:
        """What is needed, if the value lies outside."""
        if value < self.low or (value == self.low and not self.low_in):
            return self.needed
        if value > self.high or (value == self.high and not self.high_in):
            return self.needed if "[" in self.needed or "(" in self.needed else f"be at most {self.high:,}"
        return None


class NamesPath(NamedTuple):
    """Marks a text that may be a path."""

    def fault(self, value: str) -> str | None:
        return _path_fault(value)


Share = Annotated[float, Interval(0.0, 1.0, "lie in [0, 1]")]
ShareBelowOne = Annotated[float, Interval(0.0, 1.0, "lie in [0, 1)", high_in=False)]
ShareAboveZero = Annotated[float, Interval(0.0, 1.0, "lie in (0, 1]", low_in=False)]
ProperShare = Annotated[float, Interval(0.0, 1.0, "lie in (0, 1)", low_in=False, high_in=False)]
Size = Annotated[float, Interval(0.0, MOST_FLOAT, "not be negative")]
Positive = Annotated[float, Interval(0.0, MOST_FLOAT, "be positive", low_in=False)]
Count = Annotated[int, Interval(1, MOST_COUNTED, "be at least 1")]
CountOrNone = Annotated[int, Interval(0, MOST_COUNTED, "not be negative")]
"""0 is off, or none."""
Total = Annotated[int, Interval(1, MOST_INT, "be at least 1")]
TotalOrNone = Annotated[int, Interval(0, MOST_INT, "not be negative")]
Seed = Annotated[int, Interval(0, MOST_INT, "not be negative")]
Location = Annotated[str, NamesPath()]
"""A file, a folder or a name elsewhere."""


class Settings:
    """What settings classes inherit from: see this module."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = vars(cls).get("__post_init__")
        if own is None:
            return

        @wraps(own)
        def after_the_gate(self: Any) -> None:
            require_declared(self)
            own(self)

        cls.__post_init__ = after_the_gate  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        require_declared(self)


def require_declared(settings: Any) -> None:
    """Refuses a value that is not what its field declares; expands a path that begins with `~`; makes numbers of other
    libraries Python's own.

    Raises:
        InputError: With the field, the value and what is needed.
    """
    declared = _declared(type(settings))  # type: ignore[arg-type]
    for field in fields(settings):
        value = getattr(settings, field.name)
        _require(field.name, value, declared[field.name])
        object.__setattr__(settings, field.name, _as_kept(value, declared[field.name]))


def checked(function: F) -> F:
    """Arguments that are given by keyword pass the gate as settings do, by the annotations of the function."""
    parameters = inspect.signature(function).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}

    @wraps(function)
    def after_the_gate(*arguments: Any, **keywords: Any) -> Any:
        declared = get_type_hints(function, include_extras=True)
        for name in named & keywords.keys():
            _require(name, keywords[name], declared[name])
            keywords[name] = _as_kept(keywords[name], declared[name])
        return function(*arguments, **keywords)

    return after_the_gate  # type: ignore[return-value]


def made(kind: type[S], given: Mapping[str, Any], *, beside: Iterable[str] = ()) -> S:
    """A settings dataclass from keywords.

    Args:
        beside: What else could have been meant: keywords that were taken before these.

    Raises:
        InputError: It has no such field; the message suggests the nearest.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, [*beside, *known], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"there is no setting {name!r}; {hint}There are {', '.join([*beside, *known])}.")
    return kind(**given)


@cache
def _declared(kind: type) -> dict[str, Any]:
    """What the fields of a class are annotated with; object where its module does not have the name."""
    declared = {}
    for base in reversed(kind.__mro__):
        names = vars(sys.modules[base.__module__])
        for name, annotation in vars(base).get("__annotations__", {}).items():
            try:
                declared[name] = eval(annotation, dict(names)) if isinstance(annotation, str) else annotation
            except NameError:
                # Imported for type checkers only, or local to a function.
                declared[name] = object
    return declared


def _require(name: str, value: Any, hint: Any) -> None:
    needed = _fault(value, hint)
    if needed is None:
        return
    from tyro import MISSING

    # What the command line still has to say.
    if value is not MISSING:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}..."
        raise InputError(f"{name} is {shown}; it must {needed}.")


def _as_kept(value: Any, hint: Any) -> Any:
    """Numbers as Python's own, alone and in lists, since JSON knows no others; a path with its `~` expanded, which no
    shell does behind an `=`; any other value as it is.
    """
    if type(value) in (list, tuple):
        return type(value)(map(_number, value))
    return _at_home(_number(value), hint)


def _number(value: Any) -> Any:
    """An int or a float of what is a number, such as numpy's; any other value as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _at_home(value: Any, hint: Any) -> Any:
    if not isinstance(value, str | Path) or not str(value).startswith("~"):
        return value
    arms = [hint, *get_args(hint)]
    if Path in arms or any(NamesPath() in get_args(arm) for arm in arms):
        return type(value)(os.path.expanduser(value))
    return value


def _fault(value: Any, hint: Any) -> str | None:
    """What the value must be or do, if it is not so; None as well for types that say nothing checkable."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is Annotated:
        bounds = [bound for bound in arguments[1:] if isinstance(bound, Interval | NamesPath)]
        return _fault(value, arguments[0]) or next(filter(None, (bound.fault(value) for bound in bounds)), None)
    if kind is Literal:
        return None if value in arguments else f"be {' or '.join(map(repr, arguments))}"
    if kind in (Union, types.UnionType):
        return _fault_of_all(value, arguments)
    if (kind is tuple and arguments[1:] == (Ellipsis,)) or (kind is Sequence and arguments[0] in _PLAIN):
        return _list_fault(value, arguments[0])
    if hint in _PLAIN:
        fits, what = _PLAIN[hint]
        return _BEYOND.get(hint, _nothing)(value) if fits(value) else f"be {what}"
    kind = kind or hint
    if not isinstance(kind, type) or kind is Any or getattr(kind, "_is_protocol", False):
        return None
    return None if isinstance(value, kind) else f"be a {kind.__name__}"


def _fault_of_all(value: Any, hints: Sequence[Any]) -> str | None:
    """None if one of the types will have it; else the bounds of that which it has; or what all of them are."""
    faults = [_fault(value, hint) for hint in hints]
    if None in faults:
        return None
    for hint, fault in zip(hints, faults, strict=True):
        plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if plain in _PLAIN and _PLAIN[plain][0](value):
            return fault
    return "be " + " or ".join(dict.fromkeys(str(fault).removeprefix("be ") for fault in faults))


def _list_fault(value: Any, each: Any) -> str | None:
    if not isinstance(value, list | tuple):
        return "be a list"
    faults = [fault for fault in (_fault(one, each) for one in value) if fault]
    return f"be a list, each of which must {faults[0]}" if faults else None


def _int_fault(value: Any) -> str | None:
    return None if abs(value) <= MOST_INT else f"be at most {MOST_INT:,} in size"


def _float_fault(value: Any) -> str | None:
    if value != value or value in (math.inf, -math.inf):
        return "be finite"
    return None if abs(value) <= MOST_FLOAT else f"be at most {MOST_FLOAT} in size"


def _text_fault(value: str) -> str | None:
    if "\0" in value:
        return "hold no NUL character"
    return None if len(value) <= LONGEST_TEXT else f"have at most {LONGEST_TEXT} characters"


def _path_fault(value: str | os.PathLike[str]) -> str | None:
    text = os.fspath(value)
    fits = all(len(os.fsencode(part)) <= LONGEST_NAME for part in text.replace(os.sep, "/").split("/"))
    if text.startswith("~") and os.path.expanduser(text) == text:
        return "begin with a home folder that there is"
    return _text_fault(text) or (None if fits else f"have no name of more than {LONGEST_NAME} bytes in it")


def _nothing(value: Any) -> None:
    return None


# What is of a type, and what it is called.
_PLAIN: dict[Any, tuple[Callable[[Any], bool], str]] = {
    bool: (lambda value: isinstance(value, bool), "True or False"),
    int: (lambda value: isinstance(value, Integral) and not isinstance(value, bool), "a whole number"),
    float: (lambda value: isinstance(value, Real) and not isinstance(value, bool), "a number"),
    str: (lambda value: isinstance(value, str), "text"),
    Path: (lambda value: isinstance(value, str | os.PathLike), "a path"),
    type(None): (lambda value: value is None, "None"),
}
_BEYOND: dict[Any, Callable[[Any], str | None]] = {
    int: _int_fault,
    float: _float_fault,
    str: _text_fault,
    Path: _path_fault,
}
