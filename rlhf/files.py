"""What users keep in Python files of their own: rewards, methods, environments, engines."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from rlhf.errors import InputError, no_exit


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
    spec = importlib.util.spec_from_file_location(f"rlhf_{what}_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{what} {location!r}: {file.name} is not a Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up here; imports of neighbouring files need the folder.
    sys.modules[spec.name] = module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    with no_exit(f"{what} file {file}"):
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
