from __future__ import annotations

import pytest

from tests.recipes.small import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Folder of a tiny GPT-2 with its tokenizer."""
    return save_model(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="session")
def model_without_weights(tmp_path_factory):
    """All of a model that input can be checked against; whoever loads it fails."""
    folder = save_model(tmp_path_factory.mktemp("models") / "no-weights")
    (folder / "model.safetensors").unlink()
    return folder
