"""Running moments of a stream, and inputs put on one scale by them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Observations and rewards beyond this many standard deviations are clipped, as in OpenAI Baselines.
CLIP = 10.0


class Normalizer(nn.Module):
    """Mean and population variance of everything seen so far, in float64; the identity until the first update.

    The numbers change only in `update`, so a rollout or an evaluation never moves them.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """(x - mean) / standard deviation, clipped to +-10, in float64."""
        if not self.count:
            return x.double()
        return ((x.double() - self.mean) / self.std()).clamp(-CLIP, CLIP)

    def std(self) -> Tensor:
        return (self.var + 1e-8).sqrt()

    @torch.no_grad()
    def update(self, x: Tensor, reduce_sum: Callable[[Tensor], Tensor]) -> None:
        """Adds the rows of `x`, `(N, size)`; `reduce_sum` adds a tensor up over all ranks.

        Sums are taken about the mean so far: with d = x - mean, the mean moves by sum(d) / n, and the variance is
        (n_old * var + sum(d^2)) / n less the square of that move.
        """
        deviations = x.to(self.mean.device, torch.float64) - self.mean
        rows = self.count.new_full((1,), len(x))
        sums = reduce_sum(torch.cat([rows, deviations.sum(0), deviations.square().sum(0)]))
        if sums[0] == 0:
            return
        first, second = sums[1:].chunk(2)
        total = self.count + sums[0]
        move = first / total
        self.var.copy_(((self.count * self.var + second) / total - move.square()).clamp(min=0.0))
        self.mean.add_(move)
        self.count.copy_(total)
