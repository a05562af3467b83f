"""Imports only point down, and the shared half never mentions what acting is about."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rlhf"

# What each part may import of the package; parts not listed as keys are single files named by their stem.
BELOW = {
    "errors": set(),
    "core": set(),
    "rollout": {"core"},
    "reduce": {"core"},
    "demonstrations": {"core", "errors", "reduce", "rollout"},
    "runs": {"errors", "reduce", "rollout"},
    "optimize": {"core", "errors", "reduce", "rollout"},
    "rescore": {"optimize", "rollout"},
    "diagnose": {"core", "errors", "optimize", "reduce", "rollout"},
    "stack": {"core", "errors", "optimize", "rollout"},
    "lag": {"errors", "rescore", "rollout"},
    "replay": {"core", "errors", "rollout"},
    "algorithms": {"core", "errors", "optimize", "reduce", "replay", "rescore", "rollout"},
    "train": {"errors", "optimize", "reduce", "rollout", "runs"},
    "control": {"algorithms", "core", "errors", "lag", "optimize", "reduce", "rollout", "runs", "stack", "train"},
    "lm": {
        "algorithms",
        "core",
        "demonstrations",
        "errors",
        "lag",
        "optimize",
        "reduce",
        "rollout",
        "runs",
        "train",
    },
}
# The half that does not know what acting is: no file of it mentions either side, docstrings included.
SHARED = [
    "core",
    "algorithms",
    "runs",
    "reduce",
    "demonstrations",
    "diagnose",
    "optimize",
    "rescore",
    "lag",
    "replay",
    "stack",
    "train",
]
FORBIDDEN = re.compile(r"token|environment|\benvs?\b|prompt|observation", re.IGNORECASE)


def files(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__", "__pycache__"} == set(BELOW)


@pytest.mark.parametrize("part", BELOW)
def test_imports_point_down(part: str) -> None:
    for path in files(part):
        used = {name.split(".")[1] for name in imported(path) if name.startswith("rlhf.")} - {part}
        assert used <= BELOW[part], f"{path.name} imports {used - BELOW[part]}"


def test_core_imports_only_torch_and_jaxtyping() -> None:
    for path in files("core"):
        outside = (
            {name.split(".")[0] for name in imported(path)} - {"torch", "jaxtyping", "rlhf"} - sys.stdlib_module_names
        )
        assert not outside, f"{path.name} imports {outside}"


@pytest.mark.parametrize("part", SHARED)
def test_shared_code_mentions_neither_side(part: str) -> None:
    for path in files(part):
        found = FORBIDDEN.search(path.read_text())
        assert found is None, f"{path.name} mentions {found.group()!r}" if found else ""


@pytest.mark.parametrize("part", SHARED)
def test_shared_code_imports_neither_side(part: str) -> None:
    for path in files(part):
        outside = {name.split(".")[0] for name in imported(path)}
        assert not outside & {"gymnasium", "transformers", "peft", "datasets", "tokenizers"}, path.name


def test_recipes_are_imported_by_nothing() -> None:
    for path in [*PACKAGE.rglob("*.py")]:
        assert not any(name.split(".")[0] == "recipes" for name in imported(path)), path.name
