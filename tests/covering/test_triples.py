"""The laws on runs in which every three mechanisms meet; 613 runs, behind `make test-slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.covering.cases import Case, covering_array
from tests.covering.laws import assert_laws, named
from tests.covering.mechanisms import FACTORS, fits


@pytest.mark.slow
@pytest.mark.parametrize("case", covering_array(FACTORS, strength=3, fits=fits), ids=named)
def test_laws_hold_where_three_mechanisms_meet(case: Case, models: Path, tmp_path: Path) -> None:
    assert_laws(case, models, tmp_path)
