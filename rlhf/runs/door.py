"""The door through which a folder becomes a run or goes on being one; nothing is changed before it is passed."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rlhf.errors import InputError
from rlhf.runs.checkpoint import TEMPORARY, write_json
from rlhf.runs.console import say
from rlhf.runs.disk import named, reason, room
from rlhf.runs.kept import CONFIG, PHASE, VERSIONS, newest_copies, recorded
from rlhf.runs.lock import HOLDER, LOCK, FolderLock
from rlhf.runs.tracking import WRITTEN

PACKAGES = ("rlhf", "torch", "transformers", "accelerate", "datasets", "peft", "gymnasium", "safetensors", "numpy")
# Where a run is kept, whether it goes on and who else gets its metrics say nothing about what it computes.
NOT_COMPARED = ("resume", "accept_changes", "output_dir", "tensorboard")
# What config.json holds beside the configuration: checksums, and changes of them that were accepted on resume.
INPUTS, ACCEPTED = "inputs", "accepted_changes"


def enter(
    folder: Path,
    config: dict[str, Any],
    *,
    resume: bool,
    extendable: Collection[str],
    accelerator: Accelerator,
    inputs: Mapping[str, str],
    any_processes: bool,
    accept_changes: bool,
) -> FolderLock:
    """Makes `folder` a run with this configuration, these inputs and the versions at hand, or lets it go on; it is held
    from here on.

    Args:
        inputs: Checksums, by name, of all that the run is made from beside its configuration.
        any_processes: Go on with another number of processes than before.
        accept_changes: Go on with other inputs than before, which is recorded.

    Raises:
        InputError: The folder is in use, holds another run, or none to resume; or the disk refuses.
    """
    if accept_changes and not resume:
        raise InputError("--accept-changes is for runs that go on; give --resume too, or leave it out.")
    require_folder(folder)
    with ExitStack() as refused, _writable(folder):
        # Whoever is at work in the folder is named before anything in it is looked at, which changes nothing.
        lock = FolderLock(folder) if (folder / LOCK).exists() else None
        if lock is not None:
            refused.callback(lock.undo)
        _require_new_or_resumed(folder, resume=resume)
        versions = _versions(accelerator)
        if resume:
            config = _same_run(folder, config, extendable, inputs, accept=accept_changes)
            _compare_versions(folder, versions, any_processes=any_processes)
        make_folder(folder)
        if lock is None:
            lock = FolderLock(folder)
            refused.callback(lock.undo)
            # Another process may have come first since.
            _require_new_or_resumed(folder, resume=resume)
        if not resume:
            refused.callback(withdraw, folder)
        lock.say_who()
        # The configuration last: a folder that has one is a run.
        write_json(folder / VERSIONS, versions)
        write_json(folder / CONFIG, config | ({INPUTS: dict(inputs)} if inputs else {}))
        refused.pop_all()
    return lock


def require_new_or_resumed(folder: Path, *, resume: bool) -> None:
    """Refuses a folder in which no run can start, or go on; also for recipes, before they load a model.

    Raises:
        InputError: The folder is in use, holds another run, or none to resume.
    """
    require_folder(folder)
    # Of several processes the first alone tries the lock, or they would find each other.
    if os.environ.get("RANK", "0") == "0" and (folder / LOCK).exists():
        with _writable(folder):
            FolderLock(folder).undo()
    _require_new_or_resumed(folder, resume=resume)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--output-dir {folder} cannot be written to: {named(error) or folder}: {reason(error) or error}; "
            f"{room(folder)}. Mend that, or name another."
        ) from None


def withdraw(folder: Path) -> None:
    """Makes a run that has only passed the door no run again; leaves alone whatever else is there, and what it must."""
    own = {CONFIG, VERSIONS, PHASE, LOCK, HOLDER}
    names = [*own, *(TEMPORARY + name for name in own), *WRITTEN]
    with suppress(OSError):
        there = [path for path in folder.rglob("*") if path.is_file()]
        if all(any(path.match(name) for name in names) for path in there):
            for path in there:
                path.unlink()
            for path in [*sorted(folder.rglob("*"), reverse=True), folder]:
                path.rmdir()


def _require_new_or_resumed(folder: Path, *, resume: bool) -> None:
    # What a run that was killed on its way through this door may have left does not count.
    harmless = (TEMPORARY + VERSIONS, TEMPORARY + CONFIG, VERSIONS, LOCK, HOLDER)
    there = folder.is_dir() and any(path.name not in harmless for path in folder.iterdir())
    started = (folder / CONFIG).exists() or newest_copies(folder) is not None
    if resume and not started:
        raise InputError(f"there is no run in {folder} to resume; leave out --resume to start one.")
    if there and not resume:
        what = (
            "already holds another run; --resume, if offered, continues it,"
            if started
            else "is not empty and holds no run;"
        )
        raise InputError(f"{folder} {what} another --output-dir starts anew.")


def require_folder(folder: Path) -> None:
    """Refuses a file in its place."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output-dir {folder} is a file; name a folder.")


