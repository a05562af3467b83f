"""Laws that every run on control keeps, on runs in which every two mechanisms meet."""

from __future__ import annotations

from pathlib import Path

import pytest

import rlhf
from tests.covering.cases import Case, Refusal
from tests.covering.control import runs
from tests.covering.control.laws import assert_laws
from tests.covering.control.mechanisms import MECHANISMS

PAIRS = MECHANISMS.array(2)


@pytest.mark.parametrize("case", PAIRS, ids=MECHANISMS.named)
def test_laws_hold_where_two_mechanisms_of_control_meet(case: Case, tmp_path: Path) -> None:
    assert_laws(case, tmp_path)


def test_every_two_values_of_control_meet_in_a_run_or_are_refused() -> None:
    assert not MECHANISMS.unmet(PAIRS)


@pytest.mark.parametrize("refusal", MECHANISMS.refusals, ids=Refusal.named)
def test_what_does_not_go_together_on_control_is_refused_by_name(refusal: Refusal, tmp_path: Path) -> None:
    with pytest.raises(rlhf.InputError, match=refusal.message):
        runs.run(MECHANISMS.refused_case(refusal), tmp_path / "run")
    assert not (tmp_path / "run").exists()
