"""Engines of the user's own: nothing else has to change for one, and what it hands back is checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.algorithms.ppo import PPO
from rlhf.errors import InputError, NonFiniteError
from rlhf.lm.engine import Generation, Sampling, require_engine, respond
from rlhf.lm.vllm import VLLM
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.log import read_lines
from rlhf.runs.run import Unsaved
from tests.lm.engines import Altered, Cacheless, coarse
from tests.lm.test_lm_evaluate import evaluator
from tests.lm.words import B
from tests.lm.worlds import CPU, improve, word_collector, word_policy, word_prompts
from tests.whole_loops import Speed, change, lm


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_without_a_cache_is_that_of_our_decoder(temperature: float) -> None:
    policy = word_policy(temperature=temperature)
    policy.make_reference()
    ours, theirs = (word_collector(engine=engine, use_reference=True) for engine in (None, Cacheless()))
    expected, got = ours.collect(policy, 0), theirs.collect(policy, 0)
    assert torch.equal(got.rollout.inputs["tokens"], expected.rollout.inputs["tokens"])
    for name in ("behaviour_logprobs", "logprobs", "values", "next_values", "ref_logprobs", "rewards"):
        got_tensor, tensor = getattr(got.rollout, name), getattr(expected.rollout, name)
        torch.testing.assert_close(got_tensor, tensor, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(got.rollout.dones, expected.rollout.dones)
    assert got.metrics == expected.metrics


def test_training_without_a_cache_is_that_with_our_decoder(tmp_path: Path) -> None:
    engine = Cacheless()
    ours = change(lm(tmp_path / "ours", updates=3, speed=Speed()))
    theirs = change(lm(tmp_path / "theirs", updates=3, speed=Speed(), engine=engine))
    # Three updates of 6 responses; before and after, 5 prompts answered sampled and greedily.
    assert engine.answered == 3 * 6 + 2 * 5 * 2
    assert ours.abs().max() > 1e-3
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-9)
    for row, expected in zip(
        *(read_lines(tmp_path / name / "ppo" / "metrics.jsonl") for name in ("theirs", "ours")), strict=True
    ):
        evaluated = [name for name in expected if name.startswith("eval_")]
        assert {name: row[name] for name in evaluated} == pytest.approx({name: expected[name] for name in evaluated})


def test_engine_that_is_not_exact_says_only_how_tokens_were_drawn() -> None:
    policy = word_policy(temperature=0.7)
    rollout = word_collector(engine=Altered(coarse)).collect(policy, 0).rollout
    exact = word_collector().collect(policy, 0).rollout
    with torch.no_grad():
        output = policy(rollout.inputs)
    torch.testing.assert_close(rollout.logprobs, output.logprobs, rtol=0, atol=1e-9)
    torch.testing.assert_close(rollout.values, output.values, rtol=0, atol=1e-9)
    assert rollout.values.dtype == rollout.next_values.dtype == rollout.rewards.dtype == torch.float64
    torch.testing.assert_close(rollout.next_values, exact.next_values, rtol=0, atol=1e-9)
    assert torch.equal(rollout.behaviour_logprobs, exact.behaviour_logprobs.bfloat16().float())
    assert (rollout.behaviour_logprobs - rollout.logprobs).abs().max() > 1e-4


def test_exact_engine_is_taken_at_its_word() -> None:
    rollout = word_collector(engine=Altered(coarse, exact=True)).collect(word_policy(), 0).rollout
    assert torch.equal(rollout.logprobs, rollout.behaviour_logprobs)


def test_exact_engine_without_a_critic_has_the_policy_score() -> None:
    policy = word_policy()
    engine = Altered(lambda generation: coarse(generation)._replace(values=None), exact=True)
    rollout = word_collector(engine=engine).collect(policy, 0).rollout
    with torch.no_grad():
        output = policy(rollout.inputs)
    torch.testing.assert_close(rollout.logprobs, output.logprobs, rtol=0, atol=1e-9)
    torch.testing.assert_close(rollout.values, output.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("engine", [Cacheless(), Altered(coarse)], ids=["cacheless", "coarse"])
def test_evaluation_is_that_with_our_decoder(engine: Any) -> None:
    policy = word_policy()
    policy.make_reference()
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.3)
    got, expected = evaluator(use_reference=True, engine=engine)(policy), evaluator(use_reference=True)(policy)
    assert got.metrics == pytest.approx(expected.metrics, abs=1e-9)
    for sample, ours in zip(got.samples, expected.samples, strict=True):
        assert sample.pop("kl") == pytest.approx(ours.pop("kl"), abs=1e-9)
        assert sample == ours


def answer(change: Any) -> Any:
    """What respond makes of our decoder's answer once it is changed; samples are called 10 and more."""
    prompts = [prompt.tokens for prompt in word_prompts()]
    sampling = Sampling(max_new_tokens=6, stop_tokens=(B,))
    ids = torch.arange(10, 10 + len(prompts))
    return respond(Altered(change), word_policy(), prompts, sampling=sampling, uniforms=None, sample_ids=ids)


