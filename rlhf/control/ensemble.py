"""Networks of one shape side by side: each layer of all of them is one batched product."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """`members` ReLU networks, orthogonal weights of gain sqrt 2 (`last_gain` at the end), zero biases.

    Args:
        sizes: Of the input, of each hidden layer, and of the output.
    """

    def __init__(
        self, members: int, sizes: tuple[int, ...], *, last_gain: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (num_inputs, num_outputs) in enumerate(pairwise(sizes)):
            weight = torch.empty(members, num_inputs, num_outputs)
            for member in weight:
                gain = last_gain if i == len(sizes) - 2 else math.sqrt(2.0)
                nn.init.orthogonal_(member, gain, generator=generator)
            self.weights.append(weight)
            self.biases.append(torch.zeros(members, 1, num_outputs))

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """`(..., I)` to `(..., members, O)`. Frozen, the gradient reaches `x` but no weight."""
        members = self.weights[0].shape[0]
        hidden = x.reshape(-1, x.shape[-1]).expand(members, -1, -1)
        for i, layer in enumerate(zip(self.weights, self.biases, strict=True)):
            weight, bias = (tensor.detach() if frozen else tensor for tensor in layer)
            hidden = torch.baddbmm(bias, hidden if i == 0 else hidden.relu(), weight)
        return hidden.transpose(0, 1).view(*x.shape[:-1], members, -1)
