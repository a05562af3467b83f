"""What a reward function answered, checked: one finite number, or one list of finite numbers, per sample."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rlhf.errors import InputError

# Weights and advantages are float32.
_LARGEST = torch.finfo(torch.float32).max

Payment = float | list[float] | None


def checked(
    name: str, answer: Any, *, sample_ids: Sequence[int], lengths: Sequence[int], allow_none: bool
) -> list[Payment]:
    """The answer of the function `name` as plain numbers, which nothing that it does later can change.

    Args:
        sample_ids: What messages call the samples.
        lengths: Tokens of each response.

    Raises:
        InputError: It has the wrong length or type, or is not finite.
    """
    answer = plain(name, answer)
    if not isinstance(answer, list):
        raise InputError(f"reward function {name} returned {_kind(answer)}; return a list with one entry per sample.")
    # Not even a list of one is broadcast: every sample would silently be paid the same.
    if len(answer) != len(sample_ids):
        raise InputError(
            f"reward function {name} returned {len(answer)} scores for {len(sample_ids)} samples; "
            "return one per sample."
        )
    payments: list[Payment] = []
    for entry, length, sample in zip(answer, lengths, sample_ids, strict=True):
        entry = plain(name, entry)
        if isinstance(entry, list) and len(entry) != length:
            raise InputError(
                f"reward function {name} returned {len(entry)} token rewards for sample {sample}, "
                f"whose response has {length} tokens; return one per token."
            )
        if entry is None and not allow_none:
            raise InputError(
                f"reward function {name} returned None for sample {sample}; return a number, "
                "or set allow_none, with which it has no say on such samples."
            )
        if isinstance(entry, list):
            payments.append([_number(name, number, sample) for number in entry])
        else:
            payments.append(None if entry is None else _number(name, entry, sample))
    return payments


def _number(name: str, value: Any, sample: int) -> float:
    number: Any = plain(name, value)
    if not isinstance(number, Real):
        raise InputError(f"reward function {name} returned {_kind(number)} for sample {sample}; return a number.")
    # Compared before it becomes a float, which an integer may be too large for.
    size: Any = abs(number)
    if not size <= _LARGEST:
        shown = number if isinstance(number, float) else f"a {type(number).__name__} that is too large"
        raise InputError(
            f"reward function {name} returned {shown} for sample {sample}; return finite numbers that float32 holds."
        )
    return float(number)


def plain(name: str, value: Any) -> Any:
    """Tensors, arrays and their scalars as Python lists and numbers; anything else as it is."""
    if isinstance(value, Tensor):
        try:
            return value.detach().cpu().tolist()
        except (RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"reward function {name} returned a tensor on {value.device} of layout {value.layout}, whose numbers "
                "cannot be read; return a dense one, or a list."
            ) from error
    if hasattr(value, "tolist"):
        return value.tolist()
    # Of a kind of their own, a list may say another length than it has.
    return list(value) if isinstance(value, tuple | list) else value


def _kind(value: Any) -> str:
    shown = f"{type(value).__name__} {value!r}"[:80]
    # Somebody's repr may hold what a console obeys.
    return shown if shown.isprintable() else ascii(shown)[1:-1]
