"""Laws that every run keeps, on runs in which every two mechanisms meet: each was right alone where two were wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import rlhf
from tests import processes
from tests.covering.cases import Case, Refusal
from tests.covering.laws import assert_same_change, limit_of
from tests.covering.lm import runs
from tests.covering.lm.laws import assert_laws
from tests.covering.lm.mechanisms import MECHANISMS

PAIRS = MECHANISMS.array(2)
# Every value meets a second process.
ONCE = MECHANISMS.array(1)


@pytest.mark.parametrize("case", PAIRS, ids=MECHANISMS.named)
def test_laws_hold_where_two_mechanisms_meet(case: Case, models: Path, tmp_path: Path) -> None:
    assert_laws(case, models, tmp_path)


@pytest.mark.parametrize("half", [False, True], ids=["whole precision", "bf16"])
def test_two_processes_train_as_one_whatever_meets(half: bool, models: Path, tmp_path: Path) -> None:
    """Law 1. A process computes in one precision only, so there are two programs."""
    cases = [case for case in ONCE if (case["precision"] == "bf16") == half]
    alone = [runs.run(case, models, tmp_path / f"alone {number}") for number, case in enumerate(cases)]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    processes.run("tests/covering/lm/runs.py", tmp_path / "two", str(tmp_path / "cases.json"), str(models), processes=2)
    for number, (case, one) in enumerate(zip(cases, alone, strict=True)):
        two = load_file(tmp_path / "two" / f"{number}.safetensors")
        assert_same_change(one.before, one.after, two, limit=limit_of(case))


def test_every_two_values_meet_in_a_run_or_are_refused() -> None:
    assert not MECHANISMS.unmet(PAIRS)


@pytest.mark.parametrize("refusal", MECHANISMS.refusals, ids=Refusal.named)
def test_what_does_not_go_together_is_refused_by_name(refusal: Refusal, models: Path, tmp_path: Path) -> None:
    with pytest.raises(rlhf.InputError, match=refusal.message):
        runs.run(MECHANISMS.refused_case(refusal), models, tmp_path / "run")
    assert not (tmp_path / "run").exists()
