"""What was asked before, on disk, so that a resumed run asks nothing twice."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rlhf.errors import DiskError


def cache_folder() -> Path:
    """Where answers are kept unless another place is given."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "rlhf" / "asked"


class Asked:
    """Answers by what they answer, in one file, which several processes may share.

    Args:
        path: Of the file; it is made, with its folder, when there is something to keep.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def known(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of the keys that have an answer, with it."""
        if not self.path.exists():
            return {}
        with closing(self._opened()) as file:
            found = {}
            for key in dict.fromkeys(keys):
                row = file.execute("SELECT answer FROM asked WHERE question = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = json.loads(row[0])
            return found

    def keep(self, answers: Mapping[str, Any]) -> None:
        """Writes answers; all of them or none."""
        if not answers:
            return
        rows = [(key, json.dumps(answer)) for key, answer in answers.items()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"answers cannot be kept in {self.path}: {error.strerror}.") from error
        with closing(self._opened()) as file, file:
            file.executemany("INSERT OR REPLACE INTO asked VALUES (?, ?)", rows)

    def _opened(self) -> sqlite3.Connection:
        try:
            file = sqlite3.connect(self.path, timeout=60.0)
            file.execute("CREATE TABLE IF NOT EXISTS asked (question TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise DiskError(
                f"the answers kept in {self.path} cannot be read ({error}); remove the file, and they are asked for "
                "again."
            ) from error
        return file


def key_of(*parts: Any) -> str:
    """The same for the same parts, whatever the process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()
