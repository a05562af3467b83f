from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from recipes import theory
from rlhf.errors import InputError

# Nothing in it is sampled, so it takes no time.
SIX = 6


def small_config(output_dir, **changes) -> theory.Config:
    return theory.Config(**{"figures": (SIX,), "seeds": 2, "effort": 0.02, "output_dir": output_dir} | changes)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The folder of one run, and what the run returned."""
    folder = tmp_path_factory.mktemp("theory")
    return folder, theory.main(small_config(folder))


@pytest.fixture
def marked_copy(drawn, tmp_path):
    """A copy of that folder, whose kept data can be told from data that was computed again."""
    shutil.copytree(drawn[0], tmp_path, dirs_exist_ok=True)
    mark(tmp_path)
    return tmp_path


def mark(folder):
    """Something in the kept data that computing would not put there."""
    data = theory.load(folder, SIX)
    np.savez(folder / "06.npz", **(data | {"mark": np.array(1.0)}))


def marked(folder) -> bool:
    return "mark" in theory.load(folder, SIX)


def test_theory_draws_a_figure_and_leaves_data_report_and_result(drawn):
    folder, result = drawn
    assert (folder / "06.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["seconds/06"] > 0
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "def compute(" in page


def test_theory_report_fetches_nothing(drawn):
    page = (drawn[0] / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>\s]+)""", page.split("<pre")[0])
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)


def test_theory_report_leads_to_each_figure_and_shows_what_they_share(drawn):
    page = (drawn[0] / "report.html").read_text()
    assert '<li value="6"><a href="#figure-06">' in page
    assert '<h2 id="figure-06">' in page
    for path in theory.shared_modules():
        assert f"The code: {path.name}" in page


def test_theory_draws_the_same_again_from_kept_data(drawn, marked_copy):
    (marked_copy / "06.png").unlink()
    theory.main(small_config(marked_copy))
    assert marked(marked_copy)
    assert (marked_copy / "06.png").read_bytes() == (drawn[0] / "06.png").read_bytes()


def test_theory_computes_again_for_other_settings(marked_copy):
    module = theory.importlib.import_module("recipes.theory_figures.fig06_natural_steps")
    theory.computed(module, small_config(marked_copy))
    assert marked(marked_copy)
    for change in ({"effort": 0.1}, {"seeds": 3}):
        mark(marked_copy)
        theory.computed(module, small_config(marked_copy, **change))
        assert not marked(marked_copy)


def test_theory_computes_again_where_what_it_calls_has_changed(marked_copy, monkeypatch):
    module, shared = theory.importlib.import_module("recipes.theory_figures.fig06_natural_steps"), theory.shared_modules
    (marked_copy / "new.py").write_text("RATE = 1.0")
    for change in (
        lambda: monkeypatch.setattr(theory, "shared_modules", lambda: [*shared(), marked_copy / "new.py"]),
        lambda: (marked_copy / "new.py").write_text("RATE = 2.0"),
    ):
        theory.computed(module, small_config(marked_copy))
        mark(marked_copy)
        theory.computed(module, small_config(marked_copy))
        assert marked(marked_copy)
        change()
        theory.computed(module, small_config(marked_copy))
        assert not marked(marked_copy)


def test_theory_code_hash_sees_the_computation_and_not_the_look():
    source = 'SEES = "a"\nRATE = 1.0\ndef compute():\n    return RATE\ndef plot():\n    return 1\n'
    plain = theory.code_hash(source)
    assert theory.code_hash(source.replace('"a"', '"b"').replace("return 1", "return 2") + "# c\n") == plain
    assert theory.code_hash(source.replace("1.0", "2.0")) != plain


def test_theory_numbers_files_and_figures_alike():
    assert list(theory.find_figures()) == list(range(1, 18))
    assert len(theory.find_figures()) == len(list(theory.FOLDER.glob("fig*.py")))
    for number, name in theory.find_figures().items():
        module = theory.importlib.import_module(f"recipes.theory_figures.{name}")
        assert number == module.NUMBER


def test_theory_figure_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no figure \[99\]"):
        theory.main(small_config(tmp_path, figures=(99, SIX)))
    assert not list(tmp_path.iterdir())
