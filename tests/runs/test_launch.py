from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rlhf.errors import DiskError, InputError, NonFiniteError, UserExit
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.runs.stop import Stopped


@dataclass(frozen=True, kw_only=True)
class Nested:
    """The inner part."""

    learning_rate: float = 1e-3
    """Step size at the start."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The outer part."""

    inner: Nested = Nested()
    updates: int = 3
    """Updates in all."""

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise InputError(f"updates is {self.updates}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class Sized:
    """Two sizes."""

    num_envs: int = 2
    """Environments."""
    optimize: Optimize = Optimize()


def outcome(monkeypatch, main, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["recipe.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        launch(main, Config)
    return ended.value.code


def test_launch_hands_over_the_parsed_config(monkeypatch):
    seen = []
    assert outcome(monkeypatch, seen.append, "--inner.learning-rate", "0.5", "--updates", "7") == 0
    assert seen == [Config(inner=Nested(learning_rate=0.5), updates=7)]


def raiser(error: BaseException):
    def main(config: Config) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("the folder is full."), 2, "error: the folder is full.\n"),
        (NonFiniteError("loss is nan."), 3, "training stopped: loss is nan. The last good checkpoint is kept.\n"),
        (DiskError("x: the disk is full."), 4, "error: x: the disk is full.\n"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM; --resume continues from here.\n"),
        (Stopped(signal.SIGINT), 130, "stopped by SIGINT; --resume continues from here.\n"),
        (KeyboardInterrupt(), 130, "interrupted; --resume continues from the last checkpoint.\n"),
    ],
)
def test_launch_turns_errors_into_one_line_and_a_status(monkeypatch, capsys, error, status, message):
    assert outcome(monkeypatch, raiser(error)) == status
    assert capsys.readouterr().err == message


def test_launch_lets_errors_of_user_code_through(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    with pytest.raises(ZeroDivisionError):
        launch(raiser(ZeroDivisionError()), Config)


def leaves_quietly(config: Config) -> None:
    sys.exit()


def runs_code_that_exits(config: Config) -> None:
    exec("exit(0)")


@pytest.mark.parametrize("main", [leaves_quietly, runs_code_that_exits])
def test_exit_in_user_code_is_an_error(monkeypatch, main):
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    with pytest.raises(UserExit, match=r"called exit\(.*which no run does"):
        launch(main, Config)


ENDING = """
import os, sys
from dataclasses import dataclass
from rlhf.runs.launch import launch

@dataclass(frozen=True, kw_only=True)
class Config:
    status: int

def main(config):
    if os.fork() == 0:
        os._exit(0)
    assert os.wait()[1] == 0
    os._exit(config.status)

launch(main, Config)
"""


@pytest.mark.parametrize(("given", "status"), [("0", 1), ("5", 5)])
def test_user_code_that_ends_the_process_never_ends_it_with_0(given, status):
    done = subprocess.run(
        [sys.executable, "-c", ENDING, "--status", given], stderr=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == status
    assert ("called os._exit(0), which no run does" in done.stderr) == (given == "0")


def test_launch_names_the_rank_that_failed(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    assert outcome(monkeypatch, raiser(InputError("bad row."))) == 2
    assert capsys.readouterr().err == "[rank 3] error: bad row.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inner.learning-rte", "1"], "--inner.learning-rate"),
        (["--updates", "many"], "many"),
        (["--updates", "0"], "updates is 0; it must be at least 1."),
    ],
)
def test_launch_explains_bad_options(monkeypatch, capsys, arguments, message):
    assert outcome(monkeypatch, raiser(AssertionError()), *arguments) == 2
    assert message in capsys.readouterr().err


def test_launch_complains_on_the_first_rank_only(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert outcome(monkeypatch, raiser(AssertionError()), "--nothing") == 2
    assert capsys.readouterr() == ("", "")


def test_help_shows_the_recipe_and_every_field(monkeypatch, capsys):
    assert outcome(monkeypatch, print, "--help") == 0
    shown = capsys.readouterr().out
    assert "Step size at the start." in shown
    assert "Updates in all." in shown


SCRIPT = '''
"""What this script is for."""
import time
from dataclasses import dataclass
from accelerate import Accelerator
from rlhf.runs.launch import launch
from rlhf.runs.stop import StopSignals

@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing."""

def main(config):
    with StopSignals(Accelerator(cpu=True)) as signals:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
            if signals.requested():
                signals.stop()

if __name__ == "__main__":
    launch(main, Config)
'''


LEAVING = """
import atexit, os, sys
import torch
from rlhf.runs.launch import leave

class TornDown:
    def __del__(self, end=os._exit):
        end(77)

kept = TornDown()
atexit.register(print, "at exit")
print("printed", end=" ")
if "alone" not in sys.argv:
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
leave(int(sys.argv[1]))
"""


@pytest.mark.parametrize("status", [0, 143])
def test_a_rank_ends_without_taking_its_python_down(tmp_path, status):
    """Threads of gloo abort a process whose Python is being taken down; `TornDown` tells whether it was."""

    def end(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-c", LEAVING, str(status), str(tmp_path / "store"), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60)
        return done.returncode, done.stdout

    assert end() == (status, "printed at exit\n")
    assert end("alone") == (77, "printed at exit\n")


WAITING = """
import time
from dataclasses import dataclass
from accelerate import Accelerator
from rlhf.runs.launch import launch
from rlhf.runs.stop import StopSignals
from rlhf.runs.waiting import Waiting

@dataclass(frozen=True, kw_only=True)
class Config:
    pass

class TornDown:
    def __del__(self):
        time.sleep(30)

kept = TornDown()

def main(config):
    with StopSignals(Accelerator(cpu=True)), Waiting():
        print("ready", flush=True)
        while True:
            try:
                time.sleep(30)
            except CAUGHT:
                pass

launch(main, Config)
"""


@pytest.mark.parametrize("caught", ["Exception", "BaseException"])
def test_sigterm_ends_a_process_that_waits_within_two_seconds(caught):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.replace("CAUGHT", caught)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    # On a machine that is not busy, 0.8 and 1.6.
    assert time.monotonic() - start < 2.5
    assert process.returncode == 143
    assert errors.splitlines()[-1].endswith("--resume continues from the last checkpoint.")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signalled_script_exits_with_the_status_of_its_signal(tmp_path, number, status):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "--resume continues" in errors
    assert "Traceback" not in errors


def allocate(config: Config) -> None:
    torch.empty(10**16)


def overflow(config: Config) -> None:
    torch.empty(2**40, 2**40)


def of_numpy(config: Config) -> None:
    np.zeros(2**62, np.float64)


@pytest.mark.parametrize(
    "main",
    [
        raiser(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")),
        raiser(MemoryError()),
        allocate,
        overflow,
        of_numpy,
    ],
    ids=["cuda", "python", "torch", "overflow", "numpy"],
)
def test_the_end_of_memory_is_one_line_that_names_what_to_lower(main, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipe.py"])
    with pytest.raises(SystemExit) as ended:
        launch(main, Sized)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    # Where it was asked for: in the very function above, whichever raised.
    assert line.startswith("error: memory ended in test_launch.py:")
    assert line.endswith("Lower what is held at once: --optimize.micro-batch-cost, --num-envs.")


def test_other_errors_keep_their_traceback(monkeypatch):
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        outcome(monkeypatch, raiser(RuntimeError("a shape is wrong")))
