"""FSDP2: a policy that is spread over two processes learns what one process learns, and resumes, also with another
number of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.lm.sharded import KINDS
from tests.processes import run

# Of steps of Adam in float64, and of what is logged.
TOLERANCE = 1e-12
UPDATES = 4
# Numbers that follow how many rows are computed at once, so those of two processes either way.
HALF = ["half precision", "4 bits"]
RESUMED = ["adapter", "separate critic"]
# Where actor and learner are one, ratios are 1 to rounding, and so at the clip of V-trace or beyond it.
NOT_COMPARED = ("second", "memory", "lag_clip_fraction")


class Runs(NamedTuple):
    one: Path
    plain: Path
    sharded: Path


def start(folder: Path, how: str, kinds: list[str], updates: int) -> Path:
    run("tests/lm/sharded.py", folder, how, ",".join(kinds), str(updates), processes=1 if how == "one" else 2)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("runs")
    return Runs(
        start(root / "one", "one", [kind for kind in KINDS if kind not in HALF], UPDATES),
        start(root / "plain", "plain", HALF, UPDATES),
        start(root / "sharded", "sharded", list(KINDS), UPDATES),
    )


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates of those that are resumed."""
    return start(tmp_path_factory.mktemp("stopped") / "runs", "sharded", RESUMED, 2)


def weights(folder: Path, part: str = "final") -> dict[str, Tensor]:
    (saved,) = folder.glob(f"*/{part}/policy")
    return {
        f"{path.name}: {name}": tensor.double()
        for path in sorted(saved.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def rows(folder: Path) -> list[dict[str, float]]:
    (log,) = folder.glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{name: x for name, x in row.items() if not any(part in name for part in NOT_COMPARED)} for row in lines]


def assert_alike(first: Path, second: Path, tolerance: float) -> None:
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=tolerance)
    for one, two in zip(rows(first), rows(second), strict=True):
        assert one == pytest.approx(two, rel=1e-9, abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in HALF])
def test_spread_over_two_processes_it_learns_as_one_and_holds_half(kind: str, runs: Runs) -> None:
    assert_alike(runs.sharded / kind, runs.one / kind, TOLERANCE)
    before, after = (weights(runs.one / kind, f"checkpoints/0000000{update}") for update in (UPDATES - 1, UPDATES))
    assert max(float((after[name] - before[name]).abs().max()) for name in after) > 1e-3
    facts = json.loads((runs.sharded / "facts.json").read_text())
    assert (facts["processes"], facts[kind]["sharded"]) == (2, True)
    for name in ("policy", "reference"):
        held, whole = facts[kind][name]
        # Of a single row the first process has all.
        assert held == pytest.approx(whole / 2, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HALF)
def test_in_half_precision_it_computes_what_data_parallelism_computes(kind: str, runs: Runs) -> None:
    assert_alike(runs.sharded / kind, runs.plain / kind, 1e-6)


@pytest.mark.slow
def test_it_goes_on_from_a_checkpoint_to_the_bit(runs: Runs, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "resumed")
    start(tmp_path / "resumed", "sharded", RESUMED, UPDATES)
    for kind in RESUMED:
        straight, resumed = runs.sharded / kind, tmp_path / "resumed" / kind
        assert rows(straight) == rows(resumed)
        one, other = weights(straight), weights(resumed)
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_other_numbers_of_processes_go_on_from_it_and_lose_and_repeat_nothing(
    runs: Runs, stopped: Path, tmp_path: Path
) -> None:
    shutil.copytree(stopped, tmp_path / "changed")
    for how, updates in (("one", 3), ("sharded", UPDATES)):
        start(tmp_path / "changed", how, RESUMED, updates)
    for kind in RESUMED:
        assert_alike(tmp_path / "changed" / kind, runs.one / kind, TOLERANCE)


def test_an_adapter_learns_spread_over_two_processes_as_in_one(tmp_path: Path) -> None:
    """What of the above `make test` has time for."""
    one, sharded = (start(tmp_path / how, how, ["adapter"], 2) / "adapter" for how in ("one", "sharded"))
    assert_alike(sharded, one, TOLERANCE)
    assert json.loads((tmp_path / "sharded" / "facts.json").read_text())["adapter"]["sharded"] is True
