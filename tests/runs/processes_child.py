"""Run by test_processes.py under torchrun: every rank asks for a run in the folder that its rank is given."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from rlhf.runs import processes
from rlhf.runs.launch import launch
from rlhf.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    cpu: bool = False
    """As control asks for it."""
    own: bool = False
    """Another machine's disk."""


def main(config: Config) -> None:
    processes.PATIENCE = 0.2
    folder = Path("node" + os.environ["RANK"] if config.own else "shared", "run")
    Run(folder, config, resume=False, accelerator=Accelerator(cpu=config.cpu))
    Path(f"ended{os.environ['RANK']}").touch()


if __name__ == "__main__":
    sys.argv[0] = "recipes/custom_reward.py"
    launch(main, Config)
