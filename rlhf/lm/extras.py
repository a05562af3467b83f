"""Packages that some parts take and the rest of the project does not."""

from __future__ import annotations

import importlib
from typing import Any

from rlhf.errors import InputError


def needed(module: str, *, extra: str) -> Any:
    """The module, imported when it is first used.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # What the package itself lacks is its own message.
        if error.name != module:
            raise
        raise InputError(f"{module} is needed and not installed: pip install 'rlhf[{extra}]'.") from error
