"""What makes a figure's kept data stale: what it reaches by its imports, and nothing else."""

from __future__ import annotations

import ast
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from theory.draw import find_figures
from theory.sources import FACE, FOLDERS, code_hash, imported, sources, sources_hash

FIGURES = {number: f"theory.figures.{name}" for number, name in find_figures().items()}


@pytest.fixture
def copies(tmp_path: Path) -> dict[str, Path]:
    """Of all our packages, which a test may change."""
    return {name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in FOLDERS.items()}


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        ("theory/figures/fig06_natural_steps.py", {6}),
        ("theory/figures/replay_tables.py", {12}),
        ("theory/worlds/chain.py", {14}),
        ("theory/diagnose.py", set()),
        ("theory/draw.py", set()),
        ("rlhf/control/dagger.py", {16}),
        ("rlhf/lm/packing.py", set()),
        ("rlhf/__init__.py", set()),
        ("recipes/settings/control.py", {17}),
        ("recipes/settings/language.py", set()),
        # What registers the worlds runs before any figure.
        ("theory/__init__.py", set(FIGURES)),
    ],
)
def test_figures_are_stale_that_reach_what_has_changed(path: str, stale: set[int], copies: dict[str, Path]) -> None:
    before = {number: sources_hash(module, copies) for number, module in FIGURES.items()}
    changed = copies["rlhf"].parent / path
    changed.write_text(changed.read_text() + "\nANOTHER_LINE = 1\n")
    after = {number: sources_hash(module, copies) for number, module in FIGURES.items()}
    assert {number for number in FIGURES if before[number] != after[number]} == stale


def test_sources_are_reached_however_they_are_imported(tmp_path: Path) -> None:
    texts = {
        "start": "import ours.whole\nfrom ours import part\nfrom ours.names import function\nimport numpy",
        "whole": "def late():\n    import ours.inside",
        "part": "from ours import start",
        "names": "",
        "inside": "",
        "unused": "",
        "__init__": "",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    reached = sources("ours.start", {"ours": tmp_path})
    assert reached == {f"ours.{name}".removesuffix(".__init__"): texts[name] for name in texts if name != "unused"}


def test_every_name_that_figures_take_from_a_package_is_a_module() -> None:
    """A name that a package hands on when asked would not lead to the code behind it."""
    reached = {name: text for module in FIGURES.values() for name, text in sources(module).items()}
    specs = {name: find_spec(name) for name in reached}
    packages = {name for name, spec in specs.items() if spec and spec.submodule_search_locations} | {FACE}
    names = {name for text in reached.values() for name in imported(text) | asked_of_the_face(text)}
    taken = {name for name in names if name.rpartition(".")[0] in packages}
    assert taken
    assert taken <= set(reached)


def asked_of_the_face(source: str) -> set[str]:
    """Names in `rlhf.name`, which any `import rlhf.module` allows."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {f"{FACE}.{node.attr}" for node in nodes if isinstance(node.value, ast.Name) and node.value.id == FACE}


def test_face_may_be_left_out_since_nothing_runs_there() -> None:
    """Importing it loads nothing but the standard library."""
    names = imported((FOLDERS[FACE] / "__init__.py").read_text("utf-8"))
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_code_hash_sees_the_computation_and_not_the_look() -> None:
    source = 'SEES = "a"\nRATE = 1.0\ndef compute():\n    return RATE\ndef plot():\n    return 1\n'
    plain = code_hash(source)
    assert code_hash(source.replace('"a"', '"b"').replace("return 1", "return 2") + "# c\n") == plain
    assert code_hash(source.replace("1.0", "2.0")) != plain
