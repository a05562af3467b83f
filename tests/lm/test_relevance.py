"""Relevance is the cosine of mean embeddings, whoever else is in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from rlhf.lm.relevance import Relevance
from rlhf.lm.tokenizers import byte_pair_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentences")
    tokenizer = byte_pair_tokenizer(["describe foxes please"], size=300)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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


def test_texts_of_any_length_are_read_as_far_as_the_model_goes(folder: Path) -> None:
    relevance = Relevance(str(folder))
    assert relevance(["hens " * 9999], ["hens " * 999]) == pytest.approx([1.0])
