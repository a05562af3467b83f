"""What the attacks share: recipes that run in a moment, forked so that they need not import anything, and a comparison
of what two runs left behind.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import runpy
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.recipes.small import REWARDS, save_model

RECIPES = Path(__file__).parents[2] / "recipes"
OF_THE_CLOCK = ("seconds", "steps_per_second", "env_steps_per_second", "memory")
# A run that takes longer than this hangs.
SECONDS = 120.0

CARTPOLE = (
    *("--steps", "640", "--collect.num-envs", "4", "--collect.steps", "16"),
    *("--collect.normalise-rewards", "--policy.normalise-observations"),
    *("--eval-every-steps", "192", "--checkpoint-every-steps", "64"),
    *("--evaluate.episodes", "4", "--evaluate.sampled-episodes", "2", "--optimize.epochs", "3"),
)
LM = (
    *("--reward", f"{REWARDS}:count_a", "--max-new-tokens", "6", "--held-out", "4"),
    *("--improve.train.updates", "6", "--improve.train.eval-every", "2", "--improve.train.checkpoint-every", "1"),
    *("--improve.collect.prompts-per-rollout", "4", "--improve.collect.responses-per-prompt", "2"),
    *("--improve.optimize.learning-rate", "1e-3", "--improve.collect.normalise-scores"),
    *("--improve.method.kl-coef", "0.1", "--improve.method.kl-target", "0.01"),
)
SAC = (
    *("--method", "discrete_sac", "--steps", "1024", "--collect.steps", "64", "--eval-every-steps", "512"),
    *("--checkpoint-every-steps", "128", "--evaluate.episodes", "2", "--evaluate.sampled-episodes", "1"),
)
ARITHMETIC = (
    *("--held-out", "10", "--clone.rows-per-update", "8", "--clone.train.updates", "3"),
    *("--clone.train.checkpoint-every", "1", "--improve.train.updates", "4", "--improve.train.eval-every", "2"),
    *("--improve.train.checkpoint-every", "1", "--improve.collect.prompts-per-rollout", "32"),
)


@dataclass(frozen=True)
class Job:
    """A recipe with settings that make it short."""

    recipe: str
    arguments: tuple[str, ...]

    def with_options(self, *more: str) -> Job:
        """Of an option that stands twice, the last counts."""
        return Job(self.recipe, (*self.arguments, *more))


@dataclass
class Attempt:
    """How one start of a job ended."""

    status: int | None
    """The exit status, negative for a signal; None: it hung and was killed."""
    log: str
    """All that it printed."""
    seconds: float = 0.0

    @property
    def traceback(self) -> bool:
        return "Traceback" in self.log

    @property
    def last(self) -> str:
        """The last line that says something."""
        lines = [line for line in self.log.splitlines() if line.strip()]
        return lines[-1] if lines else ""


@dataclass
class Tally:
    """What came of many tries, for docs/reliability.md."""

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: str, *, good: bool, what: object = "") -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if not good:
            self.failures.append(f"{outcome}: {what}")

    def require_all_good(self) -> None:
        """Prints the row of the table; raises if a try did not end as it should."""
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items()))
        print(f"\n| {self.name} | {sum(self.counts.values())} | {told} |", flush=True)
        assert not self.failures, "\n".join([f"{len(self.failures)} did not end as they should:", *self.failures[:20]])


@cache
def preload() -> None:
    """Imports everything that a recipe imports and computes nothing, so that the attempts can be forked."""
    import gymnasium.envs.classic_control.cartpole  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch
    import transformers.models.gpt2.modeling_gpt2
    import transformers.models.llama.modeling_llama  # noqa: F401

    import recipes.arithmetic
    import recipes.cartpole
    import recipes.custom_reward
    import recipes.imitation  # noqa: F401
    from rlhf.deferred import settle

    settle()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def jobs(folder: Path) -> dict[str, Job]:
    """The recipes that are attacked; the model is written to `folder`."""
    model = folder / "model"
    if not model.exists():
        save_model(model)
    lm = Job("custom_reward.py", ("--model", str(model), *LM))
    cartpole = Job("cartpole.py", CARTPOLE)
    return {
        "cartpole": cartpole,
        "short cartpole": cartpole.with_options("--steps", "256"),
        "sac": Job("cartpole.py", SAC),
        "lm": lm,
        "short lm": lm.with_options("--improve.train.updates", "3"),
        "lora": lm.with_options("--lora", "--critic", "separate"),
        "arithmetic": Job("arithmetic.py", ARITHMETIC),
    }


def start(
    job: Job,
    folder: Path,
    *,
    resume: bool | None = None,
    report: bool = False,
    before: Callable[[], None] | None = None,
) -> int:
    """Forks an attempt that writes to `folder/run` and `folder/log`; returns its process id.

    Args:
        resume: None: if there is a configuration.
        report: Draw the report, which takes longer than all the rest.
        before: Called in the attempt before the recipe.
    """
    preload()
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        if resume is None:
            resume = Path("run", "config.json").exists()
        sys.argv = [job.recipe, *job.arguments, "--output-dir", "run", *(["--resume"] if resume else [])]
        _redirect()
        # The tests' own makes errors of them.
        warnings.showwarning = _shown
        if not report:
            from rlhf.runs import summary

            summary.write_report = lambda folder: None  # type: ignore[assignment]
        if before is not None:
            before()
        runpy.run_path(str(RECIPES / job.recipe), run_name="__main__")
        status = 98
    except SystemExit as done:
        status = int(done.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _redirect() -> None:
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # pytest has put its own in their place.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115


def _shown(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    print(warnings.formatwarning(message, category, filename, lineno), file=sys.stderr, flush=True)


def ended(pid: int, folder: Path, *, seconds: float = SECONDS) -> Attempt:
    """Waits for an attempt, and kills it if it hangs."""
    begin = time.monotonic()
    status = wait(pid, seconds)
    if status is None:
        kill(pid)
        wait(pid, SECONDS)
    log = folder / "log"
    text = log.read_text(errors="replace") if log.exists() else ""
    return Attempt(status, text, time.monotonic() - begin)


def attempt(job: Job, folder: Path, *, seconds: float = SECONDS, **options: Any) -> Attempt:
    """Starts a job and waits for its end; what earlier attempts in this folder printed is left out."""
    (folder / "log").unlink(missing_ok=True)
    return ended(start(job, folder, **options), folder, seconds=seconds)


def wait(pid: int, seconds: float, *, poll: float = 0.001) -> int | None:
    """The exit status, negative for a signal; None if it still runs after so long."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(poll)


