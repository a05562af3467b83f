"""A policy for which memory ends."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf.rollout import PolicyOutput
from tests.tabular import TabularPolicy


class Cramped(TabularPolicy):
    """Memory ends where a pass that is learned from takes more rows than there is room for: at once, or on the way
    back."""

    def __init__(self, room: int, *, in_backward: bool = False) -> None:
        super().__init__(4, 3, dtype=torch.float64)
        self.room, self.in_backward, self.passes = room, in_backward, []

    def forward(self, inputs: dict[str, Tensor]) -> PolicyOutput:
        rows = len(next(iter(inputs.values())))
        self.passes.append(rows)
        if rows > self.room and torch.is_grad_enabled() and not self.in_backward:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        output = super().forward(inputs)
        if rows > self.room and torch.is_grad_enabled():
            # What came after it on the way has its gradient by then.
            output.logprobs.register_hook(self.ends)
        return output

    @staticmethod
    def ends(gradient: Tensor) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
