"""Runs of the recipes' own command lines, kept in runs/learning so that none is done twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
REVIEWS = ROOT.parent / "shared" / "data" / "movie-reviews"


def result_of(name: str, seed: int, *command: str) -> dict[str, Any]:
    """Runs the recipe's own command line, or takes the result that an earlier call left; prints it.

    Delete the folder to measure again: an earlier result is of the code that its file `commit` names, if there
    is one.
    """
    folder = ROOT / "runs" / "learning" / f"{name}-{seed}"
    if not (folder / "result.json").exists():
        if "recipes/a3c.py" in command:
            # It cannot resume.
            shutil.rmtree(folder, ignore_errors=True)
        resume = ["--resume"] if folder.exists() else []
        arguments = [*command, "--seed", str(seed), "--output-dir", str(folder), *resume]
        environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True)
        (folder / "commit").write_text(commit.stdout.strip() or "unknown", encoding="utf-8")
    result = json.loads((folder / "result.json").read_text())
    print(f"{name} seed {seed}: {json.dumps(result)}")
    return result