def make_folder(folder: Path) -> None:
    """With its parents; it may be there."""
    require_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output-dir {folder} cannot be made: {error.strerror}; name another.") from None


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration as JSON values."""
    return {name: _plain(value) for name, value in dataclasses.asdict(config).items()}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name; a list is a leaf, shown as JSON."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            leaves |= flatten(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list | dict) else value
    return leaves


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _same_run(
    folder: Path, config: dict[str, Any], extendable: Collection[str], inputs: Mapping[str, str], *, accept: bool
) -> dict[str, Any]:
    """The configuration, with what was accepted of changed inputs; refuses any other change."""
    old = dict(recorded(folder, CONFIG))
    accepted, before = old.pop(ACCEPTED, []), old.pop(INPUTS, {})
    _compare(folder, old, config, extendable)
    accepted = accepted + _changed_inputs(folder, before, inputs, accept=accept)
    return config | ({ACCEPTED: accepted} if accepted else {})


def _compare(folder: Path, before: dict[str, Any], config: dict[str, Any], extendable: Collection[str]) -> None:
    old, new = flatten(before), flatten(config)
    changes = []
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = old.get(name, "(absent)"), new.get(name, "(absent)")
        if was == now or name.split(".")[0] in NOT_COMPARED:
            continue
        if name not in extendable:
            changes.append(f"  {name}: {was} -> {now}")
        elif not (isinstance(was, int | float) and isinstance(now, int | float) and now > was):
            changes.append(f"  {name}: {was} -> {now} (it may only grow)")
    if changes:
        raise InputError(
            f"{folder} was started with another configuration:\n" + "\n".join(changes) + "\n"
            "Resume with the old values, or start anew with another --output-dir."
        )


def _changed_inputs(
    folder: Path, before: Mapping[str, str], now: Mapping[str, str], *, accept: bool
) -> list[dict[str, str]]:
    """What is no longer what the run was started from, to be recorded; refused unless it is accepted."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    changed = [
        {"input": name, "before": before.get(name, "(absent)"), "after": now.get(name, "(absent)"), "accepted": when}
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    ]
    if changed and not accept:
        listed = [f"  {each['input']}: {each['before']:.12} -> {each['after']:.12}" for each in changed]
        raise InputError(
            f"{folder} was started from other files, data or code:\n" + "\n".join(listed) + "\n"
            "Put them back; or go on with --accept-changes (accept_changes=True), which config.json then records; or "
            "start anew with another --output-dir."
        )
    return changed


def _versions(accelerator: Accelerator) -> dict[str, str | int]:
    """Everything outside the configuration on which the last bits of a number depend."""
    cuda = accelerator.device.type == "cuda"
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(accelerator.device) if cuda else accelerator.device.type,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


def _compare_versions(folder: Path, versions: dict[str, str | int], *, any_processes: bool) -> None:
    """Tells of what is new; refuses another number of processes, unless none has a part of the checkpoint that is its
    own."""
    old = recorded(folder, VERSIONS)
    was, now = old.get("processes"), versions["processes"]
    if not any_processes and was not in (None, now) and newest_copies(folder) is not None:
        raise InputError(
            f"{folder} was saved by {was} processes and this run has {now}; resume it with as many as before."
        )
    changes = [f"{name} {old.get(name)} -> {now}" for name, now in versions.items() if old.get(name) != now]
    if changes:
        say(
            f"{folder} goes on with {', '.join(changes)}; its numbers will not be bitwise those of a run that "
            "was never interrupted."
        )
