"""Collecting with a language model: what is paid where, which token is last, and what is logged of it."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from rlhf.core.epochs import epoch_rows
from rlhf.errors import InputError
from rlhf.lm.answering import of_one_turn
from rlhf.lm.collect import Moments, PromptCollector
from rlhf.lm.data import load_data, prompt_rows
from rlhf.lm.engine import Generation, Sampling
from rlhf.lm.responses import score_responses
from rlhf.lm.rewards import Rewards
from tests.lm.words import EOS, TEMPLATE, WORDS, C, D, word_tokenizer
from tests.lm.worlds import CPU, half_precision, length_and_bonus, word_collector, word_policy, word_prompts


@pytest.fixture(scope="module")
def policy():
    return word_policy()


def test_prompts_follow_the_hashed_order_and_groups_stay_together(policy):
    collector = word_collector()
    order = epoch_rows(0, "prompts", num_rows=5, start=0, count=8).tolist()
    for update in (0, 1):
        rollout, _, samples = collector.collect(policy, update)
        assert [sample["row"] for sample in samples[::3]] == order[4 * update : 4 * update + 4]
        assert rollout.sample_ids.tolist() == list(range(12))
        assert rollout.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_responses_are_a_function_of_seed_and_update(policy):
    first, again = (word_collector().collect(policy, 3).rollout for _ in range(2))
    assert torch.equal(first.inputs["tokens"], again.inputs["tokens"])
    other = word_collector(seed=1).collect(policy, 3).rollout
    assert first.inputs["tokens"].shape != other.inputs["tokens"].shape or not torch.equal(
        first.inputs["tokens"], other.inputs["tokens"]
    )


def test_inputs_hold_prompt_then_response_and_actions_are_the_response(policy):
    rollout, _, samples = word_collector().collect(policy, 0)
    for row, sample in enumerate(samples):
        prompt = word_prompts()[sample["row"]].tokens
        length = sample["length"]
        assert rollout.inputs["tokens"][row, : len(prompt)].tolist() == prompt
        assert rollout.inputs["lengths"][row] == rollout.costs[row] == len(prompt) + length
        assert rollout.inputs["actions"][row, :length].tolist() == list(range(len(prompt), len(prompt) + length))
        assert rollout.mask[row].sum() == length


def test_score_is_paid_on_the_last_real_token_finished_or_cut(policy):
    """Bug 5 of the peers: one past EOS in padded rows, nowhere in cut ones."""
    rollout, _, samples = word_collector().collect(policy, 0)
    assert {sample["finished"] for sample in samples} == {True, False}
    for row, sample in enumerate(samples):
        expected = torch.zeros(rollout.mask.shape[1], dtype=torch.float64)
        expected[sample["length"] - 1] = sample["score"]
        assert torch.equal(rollout.rewards[row], expected)
        last = rollout.inputs["tokens"][row, rollout.inputs["lengths"][row] - 1]
        assert (int(last) in (EOS, D)) == sample["finished"]


def test_last_token_is_terminal_finished_or_cut(policy):
    rollout, _, samples = word_collector().collect(policy, 0)
    for row, sample in enumerate(samples):
        last = sample["length"] - 1
        assert rollout.dones[row].nonzero().flatten().tolist() == [last]
        assert rollout.next_values[row, last] == 0
        assert torch.equal(rollout.next_values[row, :last], rollout.values[row, 1 : last + 1])
        assert rollout.values[row, last] != 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_is_on_policy(temperature: float):
    policy = word_policy(temperature=temperature)
    rollout = word_collector().collect(policy, 0).rollout
    output = policy(rollout.inputs)
    torch.testing.assert_close(rollout.logprobs, output.logprobs, rtol=0, atol=1e-9)
    torch.testing.assert_close(rollout.values, output.values, rtol=0, atol=1e-9)
    assert torch.equal(rollout.logprobs, rollout.behaviour_logprobs)


def test_half_precision_is_scored_again_by_the_training_forward():
    policy, scored = word_policy(dtype=torch.float32), []
    handle = policy.register_forward_hook(lambda *_: scored.append(1))
    rollout = word_collector(accelerator=half_precision()).collect(policy, 0).rollout
    handle.remove()
    assert scored
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = policy(rollout.inputs)
    torch.testing.assert_close(rollout.logprobs, output.logprobs, rtol=0, atol=1e-2)
    # Together some rows share their prompt, which rounds otherwise: by a quarter of what both are from float32.
    torch.testing.assert_close(rollout.values, output.values, rtol=0, atol=2e-2)
    torch.testing.assert_close(
        rollout.next_values[:, :-1][~rollout.dones[:, :-1]], rollout.values[:, 1:][~rollout.dones[:, :-1]]
    )


def test_reference_is_scored_and_its_kl_is_zero_before_training(policy):
    policy.make_reference()
    rollout, _, samples = word_collector(use_reference=True).collect(policy, 0)
    torch.testing.assert_close(rollout.ref_logprobs, rollout.logprobs, rtol=0, atol=1e-9)
    assert all(abs(sample["kl"]) < 1e-8 for sample in samples)
    assert word_collector().collect(policy, 0).rollout.ref_logprobs is None


def test_missing_eos_penalty_asks_what_the_sampler_saw_end(policy):
    """Bug 7 of the peers: a prompt that holds EOS is no end, and a custom stop token is one."""
    plain = word_collector(stop_tokens=(C, D)).collect(policy, 0)
    charged = word_collector(stop_tokens=(C, D), missing_eos_penalty=5.0).collect(policy, 0)
    difference = (plain.rollout.rewards - charged.rollout.rewards).sum(dim=1).tolist()
    assert difference == [0.0 if sample["finished"] else 5.0 for sample in plain.samples]
    assert {sample["finished"] for sample in plain.samples} == {True, False}
    assert any(sample["prompt"] == "c <eos> d" and not sample["finished"] for sample in plain.samples)
    at_last = charged.rollout.rewards != plain.rollout.rewards
    assert not (at_last & ~plain.rollout.dones).any()
    assert [sample["score"] for sample in charged.samples] == [sample["score"] for sample in plain.samples]


def test_scores_are_divided_by_the_deviation_of_all_so_far(policy):
    collector = word_collector(normalise_scores=True)
    seen: list[float] = []
    for update in range(3):
        rollout, metrics, samples = collector.collect(policy, update)
        seen += [sample["score"] for sample in samples]
        paid = rollout.rewards.sum(dim=1)
        expected = torch.tensor([s["score"] for s in samples], dtype=torch.float64) / statistics.pstdev(seen)
        torch.testing.assert_close(paid, expected, rtol=0, atol=1e-9)
        assert metrics["score_mean"] == pytest.approx(statistics.mean(s["score"] for s in samples), abs=1e-9)
        assert metrics["return_mean"] == pytest.approx(expected.mean().item(), abs=1e-9)


def test_equal_scores_are_not_blown_up_by_their_deviation(policy):
    # Up to the rounding of float32, in which models score.
    collector = word_collector(lambda completions: [0.1, 0.10000001] * (len(completions) // 2), normalise_scores=True)
    for update in range(3):
        rollout = collector.collect(policy, update).rollout
        torch.testing.assert_close(
            rollout.rewards.sum(dim=1), torch.full((12,), 0.1, dtype=torch.float64), rtol=1e-6, atol=0
        )


def test_moments_join_like_one_set():
    scores = torch.tensor([1.0, 2.0, 4.0, 9.0, -3.0], dtype=torch.float64)
    joined = Moments().with_scores(scores[:2]).with_scores(scores[:0]).with_scores(scores[2:])
    assert joined.mean == pytest.approx(2.6, abs=1e-12)
    assert joined.scale == pytest.approx(statistics.pstdev(scores.tolist()), abs=1e-12)


def test_clip_bounds_what_is_paid_and_not_what_is_logged(policy):
    rollout, metrics, samples = word_collector(score_clip=7.0).collect(policy, 0)
    assert rollout.rewards.sum(dim=1).tolist() == [min(sample["score"], 7.0) for sample in samples]
    assert metrics["score_mean"] == pytest.approx(statistics.mean(sample["score"] for sample in samples))


def test_token_rewards_stay_on_their_tokens(policy):
    def ramp(completion_ids):
        return [[0.5 * (i + 1) for i in range(len(ids))] for ids in completion_ids]

    rollout = word_collector(ramp).collect(policy, 0).rollout
    steps = torch.arange(rollout.mask.shape[1], dtype=torch.float64) + 1
    assert torch.equal(rollout.rewards, 0.5 * steps * rollout.mask)


def test_metrics_are_means_over_episodes(policy):
    def constant(completions):
        return [2.0] * len(completions)

    collector = word_collector(length_and_bonus, constant, missing_eos_penalty=1.0)
    _, metrics, samples = collector.collect(policy, 0)
    scores, lengths = [s["score"] for s in samples], [s["length"] for s in samples]
    returns = [s["score"] - (not s["finished"]) for s in samples]
    expected = {
        "score_mean": sum(scores) / 12,
        "score_std": statistics.pstdev(scores),
        "return_mean": sum(returns) / 12,
        "reward_per_step": sum(returns) / sum(lengths),
        "episode_length_mean": sum(lengths) / 12,
        "finished_fraction": sum(s["finished"] for s in samples) / 12,
        "episodes": 12,
        "reward/length_and_bonus": sum(scores) / 12 - 2.0,
        "reward/constant": 2.0,
    }
    assert metrics == pytest.approx(expected, abs=1e-9)
    assert samples[0]["parts"] == {"length_and_bonus": scores[0] - 2.0, "constant": 2.0}


def test_none_takes_a_sample_out_of_loss_and_statistics(policy):
    def some(completions, bonus):
        return [None if number == 2 else float(number) for number in bonus]

    rollout, metrics, samples = word_collector(some, allow_none=True, normalise_scores=True).collect(policy, 0)
    out = [sample["row"] == 2 for sample in samples]
    assert any(out)
    assert (~rollout.mask.any(dim=1)).tolist() == out
    assert not rollout.dones[torch.tensor(out)].any()
    kept = [sample for sample in samples if sample["score"] is not None]
    assert metrics["episodes"] == len(kept) == 12 - sum(out)
    assert metrics["score_mean"] == pytest.approx(statistics.mean(sample["row"] for sample in kept))
    assert metrics["episode_length_mean"] == pytest.approx(statistics.mean(sample["length"] for sample in kept))
    assert metrics["return_mean"] == pytest.approx(1.0 * metrics["score_mean"] / metrics["score_std"])


def test_each_function_s_mean_is_over_those_on_which_it_had_a_say(policy):
    def maths(bonus):
        return [float(number) if number % 2 else None for number in bonus]

    def code(bonus):
        return [None if number % 2 else 0.5 for number in bonus]

    def silent(bonus):
        return [None] * len(bonus)

    collector = word_collector(maths, code, silent, allow_none=True)
    rollout, metrics, samples = collector.collect(policy, 0)
    assert rollout.mask.any(dim=1).all()
    odd = [sample["score"] for sample in samples if sample["row"] % 2]
    assert 0 < len(odd) < len(samples) == metrics["episodes"]
    assert metrics["reward/maths"] == pytest.approx(statistics.mean(odd))
    assert metrics["reward/code"] == 0.5
    assert "reward/silent" not in metrics
    assert [sample["parts"]["code"] for sample in samples] == [None if s["row"] % 2 else 0.5 for s in samples]


def test_none_for_every_sample_is_an_error(policy):
    with pytest.raises(InputError, match="None for every sample"):
        word_collector(lambda completions: [None] * len(completions), allow_none=True).collect(policy, 0)


def test_response_without_words_stays_a_sample():
    """Bug 20 of the peers: a rank that drops empty responses waits for ever for the others."""
    seen = []

    def reward(completions, completion_ids):
        seen.extend(zip(completions, completion_ids, strict=True))
        return [1.0] * len(completions)

    generation = Generation(
        tokens=torch.tensor([[EOS, 0], [C, EOS]]),
        lengths=torch.tensor([1, 2]),
        finished=torch.tensor([True, True]),
        logprobs=torch.zeros(2, 2),
        values=torch.zeros(2, 2),
    )
    responses = of_one_turn(word_prompts()[:2], generation, word_tokenizer())
    scores = score_responses(Rewards([reward]), word_prompts()[:2], responses, [0, 1], evaluating=False)
    # This tokenizer sets its words apart, the first from the prompt.
    assert responses.texts == ["", " c"]
    assert seen == [("", [EOS]), (" c", [C, EOS])]
    assert scores.rewards.tolist() == [[1, 0], [0, 1]]


def test_responses_of_one_token_make_a_rollout(policy):
    rollout, metrics, _ = word_collector(stop_tokens=tuple(range(len(WORDS)))).collect(policy, 0)
    assert rollout.mask.shape == (12, 1)
    assert rollout.dones.all()
    assert metrics["episode_length_mean"] == metrics["finished_fraction"] == 1.0


CHAT = [{"prompt": [{"role": "user", "content": "a b"}]}] * 4


def chat_prompts():
    return prompt_rows(load_data(CHAT), word_tokenizer(template=TEMPLATE), max_new_tokens=6, context=16)


def test_chat_prompts_get_their_completions_as_messages(policy):
    seen = []

    def reward(prompts, completions):
        seen.extend(completions)
        assert prompts[0] == [{"role": "user", "content": "a b"}]
        return [1.0] * len(completions)

    samples = word_collector(reward, prompts=chat_prompts()).collect(policy, 0).samples
    assert seen[0] == [{"role": "assistant", "content": samples[0]["response"]}]
    assert samples[0]["prompt"] == "user: a b assistant:"


def test_text_prompts_get_their_completions_as_strings(policy):
    seen = []

    def reward(completions):
        seen.extend(completions)
        return [1.0] * len(completions)

    samples = word_collector(reward).collect(policy, 0).samples
    assert seen[: len(samples)] == [sample["response"] for sample in samples]


@pytest.mark.parametrize("prompts", [word_prompts, chat_prompts])
def test_responses_are_plain_text_whatever_the_data_are(policy, prompts):
    seen = []

    def reward(responses, completion_ids):
        seen.extend(zip(responses, completion_ids, strict=True))
        return [-len(response) / 100 for response in responses]

    samples = word_collector(reward, prompts=prompts()).collect(policy, 0).samples
    assert [text for text, _ in seen[: len(samples)]] == [sample["response"] for sample in samples]
    for text, tokens in seen:
        words = [WORDS[token] for token in tokens if not WORDS[token].startswith("<")]
        # Text goes on from its prompt; an answer to messages stands for itself.
        assert text == ("".join(f" {word}" for word in words) if prompts is word_prompts else " ".join(words))


def test_state_survives_json(policy):
    first, second = word_collector(normalise_scores=True), word_collector(normalise_scores=True)
    first.collect(policy, 0)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert torch.equal(first.collect(policy, 1).rollout.rewards, second.collect(policy, 1).rollout.rewards)


def test_fewer_prompts_than_a_rollout_is_an_error_and_no_endless_loop():
    """Bug 13 of the peers."""
    with pytest.raises(InputError, match=r"there are 5 prompts, fewer than prompts_per_rollout \(6\)"):
        word_collector(prompts_per_rollout=6)


def test_prompts_must_divide_over_the_processes():
    accelerator = half_precision()
    accelerator.num_processes = 3
    with pytest.raises(InputError, match="3 processes cannot share evenly"):
        word_collector(accelerator=accelerator)


def test_reward_parameters_are_checked_before_anything_is_sampled():
    def reward(completions, labels):
        return []

    with pytest.raises(InputError, match="asks for 'labels'"):
        word_collector(reward)


def test_truncated_sampling_is_refused():
    config = word_collector().config
    with pytest.raises(InputError, match="top_k"):
        PromptCollector(
            word_prompts(),
            word_tokenizer(),
            Rewards([length_and_bonus]),
            sampling=Sampling(max_new_tokens=6, top_k=3),
            config=config,
            seed=0,
            accelerator=CPU,
            micro_batch_cost=20,
            use_reference=False,
        )


@pytest.mark.parametrize("wrong", [{"score_clip": 0.0}, {"missing_eos_penalty": -1.0}, {"responses_per_prompt": 0}])
def test_config_refuses_values_out_of_range(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        word_collector(**wrong)


def test_token_budget_of_a_forward_pass_changes_nothing(policy):
    policy.make_reference()
    one_by_one, together = (word_collector(use_reference=True) for _ in range(2))
    one_by_one.micro_batch_cost, together.micro_batch_cost = 1, 10**6
    first, second = (each.collect(policy, 0).rollout.ref_logprobs for each in (one_by_one, together))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-9)
