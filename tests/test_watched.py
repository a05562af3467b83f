"""Tasks that a policy is evaluated by beside the one it is trained on: they are named, and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf
from rlhf.control.evaluate import EvaluateEpisodes
from rlhf.runs.log import read_lines
from tests.test_reuse import ROWS, envs, length, prompts
from tests.unmoved import policy_of

TEXTS = [{"text": "a b c"}, {"text": "d"}, {"text": "a b c d b a"}]


def others() -> dict[str, rlhf.Task]:
    more = rlhf.Prompts(ROWS[2:], length, max_new_tokens=5, held_out=ROWS[2:], prompts_per_rollout=1)
    return {"more": more, "texts": rlhf.Texts(TEXTS)}


def trained(task: rlhf.Task, out: Path, *, temperature: float = 0.7, **options: Any) -> list[dict[str, Any]]:
    policy = policy_of()
    policy.temperature = temperature
    rlhf.train(policy, task, rlhf.PPO(kl_coef=0.1), updates=2, evaluations=1, out=out, **options)
    return read_lines(out / "ppo" / "metrics.jsonl")


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if "second" not in name and "memory" not in name}


def test_what_is_only_watched_changes_nothing_and_has_names_of_its_own(tmp_path: Path) -> None:
    alone = trained(prompts(), tmp_path / "alone")
    watched = trained(rlhf.Watched(prompts(), others()), tmp_path / "watched")
    theirs = {"eval_more_score_mean", "eval_more_length_mean", "eval_more_greedy_length", "eval_texts_loss"}
    assert theirs <= watched[0].keys()
    assert theirs <= watched[-1].keys()
    mine = [
        {k: v for k, v in timeless(row).items() if not k.startswith(("eval_more", "eval_texts"))} for row in watched
    ]
    assert mine == [timeless(row) for row in alone]
    samples = [row for row in read_lines(tmp_path / "watched" / "ppo" / "samples.jsonl") if row["kind"] == "evaluation"]
    assert [row.get("of") for row in samples] == 2 * [None, None, "more", "more"]
    assert [row["prompt"] for row in samples if row.get("of")] == 2 * ["b a", "d c"]


def test_the_loss_of_texts_is_that_of_their_tokens_at_temperature_1(tmp_path: Path) -> None:
    """Each with its end, which a demonstration has; the first token is given."""
    found = trained(rlhf.Watched(prompts(), others()), tmp_path / "run")[0]["eval_texts_loss"]
    policy, total, count = policy_of(), 0.0, 0
    for row in TEXTS:
        tokens = torch.tensor([*policy.tokenizer(row["text"])["input_ids"], policy.tokenizer.eos_token_id])
        logprobs = policy.model(input_ids=tokens[None]).logits[0].detach().log_softmax(-1)
        total -= float(logprobs[:-1].gather(1, tokens[1:, None]).sum())
        count += len(tokens) - 1
    assert found == pytest.approx(total / count, rel=1e-5)


def test_a_run_resumes_to_the_same_and_knows_what_it_was_watched_by(tmp_path: Path) -> None:
    whole = trained(rlhf.Watched(prompts(), others()), tmp_path / "whole")
    policy = policy_of()
    policy.temperature = 0.7
    task = rlhf.Watched(prompts(), others())
    method = rlhf.PPO(kl_coef=0.1)
    rlhf.train(policy, task, method, updates=1, evaluations=1, out=tmp_path / "parts")
    parts = trained(rlhf.Watched(prompts(), others()), tmp_path / "parts", resume=True)
    assert timeless(parts[-1]) == timeless(whole[-1])
    changed = {**others(), "texts": rlhf.Texts(TEXTS[::-1])}
    with pytest.raises(rlhf.InputError, match="texts: data"):
        trained(rlhf.Watched(prompts(), changed), tmp_path / "parts", resume=True)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (rlhf.Texts([{"words": "a"}]), "demonstrations need text"),
        # They would learn, and be read, at another temperature than the task that is trained on.
        (rlhf.Demonstrations(TEXTS), r"take rlhf.Texts\(data\)"),
        (envs(), "the policy is for CausalLM, but CartPole-v1 has"),
    ],
    ids=["no texts", "demonstrations", "environments"],
)
def test_what_cannot_be_measured_is_refused_before_a_folder_is_made(
    task: rlhf.Task, message: str, tmp_path: Path
) -> None:
    with pytest.raises(rlhf.InputError, match=message):
        trained(rlhf.Watched(prompts(), {"other": task}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_environments_may_watch_too_and_keep_no_episodes_in_the_place_of_the_tasks_own(tmp_path: Path) -> None:
    more = EvaluateEpisodes(episodes=3, sampled_episodes=0)
    for name, also in (("alone", {}), ("watched", {"more": rlhf.Envs("CartPole-v1", evaluate=more)})):
        task = envs()
        watched = rlhf.Watched(task, also)
        rlhf.train(task.policy(hidden_sizes=(4,)), watched, rlhf.PPO(), steps=32, out=tmp_path / name)
    rows = read_lines(tmp_path / "watched" / "ppo" / "metrics.jsonl")
    assert {"eval_return_mean", "eval_more_return_mean"} <= rows[-1].keys()
    alone, beside = (tmp_path / name / "ppo" / "episodes-0.safetensors" for name in ("alone", "watched"))
    assert alone.read_bytes() == beside.read_bytes()
