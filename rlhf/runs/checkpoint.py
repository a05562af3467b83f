"""Folders that are either whole or absent, with a manifest that shows damage; checkpoints are such folders."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rlhf.errors import InputError, NonFiniteError
from rlhf.runs.console import say
from rlhf.runs.state import save_state

MANIFEST = "manifest.json"
# Whatever is being written carries this prefix until it is whole; leftovers of a kill are recognised by it.
TEMPORARY = ".tmp-"
# How many checkpoints a phase keeps.
KEPT = 2
# A file beside a checkpoint from which a number was not finite before the next was written; it says which.
STOPPED = ".stopped-"

Writer = Callable[[Path], object]


class Damaged(Exception):
    """A committed folder no longer holds what was written; the message names the file and what is wrong."""


def save_checkpoint(root: Path, update: int, state: Any, writers: Mapping[str, Writer], *, keep: int = KEPT) -> Path:
    """Commits `root/<update>`: the state (`state.save_state`), one subfolder a writer, filled by it; then prunes."""

    def write(folder: Path) -> None:
        save_state(folder, state)
        write_each(folder, writers)

    folder = commit_folder(root / f"{update:08d}", write)
    _stop_note(folder).unlink(missing_ok=True)
    prune_checkpoints(root, update, keep=keep)
    return folder


def prune_checkpoints(root: Path, update: int, *, keep: int = KEPT) -> None:
    """Leaves the `keep` newest up to this update. Any of a later one goes: it belongs to a past that was taken back."""
    kept = [path for path in _checkpoints(root) if int(path.name) <= update][-keep:]
    for path in _checkpoints(root):
        if path not in kept:
            _remove(path)
    for note in root.glob(f"{STOPPED}*"):
        if not (root / note.name.removeprefix(STOPPED)).exists():
            note.unlink()


def note_stop(folder: Path, message: str) -> None:
    """Has the checkpoint passed over from now on, if there is an older one: a number was not finite after it, again."""
    _stop_note(folder).write_text(message, encoding="utf-8")


def latest_checkpoint(root: Path) -> Path | None:
    """As `find_checkpoint`, and tells the user what is wrong with those that it passes over."""
    folder, reports = find_checkpoint(root)
    if reports:
        say(f"{' '.join(reports)} Using the older {folder}.")
    return folder


def find_checkpoint(root: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every byte is as written, None if none was ever committed; and what is wrong with
    newer ones: they are damaged, or the run stopped again from them (`note_stop`). Leftovers of a kill are removed.

    Raises:
        InputError: There are checkpoints, and all are damaged.
    """
    remove_leftovers(root)
    reports: list[str] = []
    stopped: Path | None = None
    for folder in reversed(_checkpoints(root)):
        try:
            verify_folder(folder)
        except Damaged as damage:
            reports.append(str(damage))
            continue
        note = _stop_note(folder)
        if note.exists():
            stopped = stopped or folder
            reports.append(f"From {folder} the run stopped again: {note.read_text(encoding='utf-8')}")
            continue
        return folder, reports
    if stopped is not None:
        # What stopped it may have been mended since, and there is nothing older.
        return stopped, []
    if reports:
        raise InputError(f"no good checkpoint is left. {' '.join(reports)} Start anew with another --output-dir.")
    return None, []


def commit_folder(folder: Path, write: Writer) -> Path:
    """Fills a folder so that a kill at any moment leaves all of it or nothing; replaces what stood there.

    If it replaces, a kill between two renames leaves neither the old nor the new one.

    Raises:
        NonFiniteError: A tensor in it is not finite; what stood there stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not mkdtemp, whose folders are private: what is committed is as readable as any other.
    temporary = folder.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        write(temporary)
        _require_finite(temporary)
        (temporary / MANIFEST).write_bytes(_canonical(_contents(temporary)).encode())
        _as_readable_as(temporary / MANIFEST, temporary)
        _flush_tree(temporary)
        if os.path.lexists(folder):
            _remove(folder)
        temporary.rename(folder)
        _flush(folder.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def write_each(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Lets every writer fill a subfolder of its own."""
    for name, write in writers.items():
        (folder / name).mkdir()
        write(folder / name)


def verify_folder(folder: Path, *, only: Collection[str] | None = None) -> None:
    """Compares every byte with the manifest.

    Args:
        only: Names of the files to look at, which must be there; None is all.

    Raises:
        Damaged: A file is missing, has another size or other content. Files added later are no damage.
    """
    contents = _read_manifest(folder)
    for name in contents if only is None else only:
        size, digest = contents.get(name, (0, ""))
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{folder} is damaged: {name} is missing.")
        if path.stat().st_size != size:
            raise Damaged(f"{folder} is damaged: {name} has {path.stat().st_size} bytes instead of {size}.")
        if _sha256(path) != digest:
            raise Damaged(f"{folder} is damaged: the content of {name} is not what {MANIFEST} says (sha256 differs).")


def remove_leftovers(root: Path) -> None:
    """Removes what a kill left half written, or half removed."""
    for path in root.glob(f"{TEMPORARY}*"):
        _delete(path)


def write_json(path: Path, value: Any) -> None:
    """Writes or replaces a JSON file in one piece."""
    replace_file(path, as_json(value).encode())


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def replace_file(path: Path, content: bytes) -> None:
    """Writes or replaces a file in one piece."""
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        temporary.write_bytes(content)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _checkpoints(root: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _stop_note(folder: Path) -> Path:
    return folder.with_name(STOPPED + folder.name)


def _require_finite(folder: Path) -> None:
    """Looks at what was written, not at what it was written from: whoever writes, it is what would be loaded again."""
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                # Of types of one byte torch cannot ask this.
                tensor = tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor
                if not bool(torch.isfinite(tensor).all()):
                    where = path.relative_to(folder).as_posix()
                    raise NonFiniteError(f"{name} in {where} is not finite, so it is not saved.")


def _contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, _sha256(path)) for path in files}


def _canonical(contents: Mapping[str, tuple[int, str]]) -> str:
    files = {name: {"size": size, "sha256": digest} for name, (size, digest) in contents.items()}
    return json.dumps({"files": files}, indent=1) + "\n"


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    try:
        text = (folder / MANIFEST).read_bytes().decode()
        contents = {name: (file["size"], file["sha256"]) for name, file in json.loads(text)["files"].items()}
    except FileNotFoundError:
        raise Damaged(f"{folder} is damaged: {MANIFEST} is missing.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged(f"{folder} is damaged: {MANIFEST} cannot be read.") from None
    # The manifest vouches for the files; that there is one way to write it vouches for the manifest.
    if text != _canonical(contents):
        raise Damaged(f"{folder} is damaged: {MANIFEST} has changed.")
    return contents


def _remove(folder: Path) -> None:
    """Removes a committed folder; a kill on the way leaves a leftover, never a folder that looks committed."""
    doomed = folder.with_name(f"{TEMPORARY}removed-{folder.name}")
    if os.path.lexists(doomed):
        _delete(doomed)
    folder.rename(doomed)
    _delete(doomed)


def _delete(path: Path) -> None:
    """A link is removed, and what it leads to is not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_readable_as(one: Path, folder: Path) -> None:
    """Gives every file the mode of this one, which is what the umask says; safetensors makes its own private."""
    mode = one.stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _flush_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    """Forces a file's content, or a folder's list of names, onto the disk."""
    # Windows opens no folders, and flushes only what may be written.
    windows = not hasattr(os, "O_DIRECTORY")
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
