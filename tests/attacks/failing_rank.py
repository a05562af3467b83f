"""Run under torchrun by test_ranks.py: a recipe in which one rank fails at a place, in a way, at an update.

torchrun tests/attacks/failing_rank.py PLACE KIND UPDATE RANK RECIPE OPTIONS...
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import rlhf.loop
from rlhf import acting
from rlhf.errors import InputError
from rlhf.lm.collect import PromptCollector
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.rewards import Rewards
from rlhf.runs.run import Phase

PLACES: dict[str, tuple[Any, str]] = {
    "collect": (PromptCollector, "collect"),
    "reward": (Rewards, "__call__"),
    "score": (acting, "completed"),
    "update": (rlhf.loop, "_collect_and_learn"),
    "evaluate": (ResponseEvaluator, "__call__"),
    "checkpoint": (Phase, "save"),
    "finish": (Phase, "finish"),
}


def strike(kind: str) -> None:
    Path("struck").write_text(str(time.time()))
    if kind == "exception":
        raise LookupError("rank fault injected")
    if kind == "input":
        raise InputError("rank fault injected")
    if kind == "sys.exit":
        sys.exit(0)
    if kind == "stall":
        time.sleep(60)
    numbers = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
    if kind in numbers:
        os.kill(os.getpid(), numbers[kind])


def striking(call: Callable[..., Any], kind: str, number: int) -> Callable[..., Any]:
    """Fails at its n-th call, counted from 0."""
    seen = 0

    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == number + 1:
            strike(kind)
        return call(*arguments, **keywords)

    return wrapped


def main() -> None:
    place, kind, update, rank, recipe = sys.argv[1:6]
    torch.set_num_threads(1)
    if os.environ["RANK"] == rank and place != "nowhere":
        owner, name = PLACES[place]
        setattr(owner, name, striking(getattr(owner, name), kind, int(update)))
    sys.argv = [recipe, *sys.argv[6:]]
    runpy.run_path(recipe, run_name="__main__")


if __name__ == "__main__":
    main()
