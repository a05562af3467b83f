"""The tables of docs/algorithms.md from what is in runs/learning: `python tests/learning/table.py`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from rlhf.runs.log import read_lines

FOLDER = Path(__file__).parent.parent.parent / "runs" / "learning"


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
    """Of the phase that improves, its evaluations included."""
    metrics = FOLDER / f"{name}-{seed}" / name.partition("-")[2] / "metrics.jsonl"
    parts = ("seconds/collect", "seconds/update", "seconds/evaluate")
    return sum(row.get(part, 0.0) for row in read_lines(metrics) for part in parts)


def thousands(value: float | None) -> str:
    return "never" if value is None else f"{value / 1000:.0f}"


def main() -> None:
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