def with_cell(tensor: torch.Tensor, index: Any, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("lengths", lambda x: x.tolist(), r"Altered returned lengths as list; it must be torch\.int64 of shape \(5,\)"),
        ("lengths", lambda x: x[:4], r"lengths as .* shape \(4,\) .* shape \(5,\), one a prompt"),
        ("lengths", lambda x: with_cell(x, 2, 0), r"Altered returned 0 tokens for sample 12; .* \(6\)"),
        ("lengths", lambda x: with_cell(x, 1, 7), r"Altered returned 7 tokens for sample 11"),
        ("tokens", lambda x: x[:, 1:], r"tokens as .* shape \(5, 5\) .* \(5, 6\), prompts by tokens"),
        ("tokens", lambda x: x.int(), r"tokens as torch\.int32 .* must be torch\.int64"),
        ("tokens", lambda x: x.to("meta"), r"tokens as .* on meta; .* on cpu"),
        ("finished", lambda x: x.long(), r"finished as torch\.int64 .* must be torch\.bool"),
        ("logprobs", lambda x: x.long(), r"logprobs as torch\.int64 .* must be floating point"),
        ("logprobs", lambda x: x.sum(dim=1), r"logprobs as .* shape \(5,\)"),
        ("logprobs", lambda x: x.exp(), r"Altered returned a log-probability of \d[\d.]*; it must be at most 0"),
        ("values", lambda x: x[:1], r"values as .* shape \(1, 6\)"),
    ],
)
def test_answer_of_the_wrong_form_is_refused_by_the_name_of_its_engine(field: str, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        answer(lambda g: g._replace(**{field: change(getattr(g, field))}))


def test_answer_of_another_type_is_refused() -> None:
    with pytest.raises(InputError, match=r"Altered\.generate returned tuple; it must return a Generation"):
        answer(tuple)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_logprobs_that_are_not_finite_are_named_by_engine_and_sample(value: float) -> None:
    with pytest.raises(NonFiniteError, match=r"Altered's logprobs is not finite in samples \[13\]"):
        answer(lambda g: g._replace(logprobs=with_cell(g.logprobs, (3, 0), value)))


def test_cells_after_a_response_may_hold_anything() -> None:
    def littered(generation: Any) -> Any:
        after = torch.arange(generation.tokens.shape[1]) >= generation.lengths.unsqueeze(1)
        assert after.any()
        return generation._replace(
            tokens=generation.tokens.masked_fill(after, -1),
            logprobs=generation.logprobs.masked_fill(after, torch.nan),
            values=generation.values.masked_fill(after, torch.nan),
        )

    for got, expected in zip(answer(littered), answer(lambda generation: generation), strict=True):
        assert torch.equal(got, expected)


def test_rounding_above_probability_one_is_no_error() -> None:
    answer(lambda g: g._replace(logprobs=with_cell(g.logprobs, (0, 0), 1e-4)))


def test_vllm_that_is_not_installed_is_asked_for_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match=re.escape("vllm is needed and not installed: pip install 'rlhf[vllm]'.")):
        VLLM()


@pytest.mark.parametrize("rounding", [None, 0.0, "small"])
def test_an_engine_says_how_far_its_logprobs_may_be_off(rounding: Any) -> None:
    engine = Altered(coarse)
    engine.rounding = rounding
    with pytest.raises(InputError, match="Altered does not say its `rounding`"):
        require_engine(engine)


@pytest.mark.parametrize(("off", "refused"), [(0.5e-3, False), (2e-3, True)])
def test_what_rounding_of_an_engine_does_not_explain_ends_the_first_update(off: float, refused: bool) -> None:
    def shifted(generation: Generation) -> Generation:
        return generation._replace(logprobs=generation.logprobs - off)

    engine = Altered(shifted)
    engine.rounding = 1e-3
    how: dict[str, Any] = {"duration": Duration(updates=1), "phase": Unsaved("ppo", CPU), "engine": engine}
    how["prompts_per_rollout"] = 4
    if not refused:
        improve(word_policy(), PPO(), Optimize(), **how)
        return
    with pytest.raises(
        RuntimeError, match=r"by 0\.002 nats an action in the mean, where rounding explains at most 0\.001"
    ):
        improve(word_policy(), PPO(), Optimize(), **how)
