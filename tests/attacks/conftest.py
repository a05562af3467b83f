"""What the attacks are made on."""

from __future__ import annotations

import pytest

from tests.attacks import rig


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, rig.Job]:
    return rig.jobs(tmp_path_factory.mktemp("attacked"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The rows that the tests printed, whichever worker they ran on: the tables of docs/reliability.md."""
    ended = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    rows = [line for report in ended for line in report.capstdout.splitlines() if line.startswith("| ")]
    terminalreporter.write_line("\n".join(["| attack | tries | outcome |", "| --- | --- | --- |", *sorted(rows)]))
