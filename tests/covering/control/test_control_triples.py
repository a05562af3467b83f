"""The laws on runs on control in which every three mechanisms meet, 428 of methods and 56 of cloning; slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.covering.cases import Case
from tests.covering.control import cloning, laws, mechanisms


@pytest.mark.slow
@pytest.mark.parametrize("case", mechanisms.MECHANISMS.array(3), ids=mechanisms.MECHANISMS.named)
def test_laws_hold_where_three_mechanisms_of_control_meet(case: Case, tmp_path: Path) -> None:
    laws.assert_laws(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", cloning.MECHANISMS.array(3), ids=cloning.MECHANISMS.named)
def test_laws_hold_where_three_mechanisms_of_cloning_meet_on_control(case: Case, tmp_path: Path) -> None:
    cloning.assert_laws(case, tmp_path)
