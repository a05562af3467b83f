"""Prompts with what was answered and paid, of which some rows may give way to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.core.masked import rounding
from rlhf.lm.answering import Responses
from rlhf.lm.data import Prompt
from rlhf.lm.engine import Generation
from rlhf.lm.rewards import Scores


class Answered(NamedTuple):
    """One entry a row in each."""

    prompts: list[Prompt]
    responses: Responses
    scores: Scores

    def replaced(self, rows: Sequence[int], others: Answered) -> Answered:
        """With the rows of `others`, in their order, in the place of these."""
        where = torch.tensor(rows, dtype=torch.int64)
        parts = {name: _filled(values, rows, others.scores.parts[name]) for name, values in self.scores.parts.items()}
        mine, theirs = self.scores, others.scores
        scores = Scores(
            scores=_replaced(mine.scores, where, theirs.scores),
            rewards=_replaced(mine.rewards, where, theirs.rewards),
            valid=_replaced(mine.valid, where, theirs.valid),
            parts=parts,
            skipped=tuple(dict.fromkeys((*mine.skipped, *theirs.skipped))),
            extra=_columns(mine.extra, rows, theirs.extra, len(self.prompts)),
            metrics={
                name: [*mine.metrics.get(name, []), *theirs.metrics.get(name, [])]
                for name in {**mine.metrics, **theirs.metrics}
            },
        )
        prompts = _filled(self.prompts, rows, others.prompts)
        return Answered(prompts, self._responses(rows, where, others.responses), scores)

    def _responses(self, rows: Sequence[int], where: Tensor, theirs: Responses) -> Responses:
        mine, num_rows = self.responses, len(self.prompts)
        one, other = mine.generation, theirs.generation
        values = None
        if one.values is not None and other.values is not None:
            values = _replaced(one.values, where, other.values)
        generation = Generation(
            tokens=_replaced(one.tokens, where, other.tokens),
            lengths=_replaced(one.lengths, where, other.lengths),
            finished=_replaced(one.finished, where, other.finished),
            logprobs=_replaced(one.logprobs, where, other.logprobs),
            values=values,
        )
        return Responses(
            generation=generation,
            inputs={name: _replaced(tensor, where, theirs.inputs[name]) for name, tensor in mine.inputs.items()},
            texts=_filled(mine.texts, rows, theirs.texts),
            completions=_filled(mine.completions, rows, theirs.completions),
            columns=_columns(mine.columns, rows, theirs.columns, num_rows),
            counts=_columns(mine.counts, rows, theirs.counts, num_rows),
        )

    def alike(self, group_size: int) -> Tensor:
        """`(groups,)` True where no two rows of a group score differently, to rounding; rows without a score have no
        say."""
        scores, valid = self.scores.scores.view(-1, group_size), self.scores.valid.view(-1, group_size)
        highest = scores.masked_fill(~valid, -torch.inf).amax(1)
        lowest = scores.masked_fill(~valid, torch.inf).amin(1)
        size = scores.masked_fill(~valid, 0.0).abs().amax(1)
        # Of no score at all the one is -inf and the other inf.
        return highest - lowest <= rounding(size)


def _filled(values: Sequence[Any], rows: Sequence[int], others: Sequence[Any]) -> list[Any]:
    """A list with other values in these places."""
    result = list(values)
    for row, other in zip(rows, others, strict=True):
        result[row] = other
    return result


def _columns(
    columns: dict[str, list[Any]], rows: Sequence[int], others: dict[str, list[Any]], num_rows: int
) -> dict[str, list[Any]]:
    """Lists by name, as above; None where one of them lacks a name."""
    return {
        name: _filled(columns.get(name, [None] * num_rows), rows, others.get(name, [None] * len(rows)))
        for name in {**columns, **others}
    }


def _replaced(tensor: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """`(N, ...)` with other rows in the place of some; shorter rows are filled with zeros."""
    if tensor.dim() > 1:
        width = max(tensor.shape[1], others.shape[1])
        tensor, others = (torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in (tensor, others))
    return tensor.index_copy(0, rows.to(tensor.device), others)
