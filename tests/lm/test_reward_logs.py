"""What reward functions log beside their scores: columns of the samples, numbers of the update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf
from rlhf.errors import InputError
from rlhf.lm.rewards import Rewards
from rlhf.runs.log import read_lines
from tests.lm.test_endpoint import samples_of
from tests.lm.words import word_tokenizer
from tests.lm.worlds import ROWS, word_policy


def words_and_more(responses: list[str], log_extra: Any, log_metric: Any) -> list[float]:
    counts = [len(text.split()) for text in responses]
    log_extra("words", counts)
    log_extra("seen", torch.tensor([float(count) for count in counts]))
    log_metric("longest", max(counts))
    return [float(count) for count in counts]


def test_columns_and_numbers_are_kept_beside_the_scores() -> None:
    found = Rewards([words_and_more], None)(samples_of("a b", "c"))
    assert found.scores.tolist() == [2.0, 1.0]
    assert found.extra == {"words": [2, 1], "seen": [2.0, 1.0]}
    assert found.metrics == {"longest": [(2.0, 2)]}


def test_functions_that_take_everything_are_given_the_samples_alone() -> None:
    seen: dict[str, Any] = {}

    def everything(**given: Any) -> list[float]:
        seen.update(given)
        return [0.0]

    Rewards([everything], None)(samples_of("a", bonus=[1]))
    assert set(seen) == {"prompts", "responses", "completions", "completion_ids", "finished", "bonus"}


WRONG: dict[str, tuple[Any, str]] = {
    "too few": (lambda log_extra, **_: log_extra("x", [1]), r"log_extra\('x', ...\) was given 1 values for 2 samples"),
    "no list": (lambda log_extra, **_: log_extra("x", 3), "was given int for 2 samples"),
    "NaN": (lambda log_extra, **_: log_extra("x", [1.0, float("nan")]), "was given nan; a value must be a text"),
    "an object": (lambda log_extra, **_: log_extra("x", [1, object()]), "a value must be a text, a finite number"),
    "no number": (lambda log_metric, **_: log_metric("x", "much"), r"log_metric\('x', ...\) was given 'much'"),
    "infinite": (lambda log_metric, **_: log_metric("x", float("inf")), "it takes a finite number"),
}


@pytest.mark.parametrize(("function", "words"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_logged_is_refused_by_name(function: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Rewards([function], None)(samples_of("a", "b"))


def test_data_must_not_bear_their_names() -> None:
    with pytest.raises(InputError, match="have a column 'log_extra', which reward functions know otherwise"):
        Rewards([words_and_more], None).require_columns(["log_extra"])


@pytest.mark.parametrize("draw_again", [0, 1])
def test_a_run_shows_columns_in_its_samples_and_numbers_in_its_metrics(draw_again: int, tmp_path: Path) -> None:
    policy = word_policy(dtype=torch.float32)
    policy.tokenizer = word_tokenizer()
    task = rlhf.Prompts(
        ROWS,
        words_and_more,
        max_new_tokens=6,
        held_out=ROWS,
        prompts_per_rollout=4,
        responses_per_prompt=2,
        draw_again=draw_again,
    )
    rlhf.train(policy, task, rlhf.GRPO(), rlhf.Optimize(epochs=1), updates=1, evaluations=1, out=tmp_path)
    for sample in read_lines(tmp_path / "grpo" / "samples.jsonl"):
        assert sample["extra"]["words"] == len(sample["response"].split())
        assert sample["score"] == sample["extra"]["seen"]
    rows = read_lines(tmp_path / "grpo" / "metrics.jsonl")
    assert rows[1]["reward_metric/longest"] >= rows[1]["score_mean"]
    assert rows[0]["eval_reward_metric/longest"] >= rows[0]["eval_score_mean"]
