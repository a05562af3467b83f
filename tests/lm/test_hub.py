"""Names that are no folder, without a network: one line, and no waiting."""

from __future__ import annotations

import time

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from rlhf.errors import InputError
from rlhf.lm.data import load_data
from rlhf.lm.load import context_length, load_policy, load_tokenizer
from rlhf.lm.reward_model import RewardModel

LOADERS = {
    "policy": load_policy,
    "tokenizer": load_tokenizer,
    "config": context_length,
    "reward model": lambda name: RewardModel(name, device=torch.device("cpu")),
    "data": load_data,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    # A port that nothing listens on: what a machine without a network answers, without asking anybody.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.mark.parametrize("what", LOADERS)
def test_a_hub_that_is_not_reached_is_said_at_once(what):
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"'someone/something' is no folder .* hub cannot be reached"):
        LOADERS[what]("someone/something")
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("name", ["a/b/c", "no spaces please", ""])
def test_what_can_be_no_name_is_refused_without_asking(name):
    with pytest.raises(InputError, match="there is no model"):
        load_policy(name)


def test_offline_what_was_never_downloaded_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="could not load 'someone/something'"):
        load_tokenizer("someone/something")
