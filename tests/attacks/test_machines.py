"""Two network namespaces as two machines: the file for several machines runs as it is, and a cut cable ends both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks import rig

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.attack,
    pytest.mark.skipif(
        os.name == "nt" or os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces take root and ip"
    ),
]
NAMES, CABLE = ("rlhf-a", "rlhf-b"), ("rlhf-0", "rlhf-1")


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@pytest.fixture
def machines() -> Iterator[None]:
    for name in NAMES:
        ip("netns", "del", name, check=False)
        ip("netns", "add", name)
    ip("link", "add", CABLE[0], "type", "veth", "peer", "name", CABLE[1])
    for i, (name, end) in enumerate(zip(NAMES, CABLE, strict=True)):
        ip("link", "set", end, "netns", name)
        ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", end)
        for device in (end, "lo"):
            ip("-n", name, "link", "set", device, "up")
    yield
    for name in NAMES:
        ip("netns", "del", name)


def started(job: rig.Job, folder: Path) -> list[subprocess.Popen[str]]:
    """The recipe on both, in one folder; each logs beside it."""
    processes = []
    for i, (name, end) in enumerate(zip(NAMES, CABLE, strict=True)):
        accelerate = (sys.executable, "-m", "accelerate.commands.launch")
        command = [
            *("ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"),
            *(*accelerate, "--config_file", str(rig.RECIPES / "accelerate/multi_node.yaml")),
            *("--num_processes", "2", "--machine_rank", str(i), "--main_process_ip", "10.77.0.1"),
            *(str(rig.RECIPES / job.recipe), *job.arguments, "--output-dir", "run"),
        ]
        environment = os.environ | {
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": end,
        }
        log = (folder / f"{i}.log").open("w")
        processes.append(
            subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True)
        )
    return processes


def test_the_file_for_several_machines_runs_as_it_is(machines: None, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    """With the bytes of two processes on one machine."""
    from tests.attacks.test_ranks import ranks

    apart, together = rig.fresh(tmp_path / "apart"), rig.fresh(tmp_path / "together")
    assert [process.wait(timeout=150) for process in started(jobs["short lm"], apart)] == [0, 0]
    assert ranks(jobs["short lm"], together).status == 0
    assert rig.differences(apart / "run", together / "run") == []


def test_a_cut_cable_ends_both_machines_soon(machines: None, jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    folder = rig.fresh(tmp_path / "here")
    processes = started(jobs["lm"].with_options("--improve.train.updates", "100000"), folder)
    metrics = folder / "run" / "ppo" / "metrics.jsonl"
    deadline = time.monotonic() + 100
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() < deadline, [(folder / f"{i}.log").read_text()[-2000:] for i in range(2)]
        time.sleep(0.2)
    ip("-n", NAMES[1], "link", "set", CABLE[1], "down")
    cut = time.monotonic()
    assert all(process.wait(timeout=60) != 0 for process in processes)
    seconds = time.monotonic() - cut
    first, second = ((folder / f"{i}.log").read_text() for i in range(2))
    assert first.count("rank 1 of 2 ") == 1
    assert "(on rlhf-b), last in" in first
    assert "the machine of rank 0 has not answered for 25 seconds" in second
    assert seconds < 35.0
