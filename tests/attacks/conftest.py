"""What the attacks are made on."""

from __future__ import annotations

import pytest

from tests.attacks import rig


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, rig.Job]:
    return rig.jobs(tmp_path_factory.mktemp("attacked"))