def wait_for(place: Path, pid: int) -> None:
    """Until the attempt has made this file; it is killed if it ends without, or takes too long."""
    end = time.monotonic() + SECONDS
    while not place.exists():
        if wait(pid, 0.001) is not None or time.monotonic() > end:
            kill(pid)
            raise AssertionError(f"the attempt did not come to {place.name}")


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def differences(one: Path, other: Path) -> list[str]:
    """Names of the files that two runs left differently, but for what the clock says and the report shows."""
    a, b = _contents(one), _contents(other)
    return [name for name in sorted({*a, *b}) if a.get(name, "absent") != b.get(name, "absent")]


def _contents(run: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_file() and name != "report.html" and "curves/" not in name:
            found[name] = _normal(path)
    return found


def _normal(path: Path) -> Any:
    """A file without what the clock says, and without whether the run was resumed; its hash if it cannot be read."""
    content = path.read_bytes()
    try:
        if path.name == "metrics.jsonl":
            return [_timeless(json.loads(line)) for line in content.decode().splitlines()]
        if path.name == "result.json":
            return _timeless(json.loads(content))
        if path.name == "config.json" and path.parent.name == "run":
            return {name: value for name, value in json.loads(content).items() if name not in ("resume", "output_dir")}
        if path.name in OF_THE_METRICS:
            return "says where the metrics stand, whose length is of the clock"
        if path.name == "manifest.json" and "checkpoints" in path.parts:
            return {name: file for name, file in json.loads(content)["files"].items() if not name.startswith("run/")}
    except (ValueError, AttributeError, TypeError, KeyError):
        pass
    return hashlib.sha256(content).hexdigest()


# Of a checkpoint, about the metrics before it.
OF_THE_METRICS = ("offsets.json",)


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(OF_THE_CLOCK)}


def litter(run: Path) -> list[str]:
    """What is half written."""
    return [str(path.relative_to(run)) for path in run.rglob(".tmp-*")]


def good_checkpoints(run: Path) -> list[str]:
    """By a reading of the manifest of our own."""
    good = []
    for folder in sorted(run.glob("*/checkpoints/[0-9]*")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            files = json.loads((folder / "manifest.json").read_text())["files"]
            if all(hashlib.sha256((folder / n).read_bytes()).hexdigest() == f["sha256"] for n, f in files.items()):
                good.append(folder.name)
    return good


def lines_said(log: str, words: Sequence[str]) -> list[str]:
    return [line for line in log.splitlines() if any(word in line for word in words)]
