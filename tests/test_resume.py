"""Law 6 on the real recipes: interrupted at any time and resumed, a run ends bitwise as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
ARGUMENTS = {
    "cartpole.py": [
        *("--steps", "640", "--collect.num-envs", "4", "--collect.steps", "16"),
        *("--collect.normalise-rewards", "--policy.normalise-observations"),
        *("--eval-every-steps", "192", "--checkpoint-every-steps", "64"),
        *("--evaluate.episodes", "4", "--evaluate.sampled-episodes", "2", "--optimize.epochs", "3"),
    ],
    # Two phases, a reference, a coefficient that adapts, running moments of the scores.
    "arithmetic.py": [
        *("--held-out", "10", "--clone.rows-per-update", "8", "--clone.train.updates", "3"),
        *("--clone.train.checkpoint-every", "1", "--improve.train.updates", "6", "--improve.train.eval-every", "3"),
        *("--improve.train.checkpoint-every", "1", "--improve.collect.prompts-per-rollout", "32"),
        *(
            "--improve.collect.normalise-scores",
            "--improve.method.kl-coef",
            "0.1",
            "--improve.method.kl-target",
            "0.01",
        ),
    ],
    # Five phases: demonstrations, a reference on control, and all that an expert was asked for.
    "imitation.py": [
        *("--expert-steps", "512", "--demonstrations", "2", "--clone-updates", "3", "--rows-per-update", "8"),
        *("--improve-steps", "1024", "--dagger.num-envs", "2", "--dagger.steps", "8"),
        *("--dagger-updates", "3", "--dagger-optimize.epochs", "2", "--dagger-optimize.minibatches", "2"),
        *("--evaluate.episodes", "2", "--checkpoint-every", "1"),
    ],
}
PHASES = {
    "cartpole.py": ["ppo"],
    "arithmetic.py": ["clone", "ppo"],
    "imitation.py": ["expert", "clone", "ppo", "ppo_kl", "dagger"],
}
# Lines of all phases' metrics between which a late kill falls: in the last phase, and after what is adapted has moved.
LATE = {"cartpole.py": (7.5, 10.0), "arithmetic.py": (7.5, 10.0), "imitation.py": (12.5, 15.5)}
# What the clock and the machine say, which no two runs share.
OF_THE_CLOCK = ("seconds", "steps_per_second", "memory", "env_steps_per_second")


def without_the_clock(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(OF_THE_CLOCK)}


def files(folder: Path) -> dict[str, bytes]:
    assert folder.is_dir()
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoint(folder: Path) -> dict[str, Any]:
    """Every file of it; less whether it was resumed, and the clock's metrics."""
    content: dict[str, Any] = files(folder)
    config, lines = json.loads(content["run/config.json"]), content["run/metrics.jsonl"].splitlines()
    del content["manifest.json"], config["resume"]
    rows = [without_the_clock(json.loads(line)) for line in lines]
    return content | {"run/config.json": config, "run/metrics.jsonl": rows}


def assert_same(run: Path, whole: Path, recipe: str) -> None:
    for name in PHASES[recipe]:
        a, b = run / name, whole / name
        assert files(a / "final") == files(b / "final")
        numbers = [sorted(path.name for path in (phase / "checkpoints").iterdir()) for phase in (a, b)]
        assert numbers[0] == numbers[1]
        for number in numbers[0]:
            assert checkpoint(a / "checkpoints" / number) == checkpoint(b / "checkpoints" / number)
        assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()
        rows = [
            [without_the_clock(json.loads(line)) for line in (phase / "metrics.jsonl").read_text().splitlines()]
            for phase in (a, b)
        ]
        assert rows[0] == rows[1]
        if (b / "episodes.safetensors").exists():
            assert (a / "episodes.safetensors").read_bytes() == (b / "episodes.safetensors").read_bytes()
    results = [without_the_clock(json.loads((folder / "result.json").read_text())) for folder in (run, whole)]
    assert results[0] == results[1]


