"""What several processes need: before a run devices, and one folder that all of them see; and after it a good end."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from rlhf.errors import InputError
from rlhf.runs.ranks import have_patience

# So long may a network's file system take to show one machine what another wrote.
PATIENCE = 30.0


def require_processes(accelerator: Accelerator) -> None:
    """Refuses processes of a launcher that do not find each other: each would take itself for the whole run.

    Raises:
        InputError: The launcher started several, for GPUs that this machine does not have.
    """
    have_patience(accelerator)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched == accelerator.num_processes or "LOCAL_RANK" not in os.environ:
        return
    script = sys.argv[0] or "recipe.py"
    raise InputError(
        f"the launcher started {launched} processes, one GPU each, and {torch.cuda.device_count()} GPUs are here. "
        f"On CPUs run `ACCELERATE_USE_CPU=true torchrun --nproc_per_node {launched} {script} ...`, or `python "
        f"{script} ...` for one process."
    )


def require_shared(folder: Path, accelerator: Accelerator) -> None:
    """Refuses a folder that not every process sees: each reads there what the main process writes.

    Raises:
        InputError: On every process, with those that see nothing; nothing is left behind.
    """
    if accelerator.num_processes == 1:
        return
    # Nobody may still be asking whether the folder is empty.
    accelerator.wait_for_everyone()
    made = [] if not accelerator.is_main_process else _missing(folder)
    name = [f".tmp-seen-{secrets.token_hex(8)}"]
    broadcast_object_list(name)
    mark = folder / name[0]
    problem = None
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            problem = f"--output-dir {folder} cannot be written: {error.strerror}; name another."
    problems = [problem]
    broadcast_object_list(problems)
    try:
        if problems[0] is not None:
            raise InputError(problems[0])
        rank = f"process {accelerator.process_index} on {socket.gethostname()}"
        blind = gather_object([] if _appears(mark) else [rank])
    finally:
        if accelerator.is_main_process:
            # What could not be made is not there to be removed.
            for remove in (mark.unlink, *(each.rmdir for each in made)):
                with suppress(OSError):
                    remove()
    if blind:
        raise InputError(
            f"--output-dir {folder.absolute()} is not the same folder for all processes: {', '.join(blind)} cannot see "
            "what the main process writes there. Name one that all machines share."
        )


def end_in_order() -> None:
    """Has gloo end before Python is taken down: after that, a thread of it that frees something aborts the process.

    Until then it is there for a second run, and for the user's own; and it is left alone where an error ends the
    process, since it would wait for what other processes no longer do.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit.register(_end_gloo)


def end_at_once() -> None:
    """Takes that back, where a process ends while others may not."""
    atexit.unregister(_end_gloo)


def _end_gloo() -> None:
    failed = hasattr(sys, "last_value")
    if not failed and torch.distributed.is_initialized() and torch.distributed.get_backend() == "gloo":
        torch.distributed.destroy_process_group()


def _missing(folder: Path) -> list[Path]:
    """The folders that would have to be made for it, the deepest first."""
    return [each for each in (folder, *folder.parents) if not os.path.exists(each)]


def _appears(mark: Path) -> bool:
    end = time.monotonic() + PATIENCE
    while not mark.exists():
        if time.monotonic() > end:
            return False
        # Listing a folder has some file systems look again.
        if mark.parent.is_dir():
            os.listdir(mark.parent)
        time.sleep(0.05)
    return True
