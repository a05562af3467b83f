"""Laws that every cloning on control keeps, on runs in which every two mechanisms meet."""

from __future__ import annotations

from pathlib import Path

import pytest

import rlhf
from tests.covering.cases import Case, Refusal
from tests.covering.control.cloning import MECHANISMS, assert_laws, run

PAIRS = MECHANISMS.array(2)


@pytest.mark.parametrize("case", PAIRS, ids=MECHANISMS.named)
def test_laws_hold_where_two_mechanisms_of_cloning_meet_on_control(case: Case, tmp_path: Path) -> None:
    assert_laws(case, tmp_path)


def test_every_two_values_of_cloning_on_control_meet_in_a_run_or_are_refused() -> None:
    assert not MECHANISMS.unmet(PAIRS)


@pytest.mark.parametrize("refusal", MECHANISMS.refusals, ids=Refusal.named)
def test_what_does_not_go_together_in_cloning_is_refused_by_name(refusal: Refusal, tmp_path: Path) -> None:
    with pytest.raises(rlhf.InputError, match=refusal.message):
        run(MECHANISMS.refused_case(refusal), tmp_path / "run")
    assert not (tmp_path / "run").exists()
