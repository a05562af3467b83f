"""Metrics and samples as lines of JSON, the source of truth of a run; and what the console shows of them."""

from __future__ import annotations

import atexit
import json
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import is_tensorboard_available
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.errors import DiskError, InputError, NonFiniteError
from rlhf.runs.console import plain_console, visible

# What the console shows: a heading and the metrics it may come from, of which the first that was logged counts.
COLUMNS = {
    "score": ("score_mean", "return_mean"),
    "eval": ("eval_score_mean", "eval_return_mean", "eval_accuracy"),
    "loss": ("negative_log_likelihood", "preference_loss", "loss"),
    "KL to ref": ("kl_ref_k3",),
    "KL of step": ("approx_kl_k3",),
    "entropy": ("entropy",),
    "steps/s": ("steps_per_second",),
}
ROWS_SHOWN = 8
SECONDS_BETWEEN_LINES = 1.0


class Lines:
    """A file of one JSON object a line, closed after every write, so that a kill loses no line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Bytes of it after the last write of this process.
        self._size: int | None = None

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Writes the records, or none of them.

        Raises:
            ValueError: A record is not JSON; NaN and infinity are not.
            DiskError: It is not what this process has written.
        """
        content = "".join(_line(record, self.path) for record in records)
        self.require_unchanged()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(content)
            self._size = file.tell()

    def require_unchanged(self) -> None:
        """Refuses a file that was removed, cut or written to by somebody else: lines would be lost or mixed for good.

        Raises:
            DiskError: It is.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if self._size is not None and size != self._size:
            raise DiskError(
                f"{self.path} has {size} bytes and not the {self._size} that this run has written: something else "
                "removed or changed it. The same command with --resume restores it, and goes on, from the newest "
                "checkpoint."
            )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a file of lines; none if it does not exist. A last line cut by a kill is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.split("\n") if line]


def check_row(row: Mapping[str, Any]) -> None:
    """Metrics are finite plain numbers under string names.

    Raises:
        ValueError: A value is something else, say a tensor.
        NonFiniteError: A value is NaN or infinite.
    """
    for name, value in row.items():
        if not isinstance(name, str) or not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"metric {name!r} is {value!r}, a {type(value).__name__}; metrics are int or float.")
        if not math.isfinite(value):
            raise NonFiniteError(f"metric {name} is {value} at update {row.get('update')}.")


def trackers(*, tensorboard: bool, output_dir: Path) -> dict[str, Any]:
    """Who else gets the metrics, as arguments of `Accelerator`.

    Raises:
        InputError: The package it takes is not installed.
    """
    if not tensorboard:
        return {}
    if not is_tensorboard_available():
        raise InputError("--tensorboard needs a package that is not installed: pip install 'rlhf[tensorboard]'.")
    return {"log_with": "tensorboard", "project_dir": output_dir / "tensorboard"}


class Display:
    """The newest rows and how far the run is: a live table on a terminal, else a line at most every second."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self._title = visible(title)
        self._console = console or plain_console()
        self._rows: deque[dict[str, str]] = deque(maxlen=ROWS_SHOWN)
        self._start: tuple[float, int] | None = None
        self._last = -math.inf
        self._live: Live | None = None

    def show(self, row: Mapping[str, float], target: int, unit: str = "updates") -> None:
        """Shows a row of metrics; `target` is the number of updates or steps at which the phase ends."""
        now, update, steps = time.monotonic(), int(row["update"]), int(row.get("steps", 0))
        done = steps if unit == "steps" else update
        if self._start is None:
            self._start = (now, done)
        first_time, first_done = self._start
        cells = {"update": f"{update}/{target}", "steps": f"{steps:,}"}
        if unit == "steps":
            cells = {"update": f"{update}", "steps": f"{steps:,}/{target:,}"}
        for heading, names in COLUMNS.items():
            name = next((name for name in names if name in row), None)
            if name is not None:
                cells[heading] = f"{row[name]:,.0f}" if heading == "steps/s" else f"{row[name]:.4g}"
        if first_done < done < target:
            cells["left"] = _duration((now - first_time) / (done - first_done) * (target - done))
        self._rows.append(cells)
        important = done >= target or any(name.startswith("eval_") for name in row)
        if self._console.is_terminal:
            self._refresh(min(done / max(target, 1), 1.0))
        elif important or now - self._last >= SECONDS_BETWEEN_LINES:
            line = "  ".join(f"{heading} {cell}" for heading, cell in cells.items())
            self._console.print(f"{self._title}  {line}", soft_wrap=True, highlight=False, markup=False)
            self._last = now

    def say(self, text: str) -> None:
        """A line of its own."""
        self._console.print(f"{self._title}  {text}", soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Leaves the last table on the screen and gives the cursor back."""
        if self._live is not None:
            self._live.stop()
            atexit.unregister(self._live.stop)
            self._live = None

    def _refresh(self, fraction: float) -> None:
        if self._live is None:
            # No refreshing thread: the loop that logs is the only one that draws. An error must not cost the cursor.
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
            atexit.register(self._live.stop)
        table = Table(title=Text(self._title), title_justify="left")
        headings = self._headings()
        for heading in headings:
            table.add_column(heading, no_wrap=True)
        for row in self._rows:
            table.add_row(*(row.get(heading, "") for heading in headings))
        self._live.update(Group(table, ProgressBar(total=1.0, completed=fraction, width=40)), refresh=True)

    def _headings(self) -> list[str]:
        """Those that the terminal is wide enough for: a number is shown whole or not at all."""
        headings = [name for name in ("update", "steps", *COLUMNS, "left") if any(name in row for row in self._rows)]
        widths = {name: max(len(name), *(len(row.get(name, "")) for row in self._rows)) for name in headings}
        # Beside its text, each takes a bar and two spaces.
        while len(headings) > 1 and sum(widths[name] + 3 for name in headings) + 1 > self._console.width:
            headings.pop(-2 if headings[-1] == "left" else -1)
        return headings


def _line(record: Mapping[str, Any], path: Path) -> str:
    try:
        return json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} holds JSON only, and {str(record)[:200]} is not: {error}") from error


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
