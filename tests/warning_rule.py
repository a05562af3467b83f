"""Which warnings fail a test: ours, and those of libraries about how we call them; never what a library does inside."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from torch.nn.modules import module
from torch.utils import _contextlib

ROOT = Path(__file__).parent.parent
_OURS = tuple(f"{ROOT / part}/" for part in ("rlhf", "recipes", "theory", "tests", "benchmarks"))
# These only pass a call on: a model that is called warns of its caller.
_PLUMBING = {each.__file__ for each in (module, _contextlib, contextlib, functools)}


@contextlib.contextmanager
def our_warnings_are_errors() -> Iterator[None]:
    """Raises a warning where it is given if we are its cause; all others are ignored."""
    shown = warnings.showwarning

    def show(message: Warning, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        if _is_ours(sys._getframe(1), filename, lineno):
            raise message

    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = shown


def _is_ours(frame: FrameType | None, filename: str, lineno: int) -> bool:
    """Whether the one at fault is ours: who warns; or who called it, as far out as the warning says by its line."""
    while frame is not None and frame.f_code.co_filename == warnings.__file__:
        frame = frame.f_back
    warns = frame
    if warns is not None and warns.f_code.co_filename.startswith(_OURS):
        return True
    while frame is not None and (frame.f_code.co_filename, frame.f_lineno) != (filename, lineno):
        frame = frame.f_back
    if frame is warns and frame is not None:
        frame = frame.f_back
    while frame is not None and frame.f_code.co_filename in _PLUMBING:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_filename.startswith(_OURS)
