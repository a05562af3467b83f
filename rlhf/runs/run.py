"""What a run leaves behind: a folder with its configuration and, for each phase, logs, checkpoints, a final model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from rlhf.errors import InputError
from rlhf.parallel import require_accelerator
from rlhf.runs.checkpoint import (
    Damaged,
    Writer,
    commit_folder,
    latest_checkpoint,
    prune_checkpoints,
    remove_leftovers,
    save_checkpoint,
    verify_folder,
    write_each,
    write_json,
)
from rlhf.runs.door import enter, flatten, plain_config
from rlhf.runs.log import Display, Lines, check_row, read_lines
from rlhf.runs.processes import require_processes, require_shared
from rlhf.runs.state import load_state

# What a checkpoint says about the run, beside the subfolders of its writers.
RUN = "run"
OFFSETS = "offsets.json"
# What `Phase.once` keeps.
STORED = "stored"

T = TypeVar("T")


class Restored(NamedTuple):
    """A checkpoint: the state that was saved, and the folder in which each writer's subfolder lies."""

    update: int
    state: Any
    folders: Path


class Run:
    """A folder with one configuration, the versions it ran with, a subfolder a phase, and the result.

    Args:
        resume: Continue what is in the folder. A folder with a configuration but no checkpoint starts again.
        extendable: Fields, dotted, that may be larger on resume than they were.

    Raises:
        InputError: The folder holds another run, or none to resume; nothing has been changed.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Any,
        *,
        resume: bool,
        accelerator: Accelerator,
        extendable: Collection[str] = (),
    ) -> None:
        require_accelerator(accelerator)
        self.folder = Path(folder)
        self.accelerator = accelerator
        require_processes(accelerator)
        require_shared(self.folder, accelerator)
        plain = plain_config(config)
        on_main(
            accelerator,
            lambda: enter(self.folder, plain, resume=resume, extendable=extendable, accelerator=accelerator),
        )
        self._num_phases = 0
        if accelerator.log_with:
            accelerator.init_trackers(self.folder.name, config=flatten(plain))

    def phase(self, name: str) -> Phase:
        """A part of the run, in a subfolder; parts must be asked for in the order in which they happen."""
        self._num_phases += 1
        return Phase(self, name, order=self._num_phases)

    def write_result(self, result: Mapping[str, float | str | None]) -> None:
        """The headline of the run, as flat JSON."""
        on_main(self.accelerator, lambda: write_json(self.folder / "result.json", dict(result)))


class Phase:
    """Metrics, samples, checkpoints and the final model of one part of a run.

    Every rank calls every method; only the main process writes, and errors of its writing reach all ranks.
    """

    def __init__(self, run: Run, name: str, *, order: int) -> None:
        self.folder = run.folder / name
        self.final = self.folder / "final"
        self._run = run
        self.accelerator = run.accelerator
        self._checkpoints = self.folder / "checkpoints"
        self._metrics = Lines(self.folder / "metrics.jsonl")
        self._samples = Lines(self.folder / "samples.jsonl")
        self._lines = (self._metrics, self._samples)
        self._display = Display(name)
        self._last_update = -1
        self._target, self._unit = 0, "updates"
        on_main(self.accelerator, lambda: _mark_phase(self.folder, order))

    @property
    def final_policy(self) -> Path:
        return self.final / "policy"

    def finished(self, target: int, unit: str = "updates") -> bool:
        """Whether the phase reached `target` updates or steps; False if it reached fewer: it can be extended."""
        self._target, self._unit = target, unit
        return on_main(self.accelerator, lambda: self._finished(target))

    def load_final(self, load: Callable[[Path], None]) -> None:
        """Has the final policy of a finished phase read."""
        load(self.final_policy)

    def restore(self) -> Restored | None:
        """The newest good checkpoint; metrics and samples logged after it are forgotten. None to start at 0."""
        update, folder = on_main(self.accelerator, self._rewind)
        self._last_update = update
        return None if folder is None else Restored(update, load_state(folder), folder)

    def save(self, update: int, state: Any, writers: Mapping[str, Writer]) -> None:
        """Commits a checkpoint: the state, one subfolder a writer, the configuration and the versions."""

        def write_run(folder: Path) -> None:
            for name in ("config.json", "versions.json"):
                (folder / name).write_bytes((self._run.folder / name).read_bytes())
            write_json(folder / OFFSETS, {lines.path.name: lines.offset() for lines in self._lines})

        def write() -> None:
            save_checkpoint(self._checkpoints, update, state, {**writers, RUN: write_run})

        on_main(self.accelerator, write)

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
            self._metrics.append([row])
            self._display.show(row, self._target, self._unit)
        if self.accelerator.log_with:
            self.accelerator.log({f"{self.folder.name}/{name}": value for name, value in row.items()}, step=update)

    def say(self, text: str) -> None:
        """Tells the user something in words, on the console of the main process."""
        if self.accelerator.is_main_process:
            self._display.say(text)

    def record(self, samples: Collection[Mapping[str, Any]]) -> None:
        """Writes records for people to read, those of the main process only."""
        if self.accelerator.is_main_process and samples:
            self._samples.append(samples)

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far, a row an update; the same on every rank."""
        return on_main(self.accelerator, lambda: read_lines(self.folder / "metrics.jsonl"))

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

        on_main(self.accelerator, store)
        return folder

    def finish(self, target: int, writers: Mapping[str, Writer]) -> None:
        """Commits the final folder, one subfolder a writer, and with it that `target` was reached."""

        def write(folder: Path) -> None:
            write_json(folder / "finished.json", {self._unit: target})
            write_each(folder, writers)

        on_main(self.accelerator, lambda: commit_folder(self.final, write))
        self._display.close()

    def _finished(self, target: int) -> bool:
        if not self.final.exists():
            return False
        try:
            verify_folder(self.final)
        except Damaged as damage:
            warnings.warn(f"{damage} Writing it again from the last checkpoint.", stacklevel=2)
            return False
        reached = json.loads((self.final / "finished.json").read_text(encoding="utf-8"))[self._unit]
        if reached > target:
            raise InputError(f"{self.folder} was trained for {reached} {self._unit}; it cannot end at {target}.")
        return reached == target

    def _rewind(self) -> tuple[int, Path | None]:
        folder = latest_checkpoint(self._checkpoints)
        if folder is None and self.final.exists():
            raise InputError(f"{self.final} is there, but {self._checkpoints}, needed to go on, is not.")
        offsets = {} if folder is None else json.loads((folder / RUN / OFFSETS).read_text(encoding="utf-8"))
        for lines in self._lines:
            size, offset = lines.offset(), offsets.get(lines.path.name, 0)
            if size < offset:
                raise InputError(
                    f"{lines.path} has {size} bytes and had {offset} when {folder} was saved; "
                    "put the whole file back, or start anew with another --output-dir."
                )
        for lines in self._lines:
            lines.truncate(offsets.get(lines.path.name, 0))
        if folder is None:
            return -1, None
        # A kill right after a save may have left what the save would have removed.
        prune_checkpoints(self._checkpoints, int(folder.name))
        return int(folder.name), folder


