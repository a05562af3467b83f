"""Metrics, samples, checkpoints and the final model of one part of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from accelerate import Accelerator

from rlhf.errors import InputError
from rlhf.runs.checkpoint import (
    KEPT,
    Damaged,
    Writer,
    commit_folder,
    find_checkpoint,
    latest_checkpoint,
    note_stop,
    prune_checkpoints,
    remove_leftovers,
    save_checkpoint,
    verify_folder,
    write_each,
    write_json,
)
from rlhf.runs.clock import Clock
from rlhf.runs.console import say
from rlhf.runs.disk import free_bytes, one_line, readable, size_of
from rlhf.runs.kept import PHASE, RUN, keep, own_files, restore_log
from rlhf.runs.log import Display, Lines, check_row, read_lines
from rlhf.runs.ranks import on_main
from rlhf.runs.state import load_state
from rlhf.runs.tracking import track_again, tracked

# What `Phase.once` keeps.
STORED = "stored"

T = TypeVar("T")


class Restored(NamedTuple):
    """A checkpoint: the state that was saved, and the folder in which each writer's subfolder lies."""

    update: int
    state: Any
    folders: Path


class Phase:
    """Every rank calls every method; only the main process writes, and errors of its writing reach all ranks.

    Args:
        order: Which part of the run it is.
        clock: The run's.
        withdraw: Takes the run back that was started, if nothing has been done in it.

    Raises:
        DiskError: Here and by every method: the disk refused; what was committed before is kept.
    """

    def __init__(
        self,
        run_folder: Path,
        name: str,
        *,
        order: int,
        accelerator: Accelerator,
        clock: Clock,
        withdraw: Callable[[], None],
    ) -> None:
        self.folder = run_folder / name
        self.final = self.folder / "final"
        self.accelerator, self.clock = accelerator, clock
        self._withdraw = withdraw
        self._checkpoints = self.folder / "checkpoints"
        self._metrics = Lines(self.folder / "metrics.jsonl")
        self._samples = Lines(self.folder / "samples.jsonl")
        self._logs = [self._metrics, self._samples]
        self._display = Display(name)
        self._last_update = -1
        self._target, self._unit = 0, "updates"
        # The checkpoint that this process went on from, until it has written one of its own.
        self._came_from: Path | None = None
        # Bytes of a checkpoint, as far as that is known before it is written.
        self._checkpoint_size = 0

        def begin() -> dict[str, bytes]:
            _mark_phase(self.folder, order)
            return own_files(run_folder, self.folder)

        self._own_files = self._on_main(begin)

    @property
    def final_policy(self) -> Path:
        return self.final / "policy"

    def finished(self, target: int, unit: str = "updates") -> bool:
        """Whether the phase reached `target` updates or steps; False if it reached fewer: it can be extended."""
        self._target, self._unit = target, unit
        done = self._on_main(lambda: self._finished(target))
        if done:
            track_again(self.accelerator, self.folder.name, self._metrics.path)
        return done

    def load_final(self, load: Callable[[Path], None]) -> None:
        """Has the final policy of a finished phase read."""
        with one_line(self.folder):
            load(self.final_policy)

    def restore(self) -> Restored | None:
        """The newest good checkpoint; metrics and samples logged after it are forgotten. None to start at 0."""
        update, folder = self._on_main(self._rewind)
        self._last_update, self._came_from = update, folder
        track_again(self.accelerator, self.folder.name, self._metrics.path)
        if folder is None:
            return None
        with one_line(self.folder):
            return Restored(update, load_state(folder), folder)

    def require_space(self, checkpoint_size: int, final_size: int) -> None:
        """Refuses to begin where the disk has no room for the checkpoints that are kept, the next one and the end.

        Raises:
            InputError: With what is needed and what is free. A run that has done nothing yet is taken back.
        """
        self._checkpoint_size = checkpoint_size

        def check() -> None:
            there = size_of(self._checkpoints) + size_of(self.final)
            needed, free = (KEPT + 1) * checkpoint_size + final_size - there, free_bytes(self.folder)
            if needed > free:
                self._withdraw()
                raise InputError(
                    f"{self.folder} needs about {readable(needed)} for checkpoints and the final model, and "
                    f"{readable(free)} are free; make room, or name an --output-dir on another disk."
                )

        self._on_main(check)

    def save(self, update: int, state: Any, writers: Mapping[str, Writer]) -> None:
        """Commits a checkpoint: the state, one subfolder a writer, and copies of the run's own files and logs.

        Raises:
            NonFiniteError: A tensor in it is not finite; the checkpoint before it is kept.
        """
        parts = {**writers, RUN: self._keep}
        self._on_main(lambda: save_checkpoint(self._checkpoints, update, state, parts), needed=self._checkpoint_size)
        self._came_from = None

    def log(self, row: Mapping[str, float]) -> None:
        """Writes one line of metrics, with the `update` they belong to; one line an update.

        Raises:
            ValueError: The update was logged before, or a value is not a number.
            NonFiniteError: A value is NaN or infinite.
        """
        check_row(row)
        update = int(row["update"])
        if update <= self._last_update:
            raise ValueError(f"update {update} was logged after update {self._last_update}; log each once, in order.")
        self._last_update = update
        if self.accelerator.is_main_process:
            with one_line(self.folder):
                self._metrics.append([row])
            self._display.show(row, self._target, self._unit)
        if self.accelerator.log_with:
            with one_line(self.folder):
                self.accelerator.log(tracked(self.folder.name, row), step=update)

    def say(self, text: str) -> None:
        """Tells the user something in words, on the console of the main process."""
        if self.accelerator.is_main_process:
            self._display.say(text)

    def record(self, samples: Collection[Mapping[str, Any]]) -> None:
        """Writes records for people to read, those of the main process only."""
        if self.accelerator.is_main_process and samples:
            with one_line(self.folder):
                self._samples.append(samples)

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far, a row an update; the same on every rank."""
        return self._on_main(lambda: read_lines(self._metrics.path))

    def once(self, name: str, write: Writer) -> Path:
        """A folder that is written when it is first asked for and never again: references, reward models.

        Raises:
            InputError: It was written and is damaged.
        """
        folder = self.folder / STORED / name

        def store() -> None:
            if not folder.exists():
                commit_folder(folder, write)
                return
            try:
                verify_folder(folder)
            except Damaged as damage:
                raise InputError(f"{damage} Restore it from a copy, or start anew with another --output-dir.") from None

        self._on_main(store)
        return folder

    def finish(self, target: int, writers: Mapping[str, Writer]) -> None:
        """Commits the final folder, one subfolder a writer, and with it that `target` was reached.

        Raises:
            NonFiniteError: A tensor in it is not finite; the newest checkpoint is kept.
        """

        def write(folder: Path) -> None:
            write_json(folder / "finished.json", {self._unit: target, "update": self._last_update})
            write_each(folder, writers)

        self._on_main(lambda: commit_folder(self.final, write), needed=self._checkpoint_size)
        self._display.close()

    def stopped(self, message: str) -> None:
        """Has the checkpoint that the run went on from passed over, if it stopped before it wrote another.

        No other rank is asked: a number may be not finite on one alone.
        """
        if self._came_from is not None:
            with one_line(self.folder):
                note_stop(self._came_from, message)

    def _on_main(self, act: Callable[[], T], *, needed: int = 0) -> T:
        """`on_main`, with what the disk refuses in one line."""

        def guarded() -> T:
            with one_line(self.folder, needed=needed):
                return act()

        return on_main(self.accelerator, guarded)

    def _keep(self, into: Path) -> None:
        keep(into, self._own_files, self._logs)

    def _finished(self, target: int) -> bool:
        if not self.final.exists():
            return False
        try:
            verify_folder(self.final)
        except Damaged as damage:
            say(f"{damage} Writing it again from the last checkpoint.")
            return False
        end = json.loads((self.final / "finished.json").read_text(encoding="utf-8"))
        reached = end[self._unit]
        if reached > target:
            raise InputError(f"{self.folder} was trained for {reached} {self._unit}; it cannot end at {target}.")
        if "update" not in end:
            raise InputError(
                f"{self.final / 'finished.json'} has no update, since an older version of this package wrote it; go on "
                "with that version, or start anew with another --output-dir."
            )
        return reached == target and self._logs_reach(end["update"])

    def _logs_reach(self, update: int) -> bool:
        """Whether there is a good checkpoint of the last update, from which the logs are made good; or none at all.

        Else the last updates are done again, since nothing tells whether their lines are as they were.
        """
        # What is wrong with others is told if the run goes on from it.
        folder, _ = find_checkpoint(self._checkpoints)
        if folder is not None and int(folder.name) == update:
            self._restore_logs(folder / RUN)
        return folder is None or int(folder.name) >= update

    def _rewind(self) -> tuple[int, Path | None]:
        folder = latest_checkpoint(self._checkpoints)
        if folder is None and self.final.exists():
            raise InputError(f"{self.final} is there, but {self._checkpoints}, needed to go on, is not.")
        self._restore_logs(None if folder is None else folder / RUN)
        if folder is None:
            return -1, None
        # A kill right after a save may have left what the save would have removed.
        prune_checkpoints(self._checkpoints, int(folder.name))
        return int(folder.name), folder

    def _restore_logs(self, kept: Path | None) -> None:
        for lines in self._logs:
            restore_log(lines.path, kept)


def _mark_phase(folder: Path, order: int) -> None:
    remove_leftovers(folder)
    remove_leftovers(folder / STORED)
    folder.mkdir(parents=True, exist_ok=True)
    # It follows from the program, so that whatever became of the old one, this is what it says.
    write_json(folder / PHASE, {"order": order})
