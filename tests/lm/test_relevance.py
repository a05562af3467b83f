"""Relevance is the cosine of mean embeddings, whoever else is in the batch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from rlhf.errors import InputError
from rlhf.lm.relevance import Relevance
from rlhf.lm.tokenizers import byte_pair_tokenizer


def saved(folder: Path, *, vocabulary: int = 0, **settings: Any) -> Path:
    """A sentence model; its vocabulary is its tokenizer's, if none is given."""
    tokenizer = byte_pair_tokenizer(["describe foxes please"], size=300)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(vocab_size=vocabulary or len(tokenizer), initializer_range=0.5, **sizes | settings)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("sentences"))


def test_relevance_is_the_cosine_of_mean_embeddings(folder: Path) -> None:
    relevance, model = Relevance(str(folder)), AutoModel.from_pretrained(folder).eval()

    def mean(text: str) -> torch.Tensor:
        tokens = relevance.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return model(input_ids=tokens).last_hidden_state[0].mean(dim=0)

    texts, asked = ["foxes", "a longer text about nothing at all"], ["describe foxes", "hens"]
    expected = [float(torch.cosine_similarity(mean(a), mean(b), dim=0)) for a, b in zip(texts, asked, strict=True)]
    assert relevance(texts, asked) == pytest.approx(expected, abs=1e-5)
    assert relevance(["hens"], ["hens"]) == pytest.approx([1.0])


def test_an_empty_response_is_about_nothing(folder: Path) -> None:
    assert Relevance(str(folder))(["", " \n"], ["hens", "hens"]) == [0.0, 0.0]
    assert Relevance(str(folder))(["", "hens"], ["hens", "hens"]) == pytest.approx([0.0, 1.0])


def test_texts_of_any_number_and_length_are_read_as_far_as_the_model_goes(folder: Path, tmp_path: Path) -> None:
    relevance = Relevance(str(folder))
    assert relevance(["hens " * 9999], ["hens " * 999]) == pytest.approx([1.0])
    many = [f"fox {i}" for i in range(100)]
    assert relevance(many, many[::-1]) == pytest.approx(
        [relevance([a], [b])[0] for a, b in zip(many, many[::-1], strict=True)]
    )
    short = Relevance(str(saved(tmp_path / "short", max_position_embeddings=8)))
    assert short(["hens " * 99], ["hens " * 9]) == pytest.approx([1.0])


def test_a_tokenizer_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the sentence model .* has embeddings for 5"):
        Relevance(str(saved(tmp_path / "small", vocabulary=5)))
    shutil.copytree(folder, tmp_path / "unpadded")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "unpadded")
    with pytest.raises(InputError, match=r"no pad token"):
        Relevance(str(tmp_path / "unpadded"))
