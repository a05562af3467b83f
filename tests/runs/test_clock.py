"""The seconds of a run."""

from __future__ import annotations

import time

import pytest

from rlhf.runs.clock import Clock, seconds_spent


def test_laps_follow_each_other_without_a_gap(monkeypatch):
    moments = iter([100.0, 101.5, 101.75, 110.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    clock = Clock()
    assert [clock.lap() for _ in range(3)] == [1.5, 0.25, 8.25]


def test_seconds_are_those_of_every_name_in_every_row():
    rows = [
        {"update": 0, "seconds/evaluate": 42.0, "seconds/other": 3.0, "steps_per_second": 7.0},
        {"update": 1, "seconds/collect": 300.0, "seconds/update": 200.0, "steps_per_second/update": 9.0},
    ]
    assert seconds_spent(rows) == pytest.approx(545.0)
