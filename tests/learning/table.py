"""The tables of docs/algorithms.md and the curves of figure 17 from what is in runs/learning:

python tests/learning/table.py
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.runs.log import read_lines

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "runs" / "learning"
CURVES = ROOT / "theory" / "figures" / "fig17_every_method.npz"
PROBLEMS = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1", "pendulum": "Pendulum-v1"}
# Points of a curve.
GRID = 40


def results(name: str) -> dict[int, dict[str, Any]]:
    """Of the seeds that are there."""
    found = {}
    for path in FOLDER.glob(f"{name}-*/result.json"):
        seed = path.parent.name.removeprefix(f"{name}-")
        if seed.isdigit():
            found[int(seed)] = json.loads(path.read_text())
    return dict(sorted(found.items()))


def names(prefix: str) -> list[str]:
    return sorted({path.parent.name.rpartition("-")[0] for path in FOLDER.glob(f"{prefix}-*-*/result.json")})


def seconds(name: str, seed: int) -> float:
    """Of the phase that improves, its evaluations but the first included, as docs/algorithms.md says."""
    metrics = FOLDER / f"{name}-{seed}" / name.partition("-")[2] / "metrics.jsonl"
    parts = ("seconds/collect", "seconds/update", "seconds/evaluate")
    return sum(row.get(part, 0.0) for row in read_lines(metrics)[1:] for part in parts)


def thousands(value: float | None) -> str:
    return "never" if value is None else f"{value / 1000:.0f}"


def finished_runs(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """By "problem/method" and seed: steps and returns, `(2, P)`, of all runs on control that are done."""
    curves: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for metrics in sorted(folder.glob("*/*/metrics.jsonl")):
        # Without a method in its name a run is PPO's.
        name = re.fullmatch(rf"({'|'.join(PROBLEMS)})(?:-(.+))?-(\d+)", metrics.parent.parent.name)
        if name and (metrics.parent / "final").exists():
            rows = [row for row in read_lines(metrics) if "eval_return_mean" in row]
            points = [[row["steps"] for row in rows], [row["eval_return_mean"] for row in rows]]
            curves[f"{PROBLEMS[name[1]]}/{name[2] or 'ppo'}"][name[3]] = np.array(points, dtype=float)
    return curves


def on_one_grid(curves: list[np.ndarray]) -> np.ndarray:
    """`(1 + seeds, GRID)`: steps, up to where all have come, and each curve's returns there."""
    steps = np.linspace(0.0, min(curve[0, -1] for curve in curves), GRID)
    return np.stack([steps, *(np.interp(steps, *curve) for curve in curves)])


def main() -> None:
    curves = {name: on_one_grid(list(seeds.values())) for name, seeds in finished_runs(FOLDER).items()}
    np.savez_compressed(CURVES, **{name: each.astype(np.float32) for name, each in curves.items()})
    print("| method | seeds | first hit, thousand steps | stays from | share of evaluations solved | last mean |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names("cartpole"):
        runs = results(name).values()
        shares = [run["share_of_evaluations_solved"] for run in runs]
        cells = [
            name.removeprefix("cartpole-"),
            str(len(runs)),
            ", ".join(thousands(run["first_hit_step"]) for run in runs),
            ", ".join(thousands(run["stays_from_step"]) for run in runs),
            f"{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})",
            ", ".join(f"{run['eval_return_mean']:.0f}" for run in runs),
        ]
        print("| " + " | ".join(cells) + " |")
    print("\n| method | seeds | sampled before | sampled after | greedy after | tokens | seconds of improvement |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names("arithmetic"):
        runs = results(name).values()
        cells = [name.removeprefix("arithmetic-"), str(len(runs))]
        for key in ("exact_match_before", "exact_match_after", "greedy_match_after"):
            cells.append(", ".join(f"{run[key]:.3f}" for run in runs))
        cells.append(f"{statistics.median(run['tokens'] for run in runs):,.0f}")
        cells.append(", ".join(f"{seconds(name, seed):.0f}" for seed in results(name)))
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
