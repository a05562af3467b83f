"""Laws that every cloning of texts keeps: where every mechanism occurs, and where every two meet (`make test-slow`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.covering.cases import Case
from tests.covering.lm.cloning import MECHANISMS, assert_laws

ONCE, PAIRS = MECHANISMS.array(1), MECHANISMS.array(2)


@pytest.mark.parametrize("case", ONCE, ids=MECHANISMS.named)
def test_laws_hold_for_every_mechanism_of_cloning(case: Case, models: Path, tmp_path: Path) -> None:
    assert_laws(case, models, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", PAIRS, ids=MECHANISMS.named)
def test_laws_hold_where_two_mechanisms_of_cloning_meet(case: Case, models: Path, tmp_path: Path) -> None:
    assert_laws(case, models, tmp_path)


def test_every_two_values_of_cloning_meet_in_a_run() -> None:
    assert not MECHANISMS.unmet(PAIRS)
