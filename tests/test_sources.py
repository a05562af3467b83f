"""Checksums by which a resumed run knows what it was started from."""

from __future__ import annotations

import hashlib
import importlib
import os
import site
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from rlhf import sources
from rlhf.control.tasks import Envs
from rlhf.files import load_from_file
from rlhf.lm.prompts import Prompts
from rlhf.sources import code_sums, held_sums, rows_sums
from tests.control.worlds import Walk


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(
        "import math\nfrom beside_of_sources import SCALE\n\n"
        "def reward(responses):\n    import package_of_sources.inner\n    return [SCALE] * len(responses)\n\n"
        "class Judge:\n    def __call__(self, responses):\n        return [1.0] * len(responses)\n\n"
        "judge = Judge()\n"
    )
    (tmp_path / "beside_of_sources.py").write_text("SCALE = 2.0\n")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "package_of_sources").mkdir()
    (tmp_path / "package_of_sources" / "__init__.py").write_text("")
    (tmp_path / "package_of_sources" / "inner.py").write_text("from . import deep\n")
    (tmp_path / "package_of_sources" / "deep.py").write_text("")
    return tmp_path


@pytest.mark.parametrize("name", ["reward", "Judge", "judge"])
def test_code_is_its_file_and_what_that_imports_from_beside_it(folder, name):
    value = load_from_file(f"{folder}/mine.py:{name}", what="reward", kind="function")
    files = (
        *("mine.py", "beside_of_sources.py", "package_of_sources/__init__.py"),
        *("package_of_sources/deep.py", "package_of_sources/inner.py"),
    )
    assert code_sums("reward x", value) == {f"reward x: {file}": sha256(folder / file) for file in files}


def test_method_of_an_object_is_code_of_its_file(folder):
    judge = load_from_file(f"{folder}/mine.py:judge", what="reward", kind="function")
    assert code_sums("x", judge.__call__) == code_sums("x", judge)


def test_what_a_partial_fixes_counts(folder):
    reward = load_from_file(f"{folder}/mine.py:reward", what="reward", kind="function")
    one, two = (code_sums("x", partial(reward, by=by)) for by in (1, 2))
    assert one.keys() == two.keys() == {*code_sums("x", reward), "x: arguments"}
    assert [name for name in one if one[name] != two[name]] == ["x: arguments"]


def test_code_of_installed_packages_is_left_to_their_versions():
    assert code_sums("x", np.mean) == code_sums("x", rows_sums) == code_sums("x", Path) == {}


def test_they_are_so_in_an_environment_that_is_reached_by_a_link(tmp_path):
    """All of gymnasium and torch was read at each start, which took most of a minute."""
    (tmp_path / "venv").symlink_to(sys.prefix)
    said = subprocess.run(
        [
            tmp_path / "venv" / "bin" / "python",
            "-c",
            "import numpy; from rlhf.sources import code_sums; print(code_sums('x', numpy.mean))",
        ],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=True,
        text=True,
    )
    assert said.stdout == "{}\n"


