"""The laws on runs in which every three mechanisms meet; 629 runs, behind `make test-slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.covering.cases import Case
from tests.covering.lm.laws import assert_laws
from tests.covering.lm.mechanisms import MECHANISMS


@pytest.mark.slow
@pytest.mark.parametrize("case", MECHANISMS.array(3), ids=MECHANISMS.named)
def test_laws_hold_where_three_mechanisms_meet(case: Case, models: Path, tmp_path: Path) -> None:
    assert_laws(case, models, tmp_path)
