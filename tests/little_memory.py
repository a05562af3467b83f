"""Run by test_optimize: the gradient of a batch whose activations do not fit, under a limit of the system's."""

from __future__ import annotations

import resource
import sys
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.rollout import Batch, PolicyOutput
from tests.batches import make_batch, ppo_loss
from tests.tabular import TabularPolicy

ROWS, WIDTH = 64, 40_000
MB = 2**20
CPU = Accelerator(cpu=True)


class Wide(TabularPolicy):
    """Holds 1.6 MB a row, and more on the way back, for what changes nothing."""

    def forward(self, inputs: dict[str, Tensor]) -> PolicyOutput:
        output = super().forward(inputs)
        wide = output.logprobs.unsqueeze(-1).expand(*output.logprobs.shape, WIDTH).exp()
        return output._replace(logprobs=output.logprobs + 0.0 * wide.tanh().mean(-1))


def gradient(policy: TabularPolicy, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    first = batch.rows(torch.tensor([0]))
    metrics = optimize.gradient(policy, batch, first, ppo_loss(), accelerator=CPU, micro_batch_cost=10_000)
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()]), metrics


if __name__ == "__main__":
    torch.set_num_threads(1)
    policy, other = Wide(4, 3, dtype=torch.float64), Wide(4, 3, dtype=torch.float64)
    batch = make_batch(TabularPolicy(4, 3, dtype=torch.float64), rows=ROWS, steps=5)
    whole, metrics = gradient(other, batch)
    assert "micro_batch_cost" not in metrics
    room = int(sys.argv[1]) * MB
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room,) * 2)
    cut, metrics = gradient(policy, batch)
    print(float((whole - cut).norm() / whole.norm()), metrics["micro_batch_cost"])
