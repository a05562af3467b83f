"""Pairs and labels as people have them: what is the prompt, what the answers, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf.errors import InputError
from rlhf.lm.data import load_data
from rlhf.lm.preference_data import answer_rollout, ends_rollout, exchanged, preferred
from tests.lm.words import ASSISTANT, EOS, TEMPLATE, USER, A, B, C, D, E, word_tokenizer

TOKENIZER = word_tokenizer(template=TEMPLATE)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


USER_A, SAYS_B, SAYS_C = message("user", "a"), message("assistant", "b"), message("assistant", "c")
FORMS: dict[str, dict[str, Any]] = {
    "messages beside a prompt of messages": {"prompt": [USER_A], "chosen": [SAYS_B], "rejected": [SAYS_C]},
    "strings beside a prompt of messages": {"prompt": [USER_A], "chosen": "b", "rejected": "c"},
    "whole conversations": {"chosen": [USER_A, SAYS_B], "rejected": [USER_A, SAYS_C]},
    "whole conversations beside their prompt": {
        "prompt": [USER_A],
        "chosen": [USER_A, SAYS_B],
        "rejected": [USER_A, SAYS_C],
    },
    "whole conversations beside the prompt as a string": {
        "prompt": "a",
        "chosen": [USER_A, SAYS_B],
        "rejected": [USER_A, SAYS_C],
    },
}


@pytest.mark.parametrize("row", FORMS.values(), ids=FORMS)
def test_all_forms_of_a_conversation_are_the_same_tokens(row: dict[str, Any]) -> None:
    rollout = answer_rollout(preferred(load_data([row])), TOKENIZER, context=None)
    assert rollout.inputs["tokens"].tolist() == [[USER, A, ASSISTANT, B, EOS], [USER, A, ASSISTANT, C, EOS]]
    assert rollout.inputs["actions"].tolist() == [[3, 4], [3, 4]]
    assert rollout.rewards.tolist() == [[0, 0.5], [0, -0.5]]
    assert rollout.dones.tolist() == [[False, True]] * 2
    assert rollout.groups is not None
    assert rollout.groups.tolist() == [0, 0]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a b", "chosen": " c d", "rejected": " e"},
        {"chosen": "a b c d", "rejected": "a b e"},
    ],
    ids=["with a prompt", "with what both begin with"],
)
def test_strings_with_a_prompt_or_with_what_both_begin_with(row: dict[str, str]) -> None:
    rollout = answer_rollout(preferred(load_data([row])), TOKENIZER, context=None)
    assert rollout.inputs["tokens"].tolist() == [[A, B, C, D, EOS], [A, B, E, EOS, 0]]
    assert rollout.inputs["actions"].tolist() == [[2, 3, 4], [2, 3, 0]]
    assert rollout.mask.tolist() == [[True] * 3, [True, True, False]]


def test_a_shared_beginning_of_a_word_is_the_answers() -> None:
    (chosen, rejected) = preferred(load_data([{"chosen": "so it is helpful", "rejected": "so it is help"}]))
    assert chosen.data.rows == [{"prompt": "so it is", "completion": " helpful"}]
    assert rejected.data.rows == [{"prompt": "so it is", "completion": " help"}]


def test_margins_are_the_difference_of_what_both_are_paid() -> None:
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c", "margin": margin} for margin in (3, "0.5")]
    rollout = answer_rollout(preferred(load_data(rows)), TOKENIZER, context=None)
    assert rollout.rewards.sum(1).tolist() == [1.5, -1.5, 0.25, -0.25]
    scored = [{"prompt": "a", "chosen": " b", "rejected": " c", "score_chosen": 8.0, "score_rejected": 3.5}]
    assert [side.worth.tolist() for side in preferred(load_data(scored))] == [[2.25], [-2.25]]


def test_labels_of_every_spelling() -> None:
    labels = (True, False, 1, 0, "true", "False", 1.0, "0")
    rows = [{"prompt": "a", "completion": " b", "label": label} for label in labels]
    (side,) = preferred(load_data(rows))
    assert side.worth.tolist() == [1, -1, 1, -1, 1, -1, 1, -1]


def test_exchanged_answers_belong_to_the_next_other_prompt() -> None:
    rows = [
        {"prompt": prompt, "completion": f" {number}", "label": number % 2}
        for number, prompt in enumerate(["a", "a", "b", "c", "c", "a"])
    ]
    (side,) = preferred(load_data(rows))
    others = exchanged(side)
    assert [row["prompt"] for row in others.data.rows] == ["a", "a", "b", "c", "c", "a"]
    assert [row["completion"] for row in others.data.rows] == [" 2", " 2", " 3", " 5", " 5", " 2"]
    assert not others.worth.any()


def test_rows_of_a_reward_model_are_read_to_their_end() -> None:
    """Its one action comes after the last token, whatever the template writes behind the end of a turn."""
    rollout = ends_rollout(preferred(load_data([FORMS["whole conversations"]])), TOKENIZER, context=None)
    assert rollout.inputs["tokens"][0, :-1].tolist() == [USER, A, ASSISTANT, B, EOS, 13]
    assert rollout.inputs["actions"].tolist() == [[6], [6]]
    assert rollout.inputs["lengths"].tolist() == [7, 7]
    assert rollout.rewards.tolist() == [[0.5], [-0.5]]
    row = {"prompt": "a", "chosen": " b c", "rejected": " d"}
    plain = ends_rollout(preferred(load_data([row])), TOKENIZER, context=5)
    assert plain.inputs["tokens"][0, :-1].tolist() == [A, B, C, EOS]
    assert plain.inputs["actions"].tolist() == [[4], [3]]


GOOD = {"prompt": "a", "chosen": " b", "rejected": " c"}
REFUSED: dict[str, tuple[list[dict[str, Any]], str]] = {
    "other columns": ([{"text": "a"}], "columns text; preferences need chosen and rejected, with a prompt or"),
    "equal sides": ([GOOD, GOOD | {"rejected": " b"}], "row 1: chosen and rejected are equal"),
    "a missing side": ([GOOD, GOOD | {"chosen": ""}], "row 1 has an empty chosen"),
    "a side that is None": ([GOOD | {"rejected": None}], "row 0 has an empty rejected"),
    "no shared prompt": ([{"chosen": "a b", "rejected": "c d"}], "row 0: chosen and rejected share no prompt"),
    "half a word shared": ([{"chosen": "help", "rejected": "hello"}], "share no prompt: they begin with 'help'"),
    "no shared message": (
        [{"chosen": [USER_A, SAYS_B], "rejected": [message("user", "b"), SAYS_C]}],
        "share no prompt: their first messages differ",
    ),
    "a conversation that ends before": (
        [{"chosen": [USER_A, SAYS_B], "rejected": [USER_A]}],
        "one side ends where both are still the same",
    ),
    "a string and messages": ([GOOD | {"chosen": [SAYS_B]}], "chosen is list and rejected str; both must be strings"),
    "a number": ([GOOD | {"chosen": 3, "rejected": 4}], "chosen is int and rejected int; both must be strings"),
    "answers alone beside a string": (
        [{"prompt": "a", "chosen": [SAYS_B], "rejected": [SAYS_C]}],
        "the prompt is a string, and what was chosen are messages that begin with the assistant's",
    ),
    "a negative margin": ([GOOD | {"margin": -1}], "the margin of row 0 is -1; what was chosen must be better"),
    "scores that say otherwise": (
        [GOOD | {"score_chosen": 2, "score_rejected": 3}],
        "the margin of row 0 is -1; what was chosen must be better",
    ),
    "a margin that is no number": ([GOOD | {"margin": "much"}], "margin of row 0 is 'much'; it must be a finite"),
    "a margin of NaN": ([GOOD | {"margin": float("nan")}], "margin of row 0 is nan; it must be a finite number"),
    "one label only": ([{"prompt": "a", "completion": " b", "label": True}] * 2, "every label is true"),
    "a label of another kind": (
        [{"prompt": "a", "completion": " b", "label": "good"}],
        "the label of row 0 is 'good'; it must be true or false",
    ),
}


@pytest.mark.parametrize(("rows", "words"), REFUSED.values(), ids=REFUSED)
def test_data_that_say_nothing_are_refused(rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        preferred(load_data(rows))


def test_prompts_that_are_all_the_same_cannot_exchange_answers() -> None:
    rows = [{"prompt": "a", "completion": f" {word}", "label": word == "b"} for word in "bcd"]
    with pytest.raises(InputError, match="all rows have the same prompt"):
        exchanged(preferred(load_data(rows))[0])


def test_messages_name_the_side_and_the_row() -> None:
    rows = [GOOD, GOOD | {"rejected": " a" * 20}]
    with pytest.raises(InputError, match=r"rejected: row 1 has 22 tokens, more than the model's context of 16"):
        answer_rollout(preferred(load_data(rows)), TOKENIZER, context=16)
    with pytest.raises(InputError, match=r"rejected: row 1 has 22 tokens, and .* 22 must leave room for one more"):
        ends_rollout(preferred(load_data(rows)), TOKENIZER, context=22)


def test_a_row_may_tell_its_template_more() -> None:
    row = {"prompt": [USER_A], "chosen": "b", "rejected": "c", "chat_template_kwargs": {"nothing": 1}}
    with pytest.raises(InputError, match="reads nothing called 'nothing'"):
        answer_rollout(preferred(load_data([row])), TOKENIZER, context=None)


def test_values_are_float32_and_ids_distinct() -> None:
    rollout = answer_rollout(preferred(load_data([GOOD, GOOD])), TOKENIZER, context=None)
    assert rollout.rewards.dtype == torch.float32
    assert rollout.sample_ids.tolist() == [0, 1, 2, 3]
