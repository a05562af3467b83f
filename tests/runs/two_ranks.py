"""Run by test_ranks.py under torchrun: every rank walks through a run, and each says what it saw."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf.errors import InputError
from rlhf.runs.launch import leave
from rlhf.runs.run import Run, on_main
from rlhf.runs.stop import StopSignals


@dataclass(frozen=True, kw_only=True)
class Config:
    updates: int = 2


def refused(act) -> str:
    """The type and the text of what `act` raises."""
    try:
        act()
    except (InputError, RuntimeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def fail(folder: Path) -> None:
    raise OSError("disk full")


def walk(folder: Path, accelerator: Accelerator) -> dict:
    run = Run(folder, Config(), resume=False, accelerator=accelerator)
    phase = run.phase("ppo")
    facts: dict = {"fresh": [phase.finished(2), phase.restore()]}
    for update in range(3):
        phase.log({"update": update})
        phase.record([{"update": update, "rank": accelerator.process_index}])
        if update < 2:
            phase.save(update, {"ranks": gather_object([accelerator.process_index])}, {})
    restored = phase.restore()
    facts["restored"] = [restored.update, restored.state]
    facts["door"] = refused(lambda: Run(folder, Config(), resume=False, accelerator=accelerator))
    facts["failed save"] = refused(lambda: phase.save(2, {}, {"policy": fail}))
    phase.finish(2, {})
    facts["finished"] = phase.finished(2)
    facts["on main"] = on_main(accelerator, lambda: accelerator.process_index)
    with StopSignals(accelerator) as signals:
        if accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        facts["stop"] = signals.requested()
    return facts


if __name__ == "__main__":
    output = Path(sys.argv[1])
    accelerator = Accelerator(cpu=True)
    facts = walk(output / "run", accelerator)
    (output / f"rank{accelerator.process_index}.json").write_text(json.dumps(facts))
    leave(0)
