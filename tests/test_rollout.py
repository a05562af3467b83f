"""The seam refuses what is malformed and lets nothing through from outside the mask."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf.errors import NonFiniteError
from rlhf.rollout import Rollout, batch_of, single_steps


def make_rollout(rows: int = 2, steps: int = 3) -> Rollout:
    cells = torch.arange(rows * steps, dtype=torch.float64).reshape(rows, steps)
    mask = torch.ones(rows, steps, dtype=torch.bool)
    mask[1, 2] = False
    return Rollout(
        inputs={"states": torch.zeros(rows, steps, dtype=torch.int64)},
        behaviour_logprobs=-cells,
        logprobs=-cells,
        values=cells,
        next_values=cells,
        rewards=cells,
        dones=torch.zeros(rows, steps, dtype=torch.bool),
        mask=mask,
        sample_ids=torch.arange(rows) + 10,
        costs=torch.full((rows,), steps),
    )


@pytest.mark.parametrize("name", ["behaviour_logprobs", "logprobs", "values", "next_values", "rewards", "ref_logprobs"])
def test_rollout_zeroes_garbage_outside_the_mask(name: str) -> None:
    cells = torch.ones(2, 3, dtype=torch.float64)
    cells[1, 2] = torch.nan
    rollout = replace(make_rollout(), **{name: cells})
    assert getattr(rollout, name)[1, 2] == 0.0
    assert getattr(rollout, name)[1, 1] == 1.0


def test_rollout_names_the_tensor_and_the_sample_that_is_not_finite() -> None:
    cells = torch.ones(2, 3, dtype=torch.float64)
    cells[1, 1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"rewards is not finite in samples \[11\]"):
        replace(make_rollout(), rewards=cells)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask", torch.ones(2, 3)),
        ("values", torch.zeros(2, 4)),
        ("dones", torch.zeros(2, 3)),
        ("costs", torch.zeros(2)),
        ("sample_ids", torch.zeros(3, dtype=torch.int64)),
        ("inputs", {"states": torch.zeros(3, 3)}),
    ],
)
def test_rollout_refuses_wrong_shapes_and_types(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        replace(make_rollout(), **{name: value})


def test_rows_selects_every_tensor_alike() -> None:
    rollout = make_rollout().rows(torch.tensor([1]))
    assert rollout.sample_ids.tolist() == [11]
    assert rollout.rewards.tolist() == [[3.0, 4.0, 0.0]]
    assert rollout.inputs["states"].shape == (1, 3)


def test_single_steps_keeps_every_cell_and_gives_each_its_own_id() -> None:
    rollout = make_rollout()
    units = rollout.mask.double()
    batch = batch_of(rollout, advantages=rollout.rewards, returns=rollout.rewards, weights=units, units=units)
    steps = single_steps(batch)
    assert steps.advantages.shape == (6, 1)
    assert steps.advantages.flatten().tolist() == batch.advantages.flatten().tolist()
    assert steps.mask.flatten().tolist() == [True, True, True, True, True, False]
    assert steps.inputs["states"].shape == (6, 1)
    assert steps.sample_ids.tolist() == [30, 31, 32, 33, 34, 35]