@pytest.mark.parametrize("kind", ["the system's", "the user's"])
def test_packages_of_the_system_and_of_the_user_are_installed_too(tmp_path, monkeypatch, kind):
    """As an environment with --system-site-packages has them."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    place = str(tmp_path / "link")
    if kind == "the system's":
        monkeypatch.setattr(site, "getsitepackages", lambda: [place])
    else:
        monkeypatch.setattr(site, "getusersitepackages", lambda: place)
    monkeypatch.setattr(sources, "_INSTALLED", sources._places_of_packages())
    (tmp_path / "there" / "theirs.py").write_text("def reward(): ...")
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    assert code_sums("x", importlib.import_module("theirs").reward) == {}


def of_a_script(responses):
    return [1.0]


def test_of_a_script_that_was_started_only_the_function_counts(monkeypatch):
    """It may hold the settings too, which a resumed run may have more of."""
    monkeypatch.setattr(of_a_script, "__module__", "__main__")
    source = "def of_a_script(responses):\n    return [1.0]\n"
    assert code_sums("x", of_a_script) == {"x": hashlib.sha256(source.encode()).hexdigest()}


@pytest.mark.parametrize(
    "changed",
    [
        [{"prompt": "a", "n": 2}],
        [{"prompt": "b", "n": 1}],
        [{"prompt": "a", "n": 1}] * 2,
        [{"n": 1, "prompt": "a\ud800"}],
    ],
)
def test_rows_are_known_by_their_content(changed):
    rows = [{"prompt": "a", "n": 1}]
    assert rows_sums("data", "p.jsonl", rows) == rows_sums("data", "p.jsonl", [dict(rows[0])])
    assert list(rows_sums("data", "p.jsonl", rows)) == ["data: p.jsonl"]
    assert rows_sums("data", "p.jsonl", rows) != rows_sums("data", "p.jsonl", changed)


def test_rows_of_objects_have_one_checksum_in_every_process():
    def rows(number: int) -> list[dict]:
        return [{"image": np.full(3, number), "other": object()}]

    assert rows_sums("data", "x", rows(1)) == rows_sums("data", "x", rows(1)) != rows_sums("data", "x", rows(2))


def test_a_set_has_one_checksum_whatever_the_seed_of_hashes():
    program = "from rlhf.sources import rows_sums; print(rows_sums('x', 'x', [{'tags': {'a', 'b', frozenset('cde')}}]))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1


def test_files_of_one_name_are_each_their_own(tmp_path):
    """The last has a dot in its stem, which is no package."""
    places = [tmp_path / "a" / "rewards.py", tmp_path / "b" / "rewards.py", tmp_path / "b" / "re.wards.py"]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"def reward():\n    return {str(place)!r}\n")
    loaded = [load_from_file(f"{place}:reward", what="reward", kind="function") for place in places]
    assert [sys.modules[function.__module__].__file__ for function in loaded] == [str(place) for place in places]
    sums = [code_sums("x", function) for function in loaded]
    assert sums == [{f"x: {place.name}": sha256(place)} for place in places]


@pytest.mark.parametrize("text", [b"def (", b"\0", b"\xff"])
def test_a_file_beside_that_is_no_python_counts_and_imports_nothing(folder, text):
    """It may be imported where nobody comes, or only be of another Python."""
    reward = load_from_file(f"{folder}/mine.py:reward", what="reward", kind="function")
    (folder / "beside_of_sources.py").write_bytes(text)
    sums = code_sums("x", reward)
    assert sums["x: beside_of_sources.py"] == hashlib.sha256(text).hexdigest()
    assert "x: mine.py" in sums


def closing_over(k, also=None):
    def reward(responses):
        return [k, also]

    return reward


def defaulting_to(k):
    return lambda responses, k=k: [k]


class Scaled:
    def __init__(self, scale, also=None):
        self.scale, self.also, self._calls = scale, also, id(self)

    def score(self, responses):
        return [self.scale]


@pytest.mark.parametrize(
    "make",
    [
        closing_over,
        defaulting_to,
        Scaled,
        lambda k: Scaled(k).score,
        lambda k: Scaled([{"a": (k, None)}]),
        lambda k: Scaled({"a": {k, "b"}}),
        lambda k: partial(closing_over(k), by=1),
    ],
)
def test_plain_values_that_code_holds_count(make):
    assert held_sums("x", make(1.0)) == held_sums("x", make(1.0)) != held_sums("x", make(-1.0))
    assert held_sums("x", make(1.0)).keys() == {"x: values"}


def test_what_code_holds_beside_plain_values_does_not_count():
    """A model may be large, and an object may hold itself."""
    endless = []
    endless.append(endless)
    for also in (object(), np.zeros(3), [object()], endless, of_a_script):
        assert held_sums("x", Scaled(1.0, also)) == held_sums("x", Scaled(1.0, Path()))
        assert held_sums("x", closing_over(1.0, also)) == held_sums("x", closing_over(1.0, Path()))
    assert held_sums("x", of_a_script) == held_sums("x", Scaled) == held_sums("x", np.random.default_rng()) == {}


def test_rewards_and_environments_are_known_by_what_they_hold():
    def inputs(k):
        rows = [{"prompt": "a"}, {"prompt": "b"}]
        rewarded = Prompts(rows, Scaled(k).score, max_new_tokens=4, held_out=1).inputs()
        return rewarded | Envs(lambda: Walk(limit=k)).inputs()

    before, after = inputs(3), inputs(4)
    assert {name for name in before if before[name] != after[name]} == {"reward score: values", "environment: values"}
