"""The end of a run on the console: some samples before and after, and the headline."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from rlhf.runs.console import plain_console, visible
from rlhf.runs.report import evaluated_pairs, phase_folders, write_report
from rlhf.runs.run import Run

SAMPLES_SHOWN = 8


def conclude(run: Run, result: Mapping[str, float | str | None]) -> None:
    """Writes result.json and report.html, prints both in short, and gives the folder back.

    The run is finished when result.json is written: that its report cannot be drawn is only said.
    """
    run.write_result(result)
    if run.accelerator.is_main_process:
        try:
            write_report(run.folder)
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            again = f"python -m rlhf.runs.report --run-folder {run.folder}"
            print(f"the run is finished, but its report is not ({why}); later: {again}", file=sys.stderr)
        print_summary(run.folder)
    run.close()


def print_summary(run_folder: Path, console: Console | None = None) -> None:
    """Samples of the last phase's first and last evaluation, spread over all of them, and result.json."""
    console = console or plain_console()
    phases = phase_folders(run_folder)
    before, after, pairs = evaluated_pairs(phases[-1]) if phases else (0, 0, [])
    if pairs:
        console.print(_beside(before, after, pairs))
    result = json.loads((run_folder / "result.json").read_text(encoding="utf-8"))
    headline = Table(Column(overflow="fold"), Column(overflow="fold"), box=box.SIMPLE, show_header=False)
    for name, value in result.items():
        headline.add_row(Text(visible(name)), f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(headline)
    console.print(Text(f"Curves and more samples: {visible(str(run_folder / 'report.html'))}"), soft_wrap=True)


def _beside(before: int, after: int, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> Table:
    """Some samples, as they were and as they are."""
    headings = ("sample", f"before (update {before})", f"after (update {after})")
    table = Table(*(Column(heading, overflow="fold") for heading in headings), box=box.SIMPLE)
    for i in range(0, len(pairs), max(len(pairs) // SAMPLES_SHOWN, 1)):
        old, new = pairs[i]
        common = {name for name in old if name in new and old[name] == new[name]}
        changed = [name for name in old if name not in common]
        table.add_row(_fields(old, sorted(common)), _fields(old, changed), _fields(new, changed))
    return table


def _fields(sample: Mapping[str, Any], names: list[str]) -> Text:
    """Texts and scores; bookkeeping such as numbers of rows, and what is nested, is left to the report."""
    shown = [
        f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}"
        for name in names
        if isinstance(value := sample[name], (str, float))
    ]
    return Text(visible("\n".join(shown)))
