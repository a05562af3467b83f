"""Copies of a run's own files in every checkpoint, by which those in its folder are known, and mended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.runs.checkpoint import Damaged, replace_file, verify_folder
from rlhf.runs.console import say
from rlhf.runs.log import Lines

# The subfolder of a checkpoint that holds the copies.
RUN = "run"
# Of the run, and of the phase beside its logs.
CONFIG, VERSIONS, PHASE = "config.json", "versions.json", "phase.json"


def own_files(run_folder: Path, phase_folder: Path) -> dict[str, bytes]:
    """Those of the run and of the phase, by name; read once they are written, whatever becomes of them later."""
    paths = (run_folder / CONFIG, run_folder / VERSIONS, phase_folder / PHASE)
    return {path.name: path.read_bytes() for path in paths}


def keep(into: Path, own: Mapping[str, bytes], logs: Iterable[Lines]) -> None:
    """Writes the run's own files, and copies the logs as they are now.

    Raises:
        DiskError: A log is not what this process has written.
    """
    for name, content in own.items():
        (into / name).write_bytes(content)
    for lines in logs:
        lines.require_unchanged()
        if lines.path.exists():
            shutil.copyfile(lines.path, into / lines.path.name)
        else:
            (into / lines.path.name).touch()


def restore_log(path: Path, kept: Path | None) -> None:
    """Makes a log what it was when it was copied: later lines go, and what was lost or changed comes back, and is said.

    Args:
        kept: The copies; None empties the log.

    Raises:
        InputError: There is no copy of it.
    """
    if kept is not None and not (kept / path.name).exists():
        raise InputError(
            f"{kept} has no copy of {path.name}, since an older version of this package wrote it; go on with that "
            "version, or start anew with another --output-dir."
        )
    before = b"" if kept is None else (kept / path.name).read_bytes()
    now = path.read_bytes() if path.exists() else b""
    if not now.startswith(before):
        what = "was changed or cut" if now else "was lost"
        say(f"{path} {what} after it was saved; it is restored from {kept}.")
    # What a link leads to is not ours to write to.
    if now != before or path.is_symlink():
        replace_file(path, before)


def recorded(run_folder: Path, name: str) -> Any:
    """config.json or versions.json as the newest good checkpoint has it; without one, as the folder has it.

    If that in the folder is lost or damaged, it is said that the copy counts.

    Raises:
        InputError: It cannot be read, and there is no copy.
    """
    path, kept = run_folder / name, newest_copies(run_folder)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it holds something else")
    except (OSError, ValueError):
        if kept is None:
            raise InputError(
                f"{path} cannot be read and no checkpoint has a copy; put it back, or start anew with another "
                "--output-dir."
            ) from None
        what = "is damaged" if path.exists() else "was lost"
        say(f"{path} {what}; it is restored from {kept}.")
    return value if kept is None else json.loads((kept / name).read_text(encoding="utf-8"))


def newest_copies(run_folder: Path) -> Path | None:
    """Those in the newest good checkpoint of the last phase that has one."""
    found = []
    for copies in run_folder.glob(f"*/checkpoints/[0-9]*/{RUN}"):
        try:
            verify_folder(copies.parent, only=[f"{RUN}/{name}" for name in (CONFIG, VERSIONS, PHASE)])
        except Damaged:
            continue
        order = json.loads((copies / PHASE).read_text(encoding="utf-8"))["order"]
        found.append((order, int(copies.parent.name), copies))
    return max(found)[-1] if found else None
