"""What a run leaves behind: a folder with its configuration and, for each phase, logs, checkpoints, a final model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from rlhf.parallel import require_accelerator
from rlhf.runs.checkpoint import Writer, as_json, replace_file
from rlhf.runs.clock import Clock
from rlhf.runs.disk import one_line
from rlhf.runs.door import enter, flatten, plain_config, withdraw
from rlhf.runs.lock import FolderLock
from rlhf.runs.log import Display, check_row
from rlhf.runs.phase import Phase, Restored
from rlhf.runs.processes import require_processes, require_shared
from rlhf.runs.ranks import on_main
from rlhf.runs.tracking import start_trackers


class Run:
    """A folder with one configuration, the versions it ran with, a subfolder a phase, and the result.

    It is this process's until `close`, or the end of the process: a second run in it is refused.

    Args:
        resume: Continue what is in the folder. A folder with a configuration but no checkpoint starts again.
        extendable: Fields, dotted, that may be larger on resume than they were.
        inputs: Gives checksums, by name, of all that the run is made from beside its configuration: on resume they must
            be the same. Called on the main process only.
        any_processes: Another number of processes may go on: what each of them keeps in a checkpoint is the same.
        accept_changes: Go on although they are not, which is recorded in config.json.

    Raises:
        InputError: The folder is in use, holds another run, or none to resume; nothing has been changed.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Any,
        *,
        resume: bool,
        accelerator: Accelerator,
        extendable: Collection[str] = (),
        inputs: Callable[[], Mapping[str, str]] = dict,
        any_processes: bool = False,
        accept_changes: bool = False,
    ) -> None:
        require_accelerator(accelerator)
        self.folder = Path(folder)
        self.accelerator = accelerator
        self._clock = Clock()
        require_processes(accelerator)
        require_shared(self.folder, accelerator)
        plain = plain_config(config)
        self._lock: FolderLock | None = None

        def pass_door() -> None:
            self._lock = enter(
                self.folder,
                plain,
                resume=resume,
                extendable=extendable,
                accelerator=accelerator,
                inputs=inputs(),
                any_processes=any_processes,
                accept_changes=accept_changes,
            )

        on_main(accelerator, pass_door)
        self._resumed, self._num_phases = resume, 0
        if accelerator.log_with:
            with one_line(self.folder):
                start_trackers(accelerator, self.folder.name, flatten(plain), resume=resume)

    def phase(self, name: str) -> Phase:
        """A part of the run, in a subfolder; parts must be asked for in the order in which they happen."""
        self._num_phases += 1
        return Phase(
            self.folder,
            name,
            order=self._num_phases,
            accelerator=self.accelerator,
            clock=self._clock,
            withdraw=self._withdraw,
        )

    def write_result(self, result: Mapping[str, float | str | None]) -> None:
        """The headline of the run, as flat JSON."""
        self.write_text("result.json", as_json(dict(result)))

    def write_text(self, name: str, text: str) -> None:
        """A file of the run, written or replaced in one piece."""

        def write() -> None:
            with one_line(self.folder):
                replace_file(self.folder / name, text.encode("utf-8", "replace"))

        on_main(self.accelerator, write)

    def close(self) -> None:
        """Lets another process have the folder."""
        if self._lock is not None:
            self._lock.release()

    def _withdraw(self) -> None:
        if not self._resumed:
            self.close()
            # They may have more to write.
            for tracker in self.accelerator.trackers:
                tracker.finish()
            withdraw(self.folder)


class Unsaved:
    """A phase that keeps nothing but the metrics, in memory: for runs without a folder.

    Args:
        shown: On the console, as those of a phase with a folder are.
    """

    folder = None

    def __init__(self, name: str, accelerator: Accelerator, *, shown: bool = True) -> None:
        self.accelerator, self.shown, self.clock = accelerator, shown, Clock()
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

    def require_space(self, checkpoint_size: int, final_size: int) -> None:
        pass

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

    def stopped(self, message: str) -> None:
        pass
