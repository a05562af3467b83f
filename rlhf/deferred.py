"""Imports that wait for their first use, so that settings are known, and a wrong one is refused, without torch.

Loading torch and transformers takes seconds. A module that declares settings puts what only its functions need inside
`with deferred():`; `launch` has all of it imported once the command line is right.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred() -> Iterator[None]:
    """Imports in the block (`import x`, `from x import y`) happen when the first of their names is used.

    Such a name can be called, looked into and asked for instances; nothing at the top of a module may need more of it.
    """
    # Past this generator and contextlib's `__enter__`.
    home, real = sys._getframe(2).f_globals, builtins.__import__

    def promise(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if globals is not home:
            return real(name, globals, locals, fromlist, level)
        return _Room(name, home) if fromlist else Promise(name, None, home)

    builtins.__import__ = promise
    try:
        yield
    finally:
        builtins.__import__ = real


def settle() -> None:
    """Imports all that waits."""
    for module in list(sys.modules.values()):
        for value in [value for value in getattr(module, "__dict__", {}).values() if type(value) is Promise]:
            _kept(value)


class Promise:
    """Stands for a module, or for what a module holds under a name, until it is used."""

    def __init__(self, module: str, name: str | None, home: dict[str, Any]) -> None:
        self._promised = (module, name, home)

    def __getattr__(self, name: str) -> Any:
        return getattr(_kept(self), name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _kept(self)(*arguments, **keywords)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, _kept(self))

    def __mro_entries__(self, bases: Any) -> tuple[Any, ...]:
        return (_kept(self),)


class _Room:
    """What `from module import name, other` takes its names from."""

    def __init__(self, module: str, home: dict[str, Any]) -> None:
        self._module, self._home = module, home

    def __getattr__(self, name: str) -> Promise:
        if name.startswith("__"):
            raise AttributeError(name)
        return Promise(self._module, name, self._home)


def _kept(promise: Promise) -> Any:
    """What it stands for, which takes its place in the module that imported it."""
    module, name, home = promise._promised
    value = importlib.import_module(module)
    if name is not None:
        value = getattr(value, name) if hasattr(value, name) else importlib.import_module(f"{module}.{name}")
    for bound in [bound for bound, held in home.items() if held is promise]:
        home[bound] = value
    return value
