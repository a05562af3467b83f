"""Settings given by keyword."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from rlhf.errors import InputError

S = TypeVar("S")


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
