"""Settings given by keyword."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from rlhf.errors import InputError

S = TypeVar("S")


def made(kind: type[S], given: Mapping[str, Any]) -> S:
    """A settings dataclass from keywords.

    Raises:
        InputError: It has no such field; the message suggests the nearest.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"there is no setting {name!r}; {hint}There are {', '.join(known)}.")
    return kind(**given)
