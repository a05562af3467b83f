"""Laws that every run keeps, on runs in which every two mechanisms meet: each was right alone where two were wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import rlhf
from tests import processes
from tests.covering import runs
from tests.covering.cases import Case, completed, covering_array
from tests.covering.laws import assert_laws, assert_same_change, named
from tests.covering.mechanisms import ABSENT, FACTORS, REFUSALS, Refusal, fits

PAIRS = covering_array(FACTORS, strength=2, fits=fits)
# Every value meets a second process.
ONCE = covering_array(FACTORS, strength=1, fits=fits)


@pytest.mark.parametrize("case", PAIRS, ids=named)
def test_laws_hold_where_two_mechanisms_meet(case: Case, models: Path, tmp_path: Path) -> None:
    assert_laws(case, models, tmp_path)


@pytest.mark.parametrize("half", [False, True], ids=["whole precision", "bf16"])
def test_two_processes_train_as_one_whatever_meets(half: bool, models: Path, tmp_path: Path) -> None:
    """Law 1. A process computes in one precision only, so there are two programs."""
    cases = [case for case in ONCE if (case["precision"] == "bf16") == half]
    alone = [runs.run(case, models, tmp_path / f"alone {number}") for number, case in enumerate(cases)]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    processes.run("tests/covering/runs.py", tmp_path / "two", str(tmp_path / "cases.json"), str(models), processes=2)
    for number, (case, one) in enumerate(zip(cases, alone, strict=True)):
        assert_same_change(case, one.before, one.after, load_file(tmp_path / "two" / f"{number}.safetensors"))


def test_every_two_values_meet_in_a_run_or_are_refused() -> None:
    met = {frozenset(pair) for case in PAIRS for pair in _pairs(list(case.items()))}
    refused = {frozenset((refusal.one, refusal.other)) for refusal in REFUSALS}
    values = [(name, value) for name in FACTORS for value in FACTORS[name]]
    alone = {frozenset(pair) for pair in _pairs(values) if pair[0][0] != pair[1][0]} - met - refused
    assert alone == {frozenset(pair) for pair in ABSENT}


def _pairs(values: list[tuple[str, str]]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    return [(one, other) for i, one in enumerate(values) for other in values[:i]]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.one[1]}, {' '.join(refusal.other)}")
def test_what_does_not_go_together_is_refused_by_name(refusal: Refusal, models: Path, tmp_path: Path) -> None:
    def others_fit(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
        return {one, other} == {refusal.one, refusal.other} or fits(one, other)

    case = completed(dict((refusal.one, refusal.other)), FACTORS, fits=others_fit, missing={}, strength=2)
    assert case is not None
    with pytest.raises(rlhf.InputError, match=refusal.message):
        runs.run(case, models, tmp_path / "run")
    assert not (tmp_path / "run").exists()
