"""What Windows lacks is not needed: every module is imported and a run is made, resumed and extended without it."""

from __future__ import annotations

from pathlib import Path

from tests.processes import run


def test_all_modules_and_a_run_do_without_what_windows_lacks(tmp_path: Path) -> None:
    run(str(Path(__file__).with_name("windows_child.py")), tmp_path / "out", processes=1)
