"""What is shown can neither fail nor steer the terminal, and is not cut."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.runs.console import Lenient, plain_console, visible
from rlhf.runs.log import Display
from rlhf.runs.summary import print_summary

ROOT = Path(__file__).parents[2]
TEXT = "café привет 中文 😀 ─"
# A recipe of the smallest size: rows of metrics, samples that are not ASCII, a warning, prints.
RECIPE = f"""
import sys, warnings
from dataclasses import dataclass
from rlhf.runs.launch import launch
from rlhf.runs.log import Display

@dataclass(frozen=True, kw_only=True)
class Config:
    "A run."
    rows: int = 2000

def main(config):
    display = Display("{TEXT}")
    for update in range(config.rows):
        display.show({{"update": update, "eval_score_mean": 0.5}}, config.rows)
        print("{TEXT}")
        print("{TEXT}", file=sys.stderr)
    warnings.warn("{TEXT}")
    display.close()
    open("ended", "w").write("yes")

launch(main, Config)
"""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_stream_of_any_encoding_takes_any_text(encoding: str) -> None:
    raw = io.BytesIO()
    stream = Lenient(io.TextIOWrapper(raw, encoding=encoding))
    assert stream.write(TEXT + "\ud800\n") == len(TEXT) + 2
    stream.flush()
    written = raw.getvalue().decode(encoding)
    assert written == (TEXT + "\ud800\n").encode(encoding, "backslashreplace").decode(encoding)
    assert written.startswith("caf")


@pytest.mark.parametrize(
    ("shell", "environment"),
    [
        ("| head -1", {}),
        ("2>&1 | head -1", {}),
        ("> /dev/full", {}),
        ("2> /dev/full", {}),
        (">&-", {}),
        ("2>&-", {}),
        (">&- 2>&- <&-", {}),
        ("> out 2> err", {"PYTHONIOENCODING": "ascii"}),
        ("> out 2> err", {"PYTHONIOENCODING": "cp1252"}),
        ("> out 2> err", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x.values()),
)
def test_a_console_that_takes_nothing_stops_no_run(shell: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text(RECIPE, encoding="utf-8")
    command = f"{sys.executable} recipe.py {shell}; echo ${{PIPESTATUS[0]}} > status"
    everything = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=everything, capture_output=True, check=False)
    assert (tmp_path / "status").read_text().strip() == "0"
    assert (tmp_path / "ended").exists()


HOSTILE = "a\x1b[31m\x1b]0;PWNED\x07\r\x9b2J\u202e\x00b"


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert visible(HOSTILE) == r"a\x1b[31m\x1b]0;PWNED\x07\r\x9b2J\u202e\x00b"
    assert visible("two\nlines\tof наш текст 😀") == "two\nlines\tof наш текст 😀"


def test_errors_do_not_steer_the_terminal(tmp_path: Path) -> None:
    code = f"from rlhf.runs.launch import _say; _say({HOSTILE!r}, 2)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert b"\x1b" not in done.stderr
    assert rb"\x1b[31m" in done.stderr


def test_warnings_do_not_steer_the_terminal(tmp_path: Path) -> None:
    """A reward that is skipped, a folder, what a library says of a name."""
    code = f"""
import warnings
from rlhf.runs.console import lenient_streams
with lenient_streams():
    warnings.warn({HOSTILE!r})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert b"\x1b" not in done.stderr
    assert rb"\x1b[31m" in done.stderr


def test_samples_names_and_folders_are_taken_as_they_are(tmp_path: Path, monkeypatch, capsys) -> None:
    """Neither as the markup of rich, nor as emoji, nor as commands to the terminal; and nothing of them is lost."""
    folder = tmp_path / "[bold]run[/bold] :smile:"
    phase = folder / "[red]"
    phase.mkdir(parents=True)
    (phase / "phase.json").write_text('{"order": 1}')
    lines = [
        {"update": update, "kind": "evaluation", "prompt": HOSTILE, "response": f"[/] [blink] :smile: {update}"}
        for update in (0, 1)
    ]
    (phase / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "result.json").write_text(json.dumps({"reward/[bold] :smile:": 0.5}))
    monkeypatch.setenv("COLUMNS", "200")
    print_summary(folder)
    Display("[/] [bold] :smile:").show({"update": 1}, 1)
    shown = capsys.readouterr().out
    for text in ("[/] [blink] :smile: 0", "reward/[bold] :smile:", str(folder / "report.html"), "[/] [bold] :smile:"):
        assert text in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown)


ROW = {
    "update": 12345,
    "steps": 123_456_789,
    "score_mean": -1234.5678,
    "eval_score_mean": 2.0e-07,
    "loss": -1.234e-05,
    "kl_ref_k3": 1.2345e-11,
    "approx_kl_k3": 9.876e-09,
    "entropy": 0.00012345,
    "steps_per_second": 123_456.0,
}


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 140])
def test_numbers_of_the_live_table_are_whole_or_left_out(width: int) -> None:
    output = io.StringIO()
    display = Display("ppo", Console(file=output, force_terminal=True, width=width))
    display.show(ROW, 20_000)
    display.close()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue())
    assert "…" not in drawn
    cells = [cell.strip() for line in drawn.splitlines() if "12345/20000" in line for cell in re.split("[│┃|]", line)]
    known = ["12345/20000", "123,456,789", "-1235", "2e-07", "-1.234e-05", "1.234e-11", "9.876e-09", "0.0001235"]
    found = [cell for cell in cells if cell]
    assert found
    assert set(found) <= {*known, "1.235e-11", "0.0001234", "123,456"}
    assert width < 140 or "2e-07" in found


@pytest.mark.parametrize("width", [12, 30, 50])
def test_numbers_of_the_summary_are_whole(width: int, tmp_path: Path) -> None:
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "phase.json").write_text('{"order": 1}')
    (tmp_path / "result.json").write_text(json.dumps({"a_very_long_name_of_a_result_indeed": 2.0e-07}))
    console = Console(file=io.StringIO(), width=width)
    print_summary(tmp_path, console)
    assert "…" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_console_of_a_closed_stream_is_none_that_fails(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    plain_console().print(TEXT)
