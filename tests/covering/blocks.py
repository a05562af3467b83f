"""A method whose loss compares the rows of a group, as those of preferences do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

import rlhf


@dataclass(frozen=True, kw_only=True)
class InBlocks(rlhf.GRPO):
    """GRPO whose rows stay together by group, and which fails where they do not."""

    rows: ClassVar[Any] = "groups"

    together: int
    """Rows of a group."""

    def loss(self, output: Any, batch: rlhf.Batch, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.blocks is not None
        assert (batch.blocks.unique(return_counts=True)[1] == self.together).all(), "a group was split"
        return super().loss(output, batch, state)
