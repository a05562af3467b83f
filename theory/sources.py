"""What a figure is computed from: its own code and every module of ours that it imports, at whatever remove."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import recipes
import rlhf
import theory

FOLDERS = {package.__name__: Path(next(iter(package.__path__))) for package in (rlhf, recipes, theory)}
# Its own file is only a table of names for users, which no figure takes: they name modules.
FACE = rlhf.__name__


def sources_hash(module: str, folders: Mapping[str, Path] = FOLDERS) -> str:
    """Changes with the code of `module` and of what it reaches.

    Args:
        folders: Of the packages that are ours, by name; what others do is left to their versions.
    """
    reached = sources(module, folders)
    parts = [f"{name} {code_hash(reached[name])}" for name in sorted(reached)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def sources(module: str, folders: Mapping[str, Path] = FOLDERS) -> dict[str, str]:
    """The text of every module reached, by name. Packages on the way count, since they run too; the face does not."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name, folders)
        if path is None or name in found or name == FACE:
            continue
        found[name] = path.read_text("utf-8")
        waiting += [*imported(found[name]), name.rpartition(".")[0]]
    return found


@cache
def imported(source: str) -> frozenset[str]:
    """Names that its import statements may load, wherever they stand: `from a import b` gives a and a.b."""
    return frozenset(_imported(ast.parse(source)))


@cache
def code_hash(source: str) -> str:
    """Changes with the code, but not with comments, texts or the picture's look."""
    kept = []
    for node in ast.parse(source).body:
        text = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("TITLE", "SEES")
        if not (text or isinstance(node, ast.Expr) or (isinstance(node, ast.FunctionDef) and node.name == "plot")):
            kept.append(ast.dump(node))
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(name: str, folders: Mapping[str, Path]) -> Path | None:
    """Of a module or a package; None for what is neither, such as a function, or is not ours."""
    top, *parts = name.split(".")
    if top not in folders:
        return None
    path = folders[top].joinpath(*parts)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists()), None)
