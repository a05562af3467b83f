"""What users keep in Python files of their own: rewards, methods, environments, engines."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rlhf.deferred import deferred
from rlhf.errors import InputError, no_exit

with deferred():
    import torch

# What code of the user's left otherwise than the run has it.
_theirs: dict[str, Any] = {}


@contextmanager
def users_code() -> Iterator[None]:
    """Inside, code of the user's may change the working folder and what torch keeps for a whole process: afterwards all
    is as the run has it, and at the code's next call as the code left it, whose paths may be relative to its folder.
    """
    ours = _of_the_process()
    _restore(ours | _theirs)
    try:
        yield
    finally:
        left = _of_the_process()
        _theirs.clear()
        _theirs.update({name: value for name, value in left.items() if value != ours[name]})
        _restore(ours)


def _of_the_process() -> dict[str, Any]:
    folder = ""
    # It may have been removed.
    with suppress(FileNotFoundError):
        folder = os.getcwd()
    return {
        "folder": folder,
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


def _restore(state: dict[str, Any]) -> None:
    torch.set_default_dtype(state["dtype"])
    torch.set_grad_enabled(state["gradients"])
    if torch.get_num_threads() != state["threads"]:
        torch.set_num_threads(state["threads"])
    if state["folder"]:
        with suppress(FileNotFoundError):
            os.chdir(state["folder"])


def load_from_file(location: str, *, what: str, kind: str) -> Any:
    """What stands at `path/to/file.py:name`. What the file itself raises comes through untouched.

    Args:
        what: What messages call it, such as reward.
        kind: What it is, such as function.

    Raises:
        InputError: There is no such file, or nothing callable of that name in it.
    """
    path, separator, name = location.rpartition(":")
    if not separator or not path or not name:
        raise InputError(f"{what} {location!r} must be given as path/to/file.py:{kind}.")
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise InputError(f"{what} {location!r}: there is no file {file}.")
    # Files in two folders may have one name; a dot would be a package's.
    place = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"rlhf_{what}_{file.stem.replace('.', '_')}_{place}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{what} {location!r}: {file.name} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up here; imports of neighbouring files need the folder.
    sys.modules[spec.name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    with users_code(), no_exit(f"{what} file {file}"):
        spec.loader.exec_module(module)
    if not hasattr(module, name):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, found, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        listed = f"; it has {', '.join(found)}" if found else ""
        raise InputError(f"{file.name} has no {kind} {name!r}{hint}{listed}.")
    value = getattr(module, name)
    if not callable(value):
        raise InputError(f"{name} in {file.name} is {type(value).__name__} {value!r}, not a {kind}.")
    return value
