"""Demonstrations dealt out: every row once an epoch, ranks share what one process would take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rlhf.core.epochs import epoch_rows
from rlhf.demonstrations import DemonstrationCollector
from rlhf.errors import InputError
from rlhf.rollout import Rollout

CPU = Accelerator(cpu=True)


def demonstrations(num_rows: int) -> Rollout:
    """Row i is named 100 + i and its only input is i."""
    mask = torch.ones(num_rows, 2, dtype=torch.bool)
    inputs = {"names": torch.arange(num_rows)}
    return Rollout.demonstrations(inputs, mask, torch.arange(num_rows) + 100, torch.arange(num_rows))


def collector(num_rows: int, rows_per_update: int, *, seed: int = 0, accelerator: Any = CPU) -> DemonstrationCollector:
    rollout = demonstrations(num_rows)
    return DemonstrationCollector(rollout, rows_per_update=rows_per_update, seed=seed, accelerator=accelerator)


def names(collector: DemonstrationCollector, update: int) -> list[int]:
    return collector.collect(None, update).rollout.inputs["names"].tolist()


def test_an_epoch_of_updates_holds_every_row_once():
    dealt = [name for update in range(3) for name in names(collector(12, 4), update)]
    assert sorted(dealt) == list(range(12))
    assert dealt == epoch_rows(0, "demonstrations", num_rows=12, start=0, count=12).tolist()


def test_an_update_is_a_function_of_its_number_alone():
    """So that a resumed run goes on with the rows it would have had."""
    first = collector(12, 5)
    for update in range(3):
        first.collect(None, update)
    assert names(first, 3) == names(collector(12, 5), 3)


def test_rows_keep_their_fields_together():
    rollout = collector(12, 4).collect(None, 2).rollout
    assert torch.equal(rollout.sample_ids, rollout.inputs["names"] + 100)
    assert torch.equal(rollout.costs, rollout.inputs["names"])


def test_rollout_that_runs_into_the_next_epoch_has_no_sample_id_twice():
    for update in range(20):
        ids = collector(5, 4).collect(None, update).rollout.sample_ids
        assert len(ids.unique()) == 4
        assert {int(id_) % 105 for id_ in ids} <= set(range(100, 105))


def test_ranks_share_what_one_process_takes():
    ranks = [SimpleNamespace(num_processes=2, process_index=rank, device=torch.device("cpu")) for rank in (0, 1)]
    for update in range(4):
        whole = collector(7, 6).collect(None, update).rollout
        parts = [collector(7, 6, accelerator=rank).collect(None, update).rollout for rank in ranks]
        assert torch.equal(torch.cat([part.sample_ids for part in parts]), whole.sample_ids)


def test_epoch_is_counted_in_passes_over_the_data():
    collected = collector(8, 4).collect(None, 2)
    assert collected.metrics == {"epoch": 1.5, "episodes": 4}


@pytest.mark.parametrize("rows_per_update", [0, 6])
def test_fewer_rows_than_one_update_is_an_error_and_no_endless_loop(rows_per_update: int):
    """Bug 13 of the peers."""
    with pytest.raises(InputError, match=f"rows_per_update is {rows_per_update} and there are 5 demonstrations"):
        collector(5, rows_per_update)


def test_rows_must_divide_over_the_processes():
    with pytest.raises(InputError, match="2 processes cannot share evenly"):
        collector(5, 3, accelerator=SimpleNamespace(num_processes=2))
