from __future__ import annotations

from pathlib import Path

import pytest

from tests.lm.tiny import save_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a tiny random model of an architecture, written once."""
    folders: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in folders:
            folders[architecture] = save_tiny(architecture, tmp_path_factory.mktemp("tiny") / architecture)
        return folders[architecture]

    return folder
