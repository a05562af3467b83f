"""Imports only point down, and the shared half imports nothing that only one way of acting needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rlhf

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rlhf"

# From the lowest up, what each part may import of the package; a part is a folder or a single file, by its stem.
BELOW = {
    "errors": set(),
    "deferred": set(),
    "core": set(),
    "files": {"deferred", "errors"},
    "settings": {"errors"},
    "sources": set(),
    "rollout": {"core", "errors"},
    "reduce": {"core"},
    "demonstrations": {"core", "errors", "rollout"},
    "parallel": {"deferred", "errors"},
    "runs": {"deferred", "errors", "parallel", "reduce"},
    "sharded": {"errors"},
    "budget": {"reduce", "rollout"},
    "optimize": {"budget", "core", "deferred", "errors", "reduce", "rollout", "settings", "sharded"},
    "acting": {"budget", "core", "errors", "reduce", "rollout"},
    "algorithms": {
        *("acting", "budget", "core", "deferred", "errors", "files", "optimize", "reduce", "rollout", "settings"),
        "sharded",
    },
    "task": {"algorithms", "optimize", "rollout", "runs"},
    "watched": {"algorithms", "optimize", "rollout", "runs", "task"},
    "loop": {
        *("acting", "algorithms", "deferred", "errors", "optimize", "reduce", "rollout", "runs", "settings", "sharded"),
        "task",
    },
    "training": {"algorithms", "errors", "loop", "optimize", "parallel", "runs", "settings", "sources", "task"},
    "control": {
        *(
            "algorithms",
            "core",
            "errors",
            "files",
            "loop",
            "optimize",
            "reduce",
            "rollout",
            "runs",
            "settings",
            "sources",
            "task",
        ),
    },
    "lm": {
        *(
            "acting",
            "algorithms",
            "budget",
            "core",
            "demonstrations",
            "errors",
            "files",
            "optimize",
            "reduce",
            "rollout",
            "runs",
        ),
        *("settings", "sharded", "sources", "task"),
    },
}
# What stands on the package; none of these is imported by it.
ABOVE = ("recipes", "theory", "benchmarks", "tests")
# The half that does not know what acting is; all parts but the two sides.
SHARED = [part for part in BELOW if part not in ("control", "lm")]


def files(part: str) -> list[Path]:
    folder = PACKAGE / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


def test_layers_stand_in_one_order() -> None:
    """Each part is above all that it may import, so there is no circle of parts."""
    order = list(BELOW)
    for place, part in enumerate(order):
        assert BELOW[part] <= set(order[:place]), (
            f"{part} imports {BELOW[part] - set(order[:place])}, which is no lower"
        )


def test_nothing_may_be_imported_that_is_not() -> None:
    for part, below in BELOW.items():
        used = {name.split(".")[1] for path in files(part) for name in imported(path) if name.startswith("rlhf.")}
        assert below <= used, f"{part} imports no {below - used} any more"


def test_no_files_import_each_other_in_a_circle() -> None:
    paths = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph = {
        module: {room for name in imported(path) for room in (name, name.rpartition(".")[0]) if room in paths}
        for module, path in paths.items()
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(paths)


def test_the_face_names_rooms_and_imports_none() -> None:
    face = PACKAGE / "__init__.py"
    assert {name.split(".")[0] for name in imported(face)} <= sys.stdlib_module_names
    for room, names in rlhf._ROOMS.items():
        path = ROOT / Path(*room.split(".")).with_suffix(".py")
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assert set(names) <= {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}, room


def test_the_face_alone_imports_neither_side_nor_torch() -> None:
    heavy = "torch", "transformers", "gymnasium", "accelerate"
    code = f"import sys, rlhf; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_core_imports_only_torch_and_jaxtyping() -> None:
    for path in files("core"):
        outside = (
            {name.split(".")[0] for name in imported(path)} - {"torch", "jaxtyping", "rlhf"} - sys.stdlib_module_names
        )
        assert not outside, f"{path.name} imports {outside}"


@pytest.mark.parametrize("part", SHARED)
def test_shared_code_imports_neither_side(part: str) -> None:
    for path in files(part):
        outside = {name.split(".")[0] for name in imported(path)}
        assert not outside & {"gymnasium", "transformers", "peft", "datasets", "tokenizers"}, path.name


def test_package_imports_nothing_that_stands_above_it() -> None:
    for path in PACKAGE.rglob("*.py"):
        above = {name.split(".")[0] for name in imported(path)} & set(ABOVE)
        assert not above, f"{path.name} imports {above}"
