from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from rlhf.errors import InputError
from rlhf.runs import report
from rlhf.runs.log import Lines
from rlhf.runs.report import write_report

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "a <run>"
    for order, name in ((1, "zeroth"), (2, "adapted")):
        phase = folder / name
        phase.mkdir(parents=True)
        (phase / "phase.json").write_text(json.dumps({"order": order}))
        Lines(phase / "metrics.jsonl").append(
            [
                {"update": 0, "steps": 0, "eval_return_mean": 21.5},
                {"update": 1, "steps": 64, "entropy": 0.69, "kl_ref_k3": 0.1, "unheard_of": 3.0},
                {"update": 2, "steps": 128, "entropy": 0.5, "kl_ref_k3": 0.2, "eval_return_mean": 487.25},
            ]
        )
    Lines(folder / "adapted/samples.jsonl").append(
        [
            {"update": 0, "kind": "evaluation", "question": "<b>why & how</b>", "answer": "bad one", "score": 0.25},
            {"update": 1, "kind": "training", "question": "unseen", "answer": "unseen"},
            {"update": 2, "kind": "evaluation", "question": "<b>why & how</b>", "answer": "good one", "score": 1.0},
        ]
    )
    (folder / "config.json").write_text(json.dumps({"ppo": {"clip": 0.2}, "source": "https://example.org/model"}))
    (folder / "versions.json").write_text(json.dumps({"torch": "2.13.0"}))
    (folder / "result.json").write_text(json.dumps({"eval_return_mean": 487.25}))
    return folder


@pytest.fixture(scope="module")
def page(run) -> str:
    """Written once, for drawing takes most of the time."""
    return write_report(run).read_text()


def test_report_embeds_every_curve_and_loads_nothing(run, page):
    images = re.findall(r'src="([^"]*)"', page)
    assert images
    for image in images:
        head, content = image.split(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(content).startswith(PNG)
    assert not re.search(r"<link|<script|<iframe|href=|url\(|@import", page)
    curves = {path.name for path in run.glob("adapted/curves/*.png")}
    assert curves == {"evaluation.png", "KL.png", "entropy.png", "others.png"}


def test_report_is_the_same_bytes_again(run, page):
    assert write_report(run).read_text() == page


def test_report_keeps_the_phases_in_the_order_they_had(page):
    assert page.index("<h2>zeroth</h2>") < page.index("<h2>adapted</h2>")


def test_report_shows_result_config_and_versions(page):
    assert "<th>eval_return_mean</th><td>487.25</td>" in page
    assert "<th>ppo.clip</th><td>0.2</td>" in page
    assert "<th>torch</th><td>2.13.0</td>" in page
    assert "<td>eval_return_mean</td><td>21.5</td><td>487.25</td>" in page


def test_report_shows_samples_before_and_after(page):
    [row] = re.findall(r"<tr><td>(<span.*?)</tr>", page, flags=re.DOTALL)
    common, before, after = row.split("</td><td>")
    assert "&lt;b&gt;why &amp; how&lt;/b&gt;" in common
    assert "bad one" in before
    assert "good one" in after
    assert "why" not in before + after
    assert "unseen" not in page


def test_report_escapes_what_users_wrote(page):
    assert "<run>" not in page
    assert "<b>why" not in page


def test_an_interval_is_drawn_around_its_curve(monkeypatch):
    """`_low` and `_high` are the band of their metric at every row that has them, and no panels of their own."""
    bands = []
    monkeypatch.setattr(Axes, "fill_between", lambda axes, *points, **style: bands.append((axes.get_title(), *points)))
    rows = [
        {"update": 0, "steps": 0, "iqm": 20.0, "iqm_low": 10.0, "iqm_high": 25.0},
        {"update": 1, "steps": 64, "entropy": 0.5},
        {"update": 2, "steps": 128, "iqm": 90.0, "iqm_low": 60.0, "iqm_high": 95.0},
    ]
    names = [name for group in report._grouped(rows).values() for name in group]
    assert sorted(names) == ["entropy", "iqm"]
    report._curves(rows, ["iqm"])
    assert bands == [("", (0, 128), (10.0, 60.0), (25.0, 95.0))]


@pytest.mark.parametrize("name", ["a\x1b[2J\x07", "中文", "$x^$", "$\\nothing$"])
def test_a_metric_of_any_name_is_drawn_without_a_word(name, recwarn):
    assert report._curves([{"update": 0, name: 1.0}, {"update": 1, name: 2.0}], [name]).startswith(PNG)
    assert not recwarn.list


def test_report_of_a_phase_that_logged_nothing(tmp_path):
    (tmp_path / "ppo").mkdir()
    for name, content in (("config", {}), ("versions", {}), ("ppo/phase", {"order": 1})):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert "Nothing was logged." in write_report(tmp_path).read_text()


def test_report_needs_a_run(tmp_path):
    with pytest.raises(InputError, match="there is no run in"):
        write_report(tmp_path)
