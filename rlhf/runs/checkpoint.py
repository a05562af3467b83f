"""Folders that are either whole or absent, with a manifest that shows damage; checkpoints are such folders."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.runs.state import save_state

MANIFEST = "manifest.json"
# Whatever is being written carries this prefix until it is whole; leftovers of a kill are recognised by it.
TEMPORARY = ".tmp-"

Writer = Callable[[Path], object]


class Damaged(Exception):
    """A committed folder no longer holds what was written; the message names the file and what is wrong."""


def save_checkpoint(root: Path, update: int, state: Any, writers: Mapping[str, Writer], *, keep: int = 2) -> Path:
    """Commits `root/<update>`: the state (`state.save_state`), one subfolder a writer, filled by it; then prunes."""

    def write(folder: Path) -> None:
        save_state(folder, state)
        write_each(folder, writers)

    folder = commit_folder(root / f"{update:08d}", write)
    prune_checkpoints(root, update, keep=keep)
    return folder


def prune_checkpoints(root: Path, update: int, *, keep: int = 2) -> None:
    """Leaves the `keep` newest up to this update. Any of a later one goes: it belongs to a past that was taken back."""
    kept = [path for path in _checkpoints(root) if int(path.name) <= update][-keep:]
    for path in _checkpoints(root):
        if path not in kept:
            _remove(path)


def latest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint whose every byte is as written; None if none was ever committed.

    Damaged ones are passed over with a warning that says what is wrong; leftovers of a kill are removed.

    Raises:
        InputError: There are checkpoints, and all are damaged.
    """
    remove_leftovers(root)
    reports: list[str] = []
    for folder in reversed(_checkpoints(root)):
        try:
            verify_folder(folder)
        except Damaged as damage:
            reports.append(str(damage))
            continue
        if reports:
            warnings.warn(f"{' '.join(reports)} Using the older {folder}.", stacklevel=2)
        return folder
    if reports:
        raise InputError(f"no good checkpoint is left. {' '.join(reports)} Start anew with another --output-dir.")
    return None


def commit_folder(folder: Path, write: Writer) -> Path:
    """Fills a folder so that a kill at any moment leaves all of it or nothing; replaces what stood there.

    If it replaces, a kill between two renames leaves neither the old nor the new one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not mkdtemp, whose folders are private: what is committed is as readable as any other.
    temporary = folder.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        write(temporary)
        (temporary / MANIFEST).write_text(_canonical(_contents(temporary)), encoding="utf-8")
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


def verify_folder(folder: Path) -> None:
    """Compares every byte with the manifest.

    Raises:
        Damaged: A file is missing, has another size or other content. Files added later are no damage.
    """
    for name, (size, digest) in _read_manifest(folder).items():
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
    temporary = path.with_name(TEMPORARY + path.name)
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def _checkpoints(root: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))


def _contents(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, _sha256(path)) for path in files}


def _canonical(contents: Mapping[str, tuple[int, str]]) -> str:
    files = {name: {"size": size, "sha256": digest} for name, (size, digest) in contents.items()}
    return json.dumps({"files": files}, indent=1) + "\n"


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
