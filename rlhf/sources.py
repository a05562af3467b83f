"""What a run is made from beside its settings, known by checksum: files, rows of data, code of the user's."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any


def _places_of_packages() -> tuple[Path, ...]:
    """Where packages are installed, the system's and the user's own too; an environment may be reached by a link."""
    standard = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
    places = [str(Path(__file__).parent), *standard, *site.getsitepackages(), site.getusersitepackages()]
    return tuple(dict.fromkeys(Path(place).resolve() for place in places))


# Of packages that are installed the versions are compared, not the files.
_INSTALLED = _places_of_packages()


def files_sums(what: str, files: Iterable[Path], *, below: Path) -> dict[str, str]:
    """The sha256 of each, under `what` and its place below a folder."""
    return {f"{what}: {file.relative_to(below).as_posix()}": _sum(file) for file in sorted(files)}


def folder_sums(what: str, folder: Path) -> dict[str, str]:
    """The sha256 of every file in a folder, not of those in its folders."""
    return files_sums(what, (path for path in folder.iterdir() if path.is_file()), below=folder)


def rows_sums(what: str, name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The sha256 of rows as they were read, wherever from."""
    text = json.dumps(rows, default=_plain, skipkeys=True)
    return {f"{what}: {name}": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}


def code_sums(what: str, value: Any) -> dict[str, str]:
    """The sha256 of the file that a function, a class or an object's class stands in, and of each beside it that it
    imports. Of a script that was started, which may hold the settings too, only the function or class itself counts.
    """
    fixed: list[Any] = []
    while isinstance(value, functools.partial):
        fixed += [value.args, sorted(value.keywords.items())]
        value = value.func
    owner = inspect.unwrap(value) if inspect.isroutine(value) else value if inspect.isclass(value) else type(value)
    module = sys.modules.get(owner.__module__)
    path = getattr(module, "__file__", None)
    sums = {}
    if owner.__module__ == "__main__" or path is None:
        # What was typed in at a prompt has no source to be compared.
        with contextlib.suppress(OSError, TypeError):
            sums[what] = hashlib.sha256(inspect.getsource(owner).encode()).hexdigest()
    else:
        file = Path(path).resolve()
        root = file.parents[owner.__module__.count(".")]
        sums = {} if _installed(file) else files_sums(what, _with_neighbours(file, root), below=root)
    if fixed:
        sums[f"{what}: arguments"] = hashlib.sha256(json.dumps(fixed, default=_plain).encode()).hexdigest()
    return sums


def held_sums(what: str, value: Any) -> dict[str, str]:
    """The sha256 of the plain values that an object, or a function's closure and defaults, holds: by them one text is
    two rewards. Names that begin with _ are the code's own doings, such as a count of its calls. Of what is
    installed only closures count, which hold what the user asked for.
    """
    while isinstance(value, functools.partial):
        value = value.func
    installed = not code_sums(what, value)
    if inspect.ismethod(value):
        value = value.__self__
    held: Mapping[str, Any] = {}
    if inspect.isfunction(value):
        value = inspect.unwrap(value)
        defaults = [] if installed else inspect.signature(value).parameters.values()
        held = {one.name: one.default for one in defaults} | dict(inspect.getclosurevars(value).nonlocals)
    elif not installed and not inspect.isclass(value):
        held = getattr(value, "__dict__", {})
    plain = {name: held[name] for name in sorted(held) if not name.startswith("_") and _is_plain(held[name])}
    return rows_sums(what, "values", [plain]) if plain else {}


def _is_plain(value: Any, inside: frozenset[int] = frozenset()) -> bool:
    """Whether it is a number, text, None, or made of such; `inside` are those that it stands in."""
    if value is None or isinstance(value, str | Real):
        return True
    if not isinstance(value, list | tuple | set | frozenset | dict) or id(value) in inside:
        return False
    items = [*value, *value.values()] if isinstance(value, dict) else value
    return all(_is_plain(item, inside | {id(value)}) for item in items)


def _installed(file: Path) -> bool:
    return any(folder in file.parents for folder in _INSTALLED)


def _with_neighbours(file: Path, root: Path) -> set[Path]:
    """A file, and whatever it and those import that lies below `root`."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path not in found and not _installed(path):
            found.add(path)
            waiting += _imports(path, root)
    return found


def _imports(file: Path, root: Path) -> Iterator[Path]:
    # A compiled module says nothing of what it imports, nor does a file that this Python cannot read.
    try:
        tree = ast.parse(file.read_bytes() if file.suffix == ".py" else b"")
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        base, names = root, []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = f"{node.module}." if node.module else ""
            names = [f"{start}{alias.name}" for alias in node.names]
            base = file.parents[node.level - 1] if node.level else root
        for name in names:
            parts = name.split(".")
            for depth in range(1, len(parts) + 1):
                place = base.joinpath(*parts[:depth])
                yield from (path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file())


def _sum(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """What JSON does not know, as text that is the same in every process."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        # They come in another order in every process.
        return sorted(json.dumps(item, default=_plain) for item in value)
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text
