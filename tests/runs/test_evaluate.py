from __future__ import annotations

import math

from rlhf.runs.evaluate import first_hit, stays_from


def test_first_hit_is_the_first_step_at_the_threshold():
    assert first_hit([0, 10, 20, 30], [1.0, 5.0, 2.0, 6.0], 5.0) == 10


def test_first_hit_is_none_below_the_threshold():
    assert first_hit([0, 10], [1.0, 2.0], 5.0) is None


def test_stays_from_ignores_a_hit_that_was_lost_again():
    assert stays_from([0, 10, 20, 30, 40], [1.0, 5.0, 2.0, 6.0, 5.0], 5.0) == 30


def test_stays_from_is_none_if_the_last_evaluation_is_below():
    assert stays_from([0, 10, 20], [6.0, 6.0, 4.0], 5.0) is None


def test_stays_from_counts_nan_as_below():
    assert stays_from([0, 10, 20], [6.0, math.nan, 6.0], 5.0) == 20


def test_stays_from_nothing_is_none():
    assert stays_from([], [], 5.0) is None
