"""Laws that every learning from preferences keeps: where every mechanism occurs, and where every two meet (`make
test-slow`)."""

from __future__ import annotations

from pathlib import Path

import pytest

import rlhf
from tests.covering.cases import Case, Refusal
from tests.covering.lm.preferring import MECHANISMS, assert_laws, run

ONCE, PAIRS = MECHANISMS.array(1), MECHANISMS.array(2)


@pytest.mark.parametrize("case", ONCE, ids=MECHANISMS.named)
def test_laws_hold_for_every_mechanism_of_preferring(case: Case, models: Path, tmp_path: Path) -> None:
    assert_laws(case, models, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", PAIRS, ids=MECHANISMS.named)
def test_laws_hold_where_two_mechanisms_of_preferring_meet(case: Case, models: Path, tmp_path: Path) -> None:
    assert_laws(case, models, tmp_path)


def test_every_two_values_of_preferring_meet_in_a_run_or_are_refused() -> None:
    assert not MECHANISMS.unmet(PAIRS)


@pytest.mark.parametrize("refusal", MECHANISMS.refusals, ids=Refusal.named)
def test_what_does_not_go_together_is_refused_by_name(refusal: Refusal, models: Path, tmp_path: Path) -> None:
    with pytest.raises(rlhf.InputError, match=refusal.message):
        run(MECHANISMS.refused_case(refusal), models, tmp_path / "run")
    assert not (tmp_path / "run").exists()
