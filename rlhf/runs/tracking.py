"""Who else gets the metrics: TensorBoard shows what metrics.jsonl says, also after a resume took some of it back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rlhf.runs.log import read_lines

# What TensorBoard's tracker writes: what was logged, and the configuration.
EVENTS = "events.out.tfevents.*"
WRITTEN = (EVENTS, "hparams.yml")


def start_trackers(accelerator: Accelerator, name: str, config: dict[str, Any], *, resume: bool) -> None:
    """Makes the trackers that the accelerator was asked for; on resume, TensorBoard forgets what it had of the run."""
    if resume and accelerator.is_main_process and "tensorboard" in map(str, accelerator.log_with):
        for path in Path(accelerator.logging_dir, name).rglob(EVENTS):
            path.unlink()
    accelerator.init_trackers(name, config=config)


def track_again(accelerator: Accelerator, phase: str, metrics: Path) -> None:
    """Tells TensorBoard all of a phase that was not taken back.

    Its own way, to hide all from some step on, would hide what the other phases logged of later steps.
    """
    boards = [tracker for tracker in accelerator.trackers if tracker.name == "tensorboard"]
    if boards and accelerator.is_main_process:
        for row in read_lines(metrics):
            for board in boards:
                board.log(tracked(phase, row), step=int(row["update"]))


def tracked(phase: str, row: Mapping[str, float]) -> dict[str, float]:
    """A row by the names that trackers get."""
    return {f"{phase}/{name}": value for name, value in row.items()}
