"""Run by test_ending.py: runs of two processes of which one waits or fails in a reward, all of them side by side.

Imports take far longer than these runs, so their processes are forked from this one, which computes nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore

import rlhf
from rlhf.lm import prompts  # noqa: F401
from rlhf.runs import summary
from rlhf.runs.launch import launch
from tests.recipes.small import save_model


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    rank: int = -1
    """That does something in its reward after the first update."""
    does: str = ""
    """What."""
    resume: bool = False
    """The run."""


def reward_of(config: Config) -> Callable[..., list[float]]:
    def reward(completion_ids: list[list[int]]) -> list[float]:
        if int(os.environ["RANK"]) == config.rank and Path("run/grpo/checkpoints/00000001").exists():
            if config.does == "fails":
                raise LookupError("of the reward")
            Path("waits").touch()
            while True:
                try:
                    time.sleep(60)
                except BaseException:
                    if config.does == "waits":
                        raise
        return [float(sum(ids) % 7) for ids in completion_ids]

    return reward


def main(config: Config) -> None:
    task = rlhf.Prompts(
        [{"prompt": text} for text in ("a b", "b c", "c a", "a a", "b b", "c c")],
        reward_of(config),
        max_new_tokens=4,
        prompts_per_rollout=4,
        responses_per_prompt=2,
        held_out=2,
    )
    rlhf.train(
        rlhf.load_policy("../model"), task, rlhf.GRPO(), rlhf.Optimize(learning_rate=1e-3), updates=3, evaluations=0,
        checkpoints=3, out="run", resume=config.resume,
    )  # fmt: skip


def start(folder: Path, rank: int, port: int, arguments: list[str], *, agent: bool) -> int:
    """Forks a process of a run, as a launcher would start it; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(folder)
        log = os.open(f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"} if agent else {}
        # Drawing takes longer than all the rest.
        summary.write_report = lambda folder: None
        sys.argv = ["script.py", *arguments]
        launch(main, Config)
    except SystemExit as done:
        os._exit(int(done.code or 0))
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def end(pids: list[int], *, seconds: float) -> list[int | None]:
    """The exit statuses, negative for a signal; None for what still runs after so many seconds, and is killed."""
    limit, statuses = time.monotonic() + seconds, dict.fromkeys(pids)
    while None in statuses.values() and time.monotonic() < limit:
        for pid in [pid for pid, status in statuses.items() if status is None]:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for pid in [pid for pid, status in statuses.items() if status is None]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return list(statuses.values())


class Case:
    """Two processes, and what is done to them."""

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.plan = folder, plan
        folder.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        arguments = plan["arguments"]
        self.pids = [start(folder, rank, self.port, arguments, agent=plan["agent"]) for rank in (0, 1)]

    def facts(self) -> dict[str, Any]:
        if self.plan["signals"]:
            limit = time.monotonic() + 60
            while not (self.folder / "waits").exists() and time.monotonic() < limit:
                time.sleep(0.01)
            # Until the other one waits for it.
            time.sleep(0.3)
        begin = time.monotonic()
        for name in self.plan["signals"]:
            for rank in self.plan["to"]:
                os.kill(self.pids[rank], signal.Signals[name])
            time.sleep(0.2)
        statuses = end(self.pids, seconds=60)
        said = [(self.folder / f"rank{rank}.log").read_text() for rank in (0, 1)]
        return {"statuses": statuses, "seconds": time.monotonic() - begin, "said": said}


def main_of_all() -> None:
    folder, plans = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    save_model(folder / "model")
    cases = {name: Case(folder / name, plan) for name, plan in plans.items()}
    # Of the launcher, which outlives its processes; a thread of it must not be there when they are forked.
    stores = [
        TCPStore("127.0.0.1", case.port, None, True, wait_for_workers=False)
        for case in cases.values()
        if case.plan["agent"]
    ]
    facts = {name: case.facts() for name, case in cases.items()}
    del stores
    resumed = Case(folder / "one", {"arguments": ["--resume"], "agent": False, "signals": []})
    facts["resumed"] = resumed.facts()
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main_of_all()
