"""Texts as tokens and sampled tokens as texts: no space lost or gained between two, one BOS, stop strings seen."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from rlhf.lm.answering import of_one_turn
from rlhf.lm.data import demonstration_rollout, load_data, prompt_rows
from rlhf.lm.engine import Generation
from rlhf.lm.generate import _holds_stop
from rlhf.lm.responses import score_responses
from rlhf.lm.rewards import Rewards
from rlhf.lm.tokenizers import byte_pair_tokenizer, character_tokenizer
from tests.lm.words import BOS, A, B, sentencepiece_tokenizer, word_tokenizer

TOKENIZERS = {
    "sentencepiece": sentencepiece_tokenizer(),
    "bytes": byte_pair_tokenizer(["the answer is four and the cat sat"] * 3, size=300),
    "characters": character_tokenizer("abcdefghijklmnopqrstuvwxyz ."),
}


def read_by_rewards(tokenizer: Any, prompt: Any, tokens: list[int]) -> list[Any]:
    """What a reward function gets of one response: the prompt, the response, the completion."""
    seen: list[Any] = []

    def reward(prompts: list[Any], responses: list[str], completions: list[Any]) -> list[float]:
        seen.extend([prompts[0], responses[0], completions[0]])
        return [0.0]

    prompts = prompt_rows(load_data([{"prompt": prompt}]), tokenizer, max_new_tokens=1, context=None)
    nothing = torch.zeros(1, len(tokens))
    one = torch.tensor([len(tokens)])
    generation = Generation(torch.tensor([tokens]), one, torch.tensor([True]), nothing, nothing)
    score_responses(Rewards([reward]), prompts, of_one_turn(prompts, generation, tokenizer), [0], evaluating=False)
    return seen


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("completion", [" four", "four", " four and  the cat", "n", " "])
def test_prompt_and_response_are_the_text_that_was_written(name: str, completion: str):
    tokenizer = TOKENIZERS[name]
    whole = tokenizer("the answer is" + completion)["input_ids"]
    start = prompt_rows(load_data([{"prompt": "the answer is"}]), tokenizer, max_new_tokens=1, context=None)[0].tokens
    if whole[: len(start)] != start:
        pytest.skip("the tokenizer merges the completion's beginning into the prompt")
    prompt, response, shown = read_by_rewards(tokenizer, "the answer is", whole[len(start) :])
    assert prompt + response == "the answer is" + completion
    assert shown == response


def test_answer_to_messages_stands_for_itself():
    tokenizer = sentencepiece_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %} is"
    tokens = tokenizer(" four", add_special_tokens=False)["input_ids"]
    _, response, shown = read_by_rewards(tokenizer, [{"role": "user", "content": "the answer"}], tokens)
    assert response == tokenizer.decode(tokens)
    assert shown == [{"role": "assistant", "content": response}]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("prompt", "completion"), [("the answ", "er is four"), ("the answer ", "four"), ("the", " cat")]
)
def test_demonstration_is_its_prompt_and_its_completion(name: str, prompt: str, completion: str):
    tokenizer = TOKENIZERS[name]
    rows = load_data([{"prompt": prompt, "completion": completion}])
    inputs = demonstration_rollout(rows, tokenizer, context=None).inputs
    text = tokenizer.decode(inputs["tokens"][0], skip_special_tokens=True)
    assert text.strip() == prompt + completion


def test_text_that_brings_its_bos_gets_no_second():
    tokenizer = word_tokenizer(special="<bos> $A")
    template = "{{ bos_token }}{% for m in messages %} {{ m.content }}{% endfor %}"
    tokenizer.chat_template = template
    prompts: list[Any] = ["a b", "<bos> a b", [{"role": "user", "content": "a b"}]]
    for prompt in prompts:
        rows = prompt_rows(load_data([{"prompt": prompt}]), tokenizer, max_new_tokens=1, context=None)
        assert rows[0].tokens == [BOS, A, B]
    for row in ({"text": "<bos> a b"}, {"prompt": "<bos> a", "completion": " b"}):
        inputs = demonstration_rollout(load_data([row]), tokenizer, context=None).inputs
        assert inputs["tokens"][0, :3].tolist() == [BOS, A, B]
        assert (inputs["tokens"] == BOS).sum() == 1


def test_stop_string_is_seen_across_tokens_that_are_no_text():
    tokenizer = character_tokenizer("ab")
    a, b, padding = *tokenizer("ab")["input_ids"], 9
    tokens = torch.tensor([[a, *[padding] * 60, b], [b, *[padding] * 60, a]])
    assert _holds_stop(tokens, torch.tensor([True, True]), ["ab"], tokenizer).tolist() == [True, False]


def test_stop_string_with_a_space_is_seen_in_the_first_token():
    tokenizer = sentencepiece_tokenizer()
    tokens = torch.tensor([tokenizer("four", add_special_tokens=False)["input_ids"]])
    assert _holds_stop(tokens, torch.tensor([True]), [" four"], tokenizer).tolist() == [True]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_stop_strings_are_seen_where_the_whole_text_first_holds_one(name: str):
    """Random tokens, also such as the vocabulary lacks, against the text of all of them."""
    tokenizer, draws = TOKENIZERS[name], random.Random(0)
    stops = ["e c", "the", " a"]
    text = tokenizer("the cat the answer a cat is", add_special_tokens=False)["input_ids"]
    rows = [[draws.choice([*text, 10_000, 10_001]) for _ in range(24)] for _ in range(20)]
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    for row in rows:
        seen = None
        for length in range(1, 25):
            whole = tokenizer.decode([*letter, *row[:length]])[len(tokenizer.decode(letter)) :]
            seen = any(stop in whole for stop in stops)
            latest = _holds_stop(torch.tensor([row[:length]]), torch.tensor([True]), stops, tokenizer).item()
            assert latest == seen
            if seen:
                break
