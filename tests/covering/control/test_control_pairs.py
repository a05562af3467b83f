"""Laws that every run on control keeps, on runs in which every two mechanisms meet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import rlhf
from tests import processes
from tests.covering.cases import Case, Refusal
from tests.covering.control import runs
from tests.covering.control.laws import assert_laws
from tests.covering.control.mechanisms import MECHANISMS
from tests.covering.laws import assert_same_change, limit_of

PAIRS = MECHANISMS.array(2)
# Every value meets a second process, but for several seeds, which share one.
ONCE = [{**case, "seeds": "one"} for case in MECHANISMS.array(1)]


@pytest.mark.parametrize("case", PAIRS, ids=MECHANISMS.named)
def test_laws_hold_where_two_mechanisms_of_control_meet(case: Case, tmp_path: Path) -> None:
    assert_laws(case, tmp_path)


@pytest.mark.slow
def test_two_processes_train_on_control_as_one_whatever_meets(tmp_path: Path) -> None:
    """Law 1."""
    alone = [runs.run(case) for case in ONCE]
    (tmp_path / "cases.json").write_text(json.dumps(ONCE))
    processes.run("tests/covering/control/runs.py", tmp_path / "two", str(tmp_path / "cases.json"), processes=2)
    for number, (case, one) in enumerate(zip(ONCE, alone, strict=True)):
        two = load_file(tmp_path / "two" / f"{number}.safetensors")
        assert_same_change(one.before, one.after, two, limit=limit_of(case))


def test_every_two_values_of_control_meet_in_a_run_or_are_refused() -> None:
    assert not MECHANISMS.unmet(PAIRS)


@pytest.mark.parametrize("refusal", MECHANISMS.refusals, ids=Refusal.named)
def test_what_does_not_go_together_on_control_is_refused_by_name(refusal: Refusal, tmp_path: Path) -> None:
    with pytest.raises(rlhf.InputError, match=refusal.message):
        runs.run(MECHANISMS.refused_case(refusal), tmp_path / "run")
    assert not (tmp_path / "run").exists()
