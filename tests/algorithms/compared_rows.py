"""Rows of the tabular policy that somebody compared or labelled."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rlhf.rollout import Rollout
from tests.batches import make_rollout


def with_worth(rollout: Rollout, worth: list[float], groups: Tensor) -> Rollout:
    """What a row is worth is paid at its last action; the reference says something else than the policy."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(rollout.mask.shape, generator=generator, dtype=torch.float64)
    return replace(
        rollout,
        rewards=rollout.dones * torch.tensor(worth, dtype=torch.float64).unsqueeze(1),
        ref_logprobs=rollout.logprobs + 0.3 * noise,
        groups=groups,
    )


def compared(policy: nn.Module, *, pairs: int = 4, steps: int = 5) -> Rollout:
    """Pairs side by side, the chosen row first in every other one; margins 1, 2, 3, ..."""
    worth = [sign * (pair + 1) / 2 for pair in range(pairs) for sign in ((1, -1) if pair % 2 else (-1, 1))]
    return with_worth(make_rollout(policy, rows=2 * pairs, steps=steps), worth, torch.arange(2 * pairs) // 2)


def labelled(policy: nn.Module, *, rows: int = 4, steps: int = 5) -> Rollout:
    """Desirable, undesirable, ..., each followed by a row without a label."""
    worth = [value for row in range(rows) for value in (1.0 - 2.0 * (row % 2), 0.0)]
    return with_worth(make_rollout(policy, rows=2 * rows, steps=steps), worth, torch.arange(2 * rows) // 2)