class Unsaved:
    """A phase that keeps nothing but the metrics, in memory: for runs without a folder.

    Args:
        shown: On the console, as those of a phase with a folder are.
    """

    folder = None

    def __init__(self, name: str, accelerator: Accelerator, *, shown: bool = True) -> None:
        self.accelerator, self.shown = accelerator, shown
        self._rows: list[dict[str, float]] = []
        self._display = Display(name)
        self._target, self._unit = 0, "updates"

    def rows(self) -> list[dict[str, Any]]:
        return self._rows

    def finished(self, target: int, unit: str = "updates") -> bool:
        self._target, self._unit = target, unit
        return False

    def load_final(self, load: Callable[[Path], None]) -> None:
        raise AssertionError("what keeps nothing is never finished before it starts")

    def restore(self) -> Restored | None:
        return None

    def save(self, update: int, state: Any, writers: Mapping[str, Writer]) -> None:
        pass

    def log(self, row: Mapping[str, float]) -> None:
        check_row(row)
        self._rows.append(dict(row))
        if self.shown and self.accelerator.is_main_process:
            self._display.show(row, self._target, self._unit)

    def say(self, text: str) -> None:
        if self.shown and self.accelerator.is_main_process:
            self._display.say(text)

    def record(self, samples: Collection[Mapping[str, Any]]) -> None:
        pass

    def finish(self, target: int, writers: Mapping[str, Writer]) -> None:
        self._display.close()


def on_main(accelerator: Accelerator, act: Callable[[], T]) -> T:
    """What `act` returns on the main process, on every rank; its errors reach every rank too, so that none waits."""
    if accelerator.num_processes == 1:
        return act()
    outcome: list[Any] = [None, None, None]
    raised: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = act()
        except Exception as error:
            raised = error
            outcome[1:] = [isinstance(error, InputError), str(error)]
    broadcast_object_list(outcome)
    if raised is not None:
        raise raised
    result, is_input_error, message = outcome
    if message is not None:
        raise InputError(message) if is_input_error else RuntimeError(f"the main process failed: {message}")
    return result


def _mark_phase(folder: Path, order: int) -> None:
    remove_leftovers(folder)
    remove_leftovers(folder / STORED)
    if not (folder / "phase.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "phase.json", {"order": order})
