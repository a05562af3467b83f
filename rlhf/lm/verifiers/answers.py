"""Whether the final answer to a question of mathematics is right, as a reward."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.lm.rewards import checks_rows

SECONDS = 5.0
"""What is not known to be equal by then is not."""


def require_answer(answer: Any) -> None:
    """Refuses an answer that no response could be compared with."""
    if not _judged(_text(answer), None):
        raise InputError(
            f"answer is {answer!r:.60}; it must be a number or an expression, such as 0.5, 1/2 or \\frac{{1}}{{2}}."
        )


@checks_rows(require_answer)
def equal_answers(responses: list[str], answer: list[Any]) -> list[float]:
    """1 for a response whose final answer equals its row's, however it is written (1/2, 0.5, \\boxed{\\frac{1}{2}}), as
    math-verify finds and compares them; else 0.

    Args:
        answer: Numbers, or text, in LaTeX too.
    """
    return [float(_judged(_text(each), response)) for response, each in zip(responses, answer, strict=True)]


def _text(answer: Any) -> str:
    """LaTeX, as math-verify looks for it."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise InputError(f"answer is {answer!r:.60}; it must be a number or text.")
    text = str(answer).strip()
    return text if "$" in text or "\\boxed" in text or "\\(" in text or "\\[" in text else f"${text}$"


def _judged(answer: str, response: str | None) -> bool:
    """Whether they are equal; without a response, whether there is an answer in the text."""
    worker = _worker()
    worker.stdin.write(json.dumps([answer, response]) + "\n")
    worker.stdin.flush()
    said = worker.stdout.readline()
    if not said:
        # It took longer than it may, and ended itself.
        worker.wait()
        _worker.cache_clear()
    return said == "true\n"


@cache
def _worker() -> Any:
    """A process of its own: what takes for ever, or all memory, takes no more than that. It ends with this one."""
    if importlib.util.find_spec("math_verify") is None:
        raise InputError("math_verify is needed and not installed: pip install 'rlhf[math]'.")
    here = Path(__file__)
    paths = [str(here.parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    worker = subprocess.Popen(
        [sys.executable, "-m", f"rlhf.lm.verifiers.{here.stem}_worker", str(SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        # A Ctrl-C is this process's to answer.
        start_new_session=True,
        # Sympy's order of terms follows the hashes of its symbols.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"},
    )
    atexit.register(worker.kill)
    assert worker.stdout is not None
    if worker.stdout.readline() != "ready\n":
        raise InputError("math_verify cannot be imported; python -c 'import math_verify' says why.")
    return worker
