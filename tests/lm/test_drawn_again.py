"""Dynamic sampling, responses that were cut, and what long ones lose: DAPO's ways of collecting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf
from rlhf.core.epochs import epoch_rows
from rlhf.errors import InputError
from rlhf.lm.settings import CollectResponses
from tests.lm.words import word_tokenizer
from tests.lm.worlds import ROWS, word_collector, word_policy


@pytest.fixture(scope="module")
def policy() -> Any:
    return word_policy()


def alike_on_some(bonus: list[int], completion_ids: list[list[int]]) -> list[float]:
    """On two of five prompts every response is paid alike."""
    return [1.0 if number in (1, 3) else float(sum(ids)) for number, ids in zip(bonus, completion_ids, strict=True)]


def test_groups_that_are_alike_give_way_to_the_next_prompts(policy: Any) -> None:
    collector = word_collector(alike_on_some, draw_again=5)
    order = epoch_rows(0, "prompts", num_rows=5, start=0, count=20).tolist()
    rollout, metrics, samples = collector.collect(policy, 0)
    assert not any(sample["row"] in (1, 3) for sample in samples)
    scores = rollout.rewards.sum(1).view(4, 3)
    assert bool((scores.amax(1) > scores.amin(1)).all())
    # Each goes on where the others have ended.
    asked, waiting = order[:4], 4
    while any(row in (1, 3) for row in asked):
        again = [i for i, row in enumerate(asked) if row in (1, 3)]
        for place in again:
            asked[place] = order[waiting]
            waiting += 1
    assert [sample["row"] for sample in samples[::3]] == asked
    assert metrics["prompts_given_way"] == waiting - 4
    assert rollout.sample_ids.tolist() == list(range(12))
    assert rollout.groups is not None
    assert rollout.groups.tolist() == [i // 3 for i in range(12)]
    # What comes next begins behind all of them.
    (_, _, following) = collector.collect(policy, 1)
    first = next(row for row in order[waiting : waiting + 4])
    assert following[0]["row"] == first or first in (1, 3)


def test_other_rows_stay_what_they_were(policy: Any) -> None:
    plain, _, before = word_collector(alike_on_some).collect(policy, 0)
    drawn, _, after = word_collector(alike_on_some, draw_again=5).collect(policy, 0)
    kept = [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one["row"] == other["row"]]
    assert 0 < len(kept) < 12
    for row in kept:
        length = int(plain.mask[row].sum())
        assert before[row] == after[row]
        assert torch.equal(plain.logprobs[row, :length], drawn.logprobs[row, :length])


def test_the_budget_is_kept_where_all_is_alike(policy: Any) -> None:
    calls = []

    def always(completion_ids: list[list[int]]) -> list[float]:
        calls.append(len(completion_ids))
        return [1.0] * len(completion_ids)

    _, metrics, samples = word_collector(always, draw_again=2).collect(policy, 0)
    assert calls == [12, 12, 12]
    assert metrics["prompts_given_way"] == 8.0
    assert len(samples) == 12


def test_draws_of_another_round_are_other_draws(policy: Any) -> None:
    """Of one prompt only: else the same response would come again."""
    seen: list[list[int]] = []

    def always(completion_ids: list[list[int]]) -> list[float]:
        seen.append([token for ids in completion_ids for token in ids])
        return [1.0] * len(completion_ids)

    from tests.lm.worlds import word_prompts

    collector = word_collector(
        always, draw_again=1, prompts=[word_prompts()[0]] * 4, prompts_per_rollout=4, responses_per_prompt=2
    )
    collector.collect(policy, 0)
    assert seen[0] != seen[1]


def test_a_resumed_run_goes_on_behind_the_prompts_that_gave_way(policy: Any) -> None:
    first = word_collector(alike_on_some, draw_again=3)
    first.collect(policy, 0)
    again = word_collector(alike_on_some, draw_again=3)
    again.load_state_dict(first.state_dict())
    assert [s["row"] for s in again.collect(policy, 1).samples] == [s["row"] for s in first.collect(policy, 1).samples]


def test_cut_responses_are_masked_and_counted(policy: Any) -> None:
    plain, _, _ = word_collector().collect(policy, 0)
    masked, metrics, samples = word_collector(cut_responses="masked").collect(policy, 0)
    finished = torch.tensor([sample["finished"] for sample in samples])
    assert 0 < int(finished.sum()) < len(samples)
    assert torch.equal(masked.mask.any(1), finished)
    assert torch.equal(masked.mask[finished], plain.mask[finished])
    assert metrics["episodes"] == int(finished.sum())


def test_responses_that_are_all_cut_end_the_run_after_a_while(policy: Any) -> None:
    collector = word_collector(cut_responses="masked", stop_tokens=(500,))
    for update in (0, 1):
        rollout, metrics, _ = collector.collect(policy, update)
        assert not rollout.mask.any()
        assert metrics == {"episodes": 0}
    with pytest.raises(InputError, match=r"every response of 3 updates .* cut by max_new_tokens \(6\)"):
        collector.collect(policy, 2)


def test_long_responses_lose_in_proportion(policy: Any) -> None:
    """DAPO, eq. 13: nothing up to L_max - L_cache, then linearly to -1 at L_max (here 6 tokens, over the last 4)."""
    plain, _, samples = word_collector().collect(policy, 0)
    paid, _, _ = word_collector(overlong_tokens=4, overlong_penalty=2.0).collect(policy, 0)
    lost = (plain.rewards - paid.rewards).sum(1)
    expected = [2.0 * max(0, sample["length"] - 2) / 4 for sample in samples]
    torch.testing.assert_close(lost, torch.tensor(expected, dtype=lost.dtype), rtol=0, atol=1e-6)
    assert {sample["length"] for sample in samples} > {6}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="draw_again is 2 and responses_per_prompt 1"):
        CollectResponses(draw_again=2)
    with pytest.raises(InputError, match="overlong_tokens is 9 and max_new_tokens 6"):
        rlhf.Prompts(ROWS, lambda responses: [0.0] * len(responses), max_new_tokens=6, overlong_tokens=9)


def test_a_run_with_all_of_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    def train(out: Path, updates: int, *, resume: bool = False) -> Any:
        policy = word_policy(dtype=torch.float32)
        policy.tokenizer = word_tokenizer()
        task = rlhf.Prompts(
            ROWS,
            alike_on_some,
            max_new_tokens=6,
            held_out=ROWS,
            prompts_per_rollout=4,
            responses_per_prompt=3,
            draw_again=2,
            overlong_tokens=3,
            missing_eos_penalty=0.5,
        )
        settings = rlhf.Optimize(learning_rate=1e-2, epochs=1)
        rlhf.train(
            policy, task, rlhf.GRPO(), settings, updates=updates, evaluations=1, checkpoints=1, out=out, resume=resume
        )
        return policy.state_dict()

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "parts", 2)
    parts = train(tmp_path / "parts", 4, resume=True)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
