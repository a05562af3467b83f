"""Evaluation on held-out prompts: the same every time, sampled and greedy, metrics by hand from the records."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch

from rlhf.errors import InputError
from rlhf.lm.engine import Sampling
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.generate import Decoder
from rlhf.lm.rewards import Rewards
from tests.lm.words import EOS, D, word_tokenizer
from tests.lm.worlds import CPU, length_and_bonus, word_policy, word_prompts


def evaluator(
    *functions: Any, allow_none: bool = False, use_reference: bool = False, engine: Any = None, **sampling: Any
):
    return ResponseEvaluator(
        word_prompts(),
        word_tokenizer(),
        Rewards(functions or [length_and_bonus], allow_none=allow_none),
        sampling=Sampling(max_new_tokens=6, stop_tokens=(EOS, D), **sampling),
        seed=0,
        accelerator=CPU,
        micro_batch_cost=20,
        use_reference=use_reference,
        engine=engine,
    )


@pytest.fixture(scope="module")
def policy():
    return word_policy()


def test_no_more_is_decoded_side_by_side_than_the_budget_allows(policy, monkeypatch):
    """Prompts of up to 4 tokens and 6 more: two of them in 20."""
    rows, step = [], type(policy).step

    def seen(self, tokens, *rest):
        rows.append(len(tokens))
        return step(self, tokens, *rest)

    monkeypatch.setattr(type(policy), "step", seen)
    evaluator()(policy)
    assert max(len(prompt.tokens) for prompt in word_prompts()) == 4
    assert max(rows) == 2


def test_metrics_are_means_of_the_records(policy):
    def constant(completions):
        return [2.0] * len(completions)

    metrics, samples = evaluator(length_and_bonus, constant)(policy)
    expected = {
        "eval_score_mean": statistics.mean(s["score"] for s in samples),
        "eval_greedy_score_mean": statistics.mean(s["greedy_score"] for s in samples),
        "eval_length_mean": statistics.mean(s["length"] for s in samples),
        "eval_finished_fraction": sum(s["finished"] for s in samples) / 5,
        "eval_length_and_bonus": statistics.mean(s["score"] for s in samples) - 2.0,
        "eval_greedy_length_and_bonus": statistics.mean(s["greedy_score"] for s in samples) - 2.0,
        "eval_constant": 2.0,
        "eval_greedy_constant": 2.0,
    }
    assert metrics == pytest.approx(expected, abs=1e-9)
    assert [sample["row"] for sample in samples] == [0, 1, 2, 3, 4]
    assert samples[2]["prompt"] == "c <eos> d"


def test_evaluation_is_the_same_every_time(policy):
    evaluate = evaluator()
    assert evaluate(policy) == evaluate(policy)


def test_greedy_responses_are_the_likeliest_tokens(policy):
    _, samples = evaluator()(policy)
    prompts = [prompt.tokens for prompt in word_prompts()]
    sampling = Sampling(max_new_tokens=6, stop_tokens=(EOS, D))
    greedy = Decoder().generate(policy, prompts, uniforms=None, sampling=sampling)
    lengths = greedy.lengths.tolist()
    texts = [
        word_tokenizer().decode(row[:n], skip_special_tokens=True)
        for row, n in zip(greedy.tokens, lengths, strict=True)
    ]
    assert [sample["greedy_response"].strip() for sample in samples] == texts
    assert [sample["greedy_score"] for sample in samples] == [n + 10.0 * i for i, n in enumerate(lengths)]


def test_top_k_of_one_samples_the_greedy_response(policy):
    _, samples = evaluator(top_k=1)(policy)
    assert all(sample["response"] == sample["greedy_response"] for sample in samples)


def test_kl_is_zero_from_oneself_and_the_mean_of_log_ratios_after():
    policy = word_policy()
    policy.make_reference()
    evaluate = evaluator(use_reference=True)
    assert evaluate(policy).metrics["eval_kl_ref_per_episode"] == 0.0
    # The whole distribution is not what is drawn from.
    assert evaluator(use_reference=True, top_k=2)(policy).metrics["eval_kl_ref_per_episode"] > 0.01
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.3)
    metrics, samples = evaluate(policy)
    assert metrics["eval_kl_ref_per_episode"] == pytest.approx(statistics.mean(s["kl"] for s in samples), abs=1e-9)
    assert metrics["eval_kl_ref_per_episode"] > 0.01
    assert "eval_kl_ref_per_episode" not in evaluator()(policy).metrics


def test_kl_is_zero_from_oneself_in_whatever_precision_the_reference_is():
    policy = word_policy()
    policy.reference_dtype = torch.bfloat16
    policy.make_reference()
    assert evaluator(use_reference=True)(policy).metrics["eval_kl_ref_per_episode"] == 0.0


def test_samples_without_a_score_are_left_out(policy):
    def some(completions, bonus):
        return [None if number == 2 else float(number) for number in bonus]

    metrics, samples = evaluator(some, allow_none=True)(policy)
    kept = [sample for sample in samples if sample["row"] != 2]
    assert metrics["eval_score_mean"] == (0 + 1 + 3 + 4) / 4
    assert metrics["eval_length_mean"] == statistics.mean(sample["length"] for sample in kept)
    assert samples[2]["score"] is None


def test_each_function_is_measured_on_those_on_which_it_has_a_say(policy):
    def maths(bonus):
        return [float(number) if number % 2 else None for number in bonus]

    def code(bonus):
        return [None if number % 2 else 0.5 for number in bonus]

    def silent(bonus):
        return [None] * len(bonus)

    metrics, samples = evaluator(maths, code, silent, allow_none=True)(policy)
    assert metrics["eval_score_mean"] == pytest.approx((0.5 + 1 + 0.5 + 3 + 0.5) / 5)
    for prefix in ("eval_", "eval_greedy_"):
        assert (metrics[f"{prefix}maths"], metrics[f"{prefix}code"]) == (2.0, 0.5)
        assert f"{prefix}silent" not in metrics
    assert len(samples) == 5


def test_nothing_to_measure_is_an_error(policy):
    with pytest.raises(InputError, match="None for every evaluated sample"):
        evaluator(lambda completions: [None] * len(completions), allow_none=True)(policy)


def test_evaluation_needs_prompts():
    with pytest.raises(InputError, match="no prompts to evaluate on"):
        ResponseEvaluator(
            [],
            word_tokenizer(),
            Rewards([length_and_bonus]),
            sampling=Sampling(max_new_tokens=6),
            seed=0,
            accelerator=CPU,
            micro_batch_cost=20,
            use_reference=False,
        )
