from __future__ import annotations

import json
import re
import runpy
import shutil
import sys

import numpy as np
import pytest

from rlhf.errors import InputError
from theory import draw

# Nothing in it is sampled, so it takes no time.
SIX = 6


def small_config(output_dir, **changes) -> draw.Config:
    return draw.Config(**{"figures": (SIX,), "seeds": 2, "effort": 0.02, "output_dir": output_dir} | changes)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of one run, and what the run returned."""
    folder = tmp_path_factory.mktemp("theory")
    return folder, draw.main(small_config(folder))


@pytest.fixture
def marked_copy(drawn, tmp_path):
    """A copy of that folder, whose kept data can be told from data that was computed again."""
    shutil.copytree(drawn[0], tmp_path, dirs_exist_ok=True)
    mark(tmp_path)
    return tmp_path


def mark(folder):
    """Something in the kept data that computing would not put there."""
    data = draw.load(folder, SIX)
    np.savez(folder / "06.npz", **(data | {"mark": np.array(1.0)}))


def marked(folder) -> bool:
    return "mark" in draw.load(folder, SIX)


def test_draws_a_figure_and_leaves_data_report_and_result(drawn):
    folder, result = drawn
    assert (folder / "06.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["seconds/06"] > 0
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "def compute(" in page


def test_report_fetches_nothing(drawn):
    page = (drawn[0] / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)""", page.split("<pre")[0])
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_report_leads_to_each_figure_and_shows_what_they_share(drawn):
    page = (drawn[0] / "report.html").read_text()
    assert '<li value="6"><a href="#figure-06">' in page
    assert '<h2 id="figure-06">' in page
    for path in draw.shared_modules():
        assert f"The code: {path.name}" in page


def test_draws_the_same_again_from_kept_data(drawn, marked_copy):
    (marked_copy / "06.png").unlink()
    draw.main(small_config(marked_copy))
    assert marked(marked_copy)
    assert (marked_copy / "06.png").read_bytes() == (drawn[0] / "06.png").read_bytes()


def test_computes_again_for_other_settings(marked_copy):
    module = draw.figure("fig06_natural_steps")
    draw.computed(module, small_config(marked_copy))
    assert marked(marked_copy)
    for change in ({"effort": 0.1}, {"seeds": 3}):
        mark(marked_copy)
        draw.computed(module, small_config(marked_copy, **change))
        assert not marked(marked_copy)


def test_computes_again_where_what_it_reaches_has_changed(marked_copy, monkeypatch):
    module = draw.figure("fig06_natural_steps")
    monkeypatch.setattr(draw, "sources_hash", lambda name: f"another than that of {name}")
    draw.computed(module, small_config(marked_copy))
    assert not marked(marked_copy)


def test_numbers_files_and_figures_alike():
    assert list(draw.find_figures()) == list(range(1, 18))
    assert len(draw.find_figures()) == len(list(draw.FOLDER.glob("fig*.py")))
    for number, name in draw.find_figures().items():
        module = draw.figure(name)
        assert number == module.NUMBER


def test_figure_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no figure \[99\]"):
        draw.main(small_config(tmp_path, figures=(99, SIX)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output-dir notes.txt", "--output-dir notes.txt is a file"),
        ("--output-dir old", "old holds a run"),
    ],
)
def test_is_refused_at_the_door(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["theory", "--figures", "6", *options.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("theory", run_name="__main__")
    errors = capsys.readouterr().err
    assert ended.value.code == 2, errors
    assert message in errors
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "notes.txt", "old"]
