"""What takes the optimizer steps in tests."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from rlhf import optimize


def learner_of(
    policy: nn.Module,
    config: optimize.Optimize,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    accelerator: Accelerator | None = None,
    **where: Any,
) -> optimize.Learner:
    """At the first update of a run of seed 0 on this process alone, unless told otherwise."""
    return optimize.Learner(
        policy=policy,
        optimizer=optimizer or optimize.make_optimizer(policy, config),
        config=config,
        accelerator=accelerator or Accelerator(cpu=True),
        **{"seed": 0, **where},
    )
