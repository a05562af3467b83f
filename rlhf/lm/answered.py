"""Prompts with what was answered and paid, of which some rows may give way to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.core.masked import rounding
from rlhf.lm.data import Prompt
from rlhf.lm.engine import Generation
from rlhf.lm.rewards import Scores


class Answered(NamedTuple):
    """One entry a row in each."""

    prompts: list[Prompt]
    generation: Generation
    texts: list[str]
    scores: Scores

    def replaced(self, rows: Sequence[int], others: Answered) -> Answered:
        """With the rows of `others`, in their order, in the place of these."""
        where = torch.tensor(rows, dtype=torch.int64)
        prompts, texts = list(self.prompts), list(self.texts)
        parts = {name: list(values) for name, values in self.scores.parts.items()}
        for i, row in enumerate(rows):
            prompts[row], texts[row] = others.prompts[i], others.texts[i]
            for name, payments in parts.items():
                payments[row] = others.scores.parts[name][i]
        mine, theirs = self.generation, others.generation
        values = None
        if mine.values is not None and theirs.values is not None:
            values = _replaced(mine.values, where, theirs.values)
        generation = Generation(
            tokens=_replaced(mine.tokens, where, theirs.tokens),
            lengths=_replaced(mine.lengths, where, theirs.lengths),
            finished=_replaced(mine.finished, where, theirs.finished),
            logprobs=_replaced(mine.logprobs, where, theirs.logprobs),
            values=values,
        )
        scores = Scores(
            scores=_replaced(self.scores.scores, where, others.scores.scores),
            rewards=_replaced(self.scores.rewards, where, others.scores.rewards),
            valid=_replaced(self.scores.valid, where, others.scores.valid),
            parts=parts,
            skipped=tuple(dict.fromkeys((*self.scores.skipped, *others.scores.skipped))),
            extra=_columns_replaced(self.scores.extra, rows, others.scores.extra, len(self.texts)),
            metrics={
                name: [*self.scores.metrics.get(name, []), *others.scores.metrics.get(name, [])]
                for name in {**self.scores.metrics, **others.scores.metrics}
            },
        )
        return Answered(prompts, generation, texts, scores)

    def alike(self, group_size: int) -> Tensor:
        """`(groups,)` True where no two rows of a group score differently, to rounding; rows without a score have no
        say."""
        scores, valid = self.scores.scores.view(-1, group_size), self.scores.valid.view(-1, group_size)
        highest = scores.masked_fill(~valid, -torch.inf).amax(1)
        lowest = scores.masked_fill(~valid, torch.inf).amin(1)
        size = scores.masked_fill(~valid, 0.0).abs().amax(1)
        # Of no score at all the one is -inf and the other inf.
        return highest - lowest <= rounding(size)


def _columns_replaced(
    columns: dict[str, list[Any]], rows: Sequence[int], others: dict[str, list[Any]], num_rows: int
) -> dict[str, list[Any]]:
    result = {name: list(columns.get(name, [None] * num_rows)) for name in {**columns, **others}}
    for name, values in result.items():
        for i, row in enumerate(rows):
            values[row] = others[name][i] if name in others else None
    return result


def _replaced(tensor: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """`(N, ...)` with other rows in the place of some; shorter rows are filled with zeros."""
    if tensor.dim() > 1:
        width = max(tensor.shape[1], others.shape[1])
        tensor, others = (torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in (tensor, others))
    return tensor.index_copy(0, rows.to(tensor.device), others)
