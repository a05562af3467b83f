"""The classifiers and distinct-2 against numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from rlhf.errors import InputError
from rlhf.lm.classify import ClassifierConfig, NaiveBayes, distinct_bigrams, labelled_texts, train_classifier
from rlhf.lm.reward_model import RewardModel
from tests.lm.words import EOS, WORDS, word_tokenizer


def test_naive_bayes_is_the_hand_count():
    bayes = NaiveBayes(["a b", "a", "b b"], [1, 1, 0])
    # Features: a, b, "a b", "b b". Positive: a 2, b 1, "a b" 1; negative: b 2, "b b" 1. One more of each of the four.
    prior, a, b, a_b = (
        math.log(2),
        math.log((3 / 8) / (1 / 7)),
        math.log((2 / 8) / (3 / 7)),
        math.log((2 / 8) / (1 / 7)),
    )
    assert bayes(["a b"]) == [pytest.approx(prior + a + b + a_b, abs=1e-12)]


def test_naive_bayes_leaves_what_it_never_saw_out():
    bayes = NaiveBayes(["a", "b"], [1, 0])
    assert bayes(["c d", "a c"]) == [pytest.approx(0.0, abs=1e-12), pytest.approx(math.log(2), abs=1e-12)]


def test_naive_bayes_refuses_a_single_class():
    with pytest.raises(InputError, match=r"labels 0 and 1; it was given \[1\]"):
        NaiveBayes(["a", "b"], [1, 1])


@pytest.mark.parametrize(
    ("labels", "shown"), [([1, [1]], r"1, \[1\]"), ([1, 2], "1, 2"), ([1, 1], "1"), ([0, None], "0, None")]
)
def test_labels_are_both_of_two_classes(labels: list[object], shown: str, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a", "label": label}) for label in labels]
    (tmp_path / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError, match=f"both are needed; there is {shown}\\."):
        labelled_texts(str(tmp_path), "train")


def test_distinct_bigrams_counts_as_many_pairs_of_each_group_as_the_smallest_has():
    # Pairs: ab bc | cd, and ab ba ab | bb, of which the first three count: 3 of 3, and 2 of 3.
    assert distinct_bigrams(["a b c", "c d"], ["a b a b", "b b"]) == [1.0, pytest.approx(2 / 3)]


def test_distinct_bigrams_do_not_reach_across_texts():
    assert distinct_bigrams(["a b", "a b"]) == [0.5]
    assert distinct_bigrams(["a", "b"]) == [0.0]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Positive if and only if there is an `a`."""
    others = ["b c", "c d e", "e", "d d b", "b", "c"]
    return [f"{text} a" for text in others] + [f"{text} f" for text in others]


def train(folder: Path, texts: list[str]) -> str:
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=EOS,
        id2label={0: "positive"},
    )
    settings = ClassifierConfig(epochs=20, rows_per_step=5, learning_rate=1e-2)
    train_classifier(folder, config, word_tokenizer(), texts, [1] * 6 + [0] * 6, config=settings, seed=0)
    return str(folder)


def test_trained_classifier_is_a_reward_model_whose_sign_is_the_label(tmp_path: Path, texts: list[str]):
    model = RewardModel(train(tmp_path, texts), device=torch.device("cpu"))
    odds = model(["b d a", "b d f"], ["", ""], [True, True])
    assert odds[0] > 1
    assert odds[1] < -1


def test_training_a_classifier_is_deterministic_and_leaves_the_global_generator_alone(tmp_path: Path, texts: list[str]):
    before = torch.get_rng_state()
    one, other = (Path(train(tmp_path / name, texts), "model.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other
    assert torch.equal(torch.get_rng_state(), before)


def test_text_longer_than_the_classifiers_context_is_refused_before_it_is_trained(tmp_path: Path, texts: list[str]):
    with pytest.raises(InputError, match=r"the text 'b b .* has 17 tokens with its end, more than the classifier's 16"):
        train(tmp_path, [*texts[:-1], " ".join("b" * 16)])
    assert not list(tmp_path.iterdir())
