"""Methods by name: ours are found in this folder, yours in the file that you name."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

import rlhf.algorithms
from rlhf.algorithms.base import Method
from rlhf.errors import InputError
from rlhf.files import load_from_file


def methods() -> dict[str, type[Method]]:
    """Every method of this package by its name."""
    for module in pkgutil.iter_modules(rlhf.algorithms.__path__):
        importlib.import_module(f"rlhf.algorithms.{module.name}")
    ours = [kind for kind in Method.__subclasses__() if kind.__module__.startswith("rlhf.algorithms.")]
    return {kind.name: kind for kind in sorted(ours, key=lambda kind: kind.name)}


def make_method(name: str, **settings: Any) -> Method:
    """An object of `find_method(name)`.

    Raises:
        InputError: It has settings without defaults.
    """
    kind = find_method(name)
    needed = [field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING]
    if set(needed) - settings.keys():
        raise InputError(f"method {name} has settings without defaults: {', '.join(needed)}; give each a default.")
    return kind(**settings)


def method_help(names: Iterable[str]) -> str:
    """What a command line says of `--method NAME`."""
    return f"the method: {', '.join(names)}; or path/to/file.py:Class of your own. Its settings are then offered below."


def find_method(name: str) -> type[Method]:
    """The class that `name` stands for: one of `methods()`, or path/to/file.py:Class.

    Raises:
        InputError: There is no such method, or the class is none.
    """
    if ":" not in name:
        known = methods()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(
                f"there is no method {name}; choose one of {', '.join(known)}, or give your own as "
                f"path/to/file.py:Class.{hint}"
            )
        return known[name]
    kind = load_from_file(name, what="method", kind="Class")
    # `is_dataclass` is inherited; without a decorator of its own a class has none of the settings it writes down.
    if not (isinstance(kind, type) and issubclass(kind, Method) and "__dataclass_fields__" in vars(kind)):
        raise InputError(
            f"{name} is no method; give a frozen, keyword-only dataclass that inherits from rlhf.Method (see "
            "docs/your_own.md)."
        )
    return kind
