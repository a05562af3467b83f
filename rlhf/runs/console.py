"""What people see while a run goes on: never a reason for it to fail or to stop."""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from rich.console import Console


class Lenient:
    """A text stream that takes every text: what its encoding lacks is escaped, and what it cannot take is dropped.

    A pipe that nobody reads (`| head -1`), a full disk and a closed descriptor cost the text, not the run.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        with self._unfailing():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._unfailing():
            self._stream.flush()

    @contextmanager
    def _unfailing(self) -> Iterator[None]:
        try:
            yield
        except ValueError:
            # It was closed.
            pass
        except OSError:
            # What is still buffered would fail again when Python ends, and change the exit status.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lenient_streams() -> Iterator[None]:
    """Within, nothing that is printed can fail, whoever prints it; what a warning tells of names steers no terminal."""
    # Python has no stream where the shell closed the descriptor (`>&-`).
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        output, errors = Lenient(sys.stdout or nowhere), Lenient(sys.stderr or nowhere)
        with redirect_stdout(output), redirect_stderr(errors), _visible_warnings():
            try:
                yield
            finally:
                output.flush()
                errors.flush()


@contextmanager
def _visible_warnings() -> Iterator[None]:
    formatted = warnings.formatwarning

    def shown(*about: Any, **more: Any) -> str:
        return visible(formatted(*about, **more))

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = formatted


def plain_console() -> Console:
    """A console that takes names and texts as they are, `[bold]` and `:smile:` too."""
    return Console(file=Lenient(sys.stdout) if sys.stdout else None, markup=False, emoji=False, highlight=False)  # type: ignore[arg-type]


def say(text: str) -> None:
    """Tells the user something in a line; of several processes, all but the first say which they are."""
    rank = os.environ.get("RANK", "0")
    text = visible(text if rank == "0" else f"[rank {rank}] {text}")
    plain_console().print(text, soft_wrap=True)


def visible(text: str) -> str:
    """A text without what would steer the terminal: control characters are shown as escapes."""
    return "".join(char.encode("unicode_escape").decode("ascii") if _steers(char) else char for char in text)


def _steers(char: str) -> bool:
    return char not in "\n\t" and unicodedata.category(char) in ("Cc", "Cf", "Cs")