def interrupted(recipe: str, runs: list[list[tuple[str, float]]], folder: Path) -> dict[str, Any]:
    """Runs the recipe whole in `folder/whole`, and in `folder/<n>` interrupted as `runs[n]` says (`interrupt`)."""
    plan = {"recipe": recipe, "arguments": ARGUMENTS[recipe], "runs": runs}
    command = [sys.executable, "-m", "tests.interrupted_runs", str(folder), json.dumps(plan)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    logs = "".join(path.read_text() for path in folder.glob("*/log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    facts = json.loads((folder / "facts.json").read_text())
    print(json.dumps(facts))
    assert facts["whole"] == 0, logs
    assert all(run["status"] == 0 for run in facts["runs"]), logs
    for number in range(len(runs)):
        assert_same(folder / str(number) / "run", folder / "whole" / "run", recipe)
    return facts


def anywhere(draw: random.Random, recipe: str) -> tuple[str, float]:
    return "anywhere", draw.uniform(0.0, 1.0)


def early_write(draw: random.Random, recipe: str) -> tuple[str, float]:
    return "write", draw.uniform(0.0, 6.0)


def late_write(draw: random.Random, recipe: str) -> tuple[str, float]:
    return "write", draw.uniform(*LATE[recipe])


def killed_runs(recipe: str, runs: list[list[tuple[str, float]]], folder: Path) -> None:
    facts = interrupted(recipe, runs, folder)
    attempts = [attempt for run in facts["runs"] for attempt in run["attempts"]]
    # A kill that comes too late finds a run that has ended by itself.
    assert {attempt["status"] for attempt in attempts} <= {-signal.SIGKILL, 0}
    assert all(run["attempts"][0]["status"] == -signal.SIGKILL for run in facts["runs"])
    inside = [bool(attempt["half_written"]) for attempt in attempts if attempt["kind"] == "write"]
    assert sum(inside) >= max(len(inside) // 3, 1)


@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_killed_runs_end_as_if_nothing_had_happened(recipe: str, tmp_path: Path) -> None:
    draw = random.Random(1)
    orders = [(early_write, anywhere), (late_write,), (anywhere,)]
    killed_runs(recipe, [[kill(draw, recipe) for kill in order] for order in orders], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_twenty_killed_runs_end_as_if_nothing_had_happened(recipe: str, tmp_path: Path) -> None:
    """Each is killed twice, once at any time and once while it writes a checkpoint."""
    draw = random.Random(2)
    orders = [(anywhere, late_write), (early_write, anywhere), (early_write, late_write), (anywhere, early_write)]
    killed_runs(recipe, [[kill(draw, recipe) for kill in orders[number % 4]] for number in range(20)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_a_killed_command_goes_on_to_the_same_end(recipe: str, tmp_path: Path) -> None:
    """The same through the true command line, report and all."""
    interrupted(recipe, [], tmp_path)
    command = [sys.executable, str(ROOT / "recipes" / recipe), *ARGUMENTS[recipe], "--output-dir", "run"]
    (tmp_path / "killed").mkdir()
    run = tmp_path / "killed" / "run"
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=run.parent, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (run / "ppo" / "checkpoints" / "00000002").exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (run / "result.json").exists()
    done = subprocess.run(
        [*command, "--resume"], env=ENVIRONMENT, cwd=run.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").exists()
    assert_same(run, tmp_path / "whole" / "run", recipe)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_signalled_runs_exit_in_good_order_and_end_as_if_nothing_had_happened(recipe: str, tmp_path: Path) -> None:
    facts = interrupted(recipe, [[("SIGTERM", 2), ("SIGINT", 7)], [("SIGINT", 4)], [("SIGTERM", 9)]], tmp_path)
    for run in facts["runs"]:
        for attempt in run["attempts"]:
            assert attempt["status"] == {"SIGTERM": 143, "SIGINT": 130}[attempt["kind"]]
            assert attempt["half_written"] == []
