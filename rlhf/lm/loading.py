"""What loads a model or a part of it: whatever it objects to, in one line, and weights that are broken."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from rlhf.errors import InputError

_MOST_SHOWN = 300


def opened(load: Any, source: str, **options: Any) -> Any:
    """What a loader of transformers or peft makes of a folder or name; whatever it objects to is an InputError.

    Files from anywhere make these libraries raise anything, from KeyError to a bare Exception.
    """
    try:
        with _quiet():
            return load(source, **options)
    except Exception as error:
        raise InputError(f"could not load {source!r}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """An error in one line; some of transformers' list every class that it has."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."


def require_finite(model: nn.Module, source: str) -> None:
    """Refuses weights that are NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{name} in {source!r} holds numbers that are NaN or infinite; the weights are broken.")


def listed(names: Any) -> str:
    """The first of many names."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of what did not fit and peft's warnings: what matters of it becomes an error."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
