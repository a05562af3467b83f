"""Two uses of one thing: what a policy, a task or a setting carries from one run into the next."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import rlhf
from rlhf.control.evaluate import EvaluateEpisodes
from rlhf.runs.log import read_lines
from tests.lm.words import word_tokenizer
from tests.lm.worlds import word_policy

FEW = EvaluateEpisodes(episodes=2, sampled_episodes=0)
ROWS = [{"prompt": "a b"}, {"prompt": "c d"}, {"prompt": "b a"}, {"prompt": "d c"}]


def length(responses: list[str], **_: Any) -> list[float]:
    return [float(len(response)) for response in responses]


def prompts(**options: Any) -> rlhf.Prompts:
    return rlhf.Prompts(ROWS, length, max_new_tokens=3, held_out=ROWS[:2], prompts_per_rollout=2, **options)


def word_model() -> Any:
    policy = word_policy()
    policy.tokenizer = word_tokenizer()
    return policy


def envs(**options: Any) -> rlhf.Envs:
    return rlhf.Envs("CartPole-v1", num_envs=2, steps=8, evaluate=FEW, **options)


def test_a_policy_that_was_trained_since_is_no_reference_for_a_resumed_run(tmp_path: Path) -> None:
    policy, method = word_model(), rlhf.PPO(kl_coef=0.1)
    rlhf.train(policy, prompts(), method, updates=1, out=tmp_path / "run")
    with pytest.raises(rlhf.InputError, match="this object was trained since; give a policy that is loaded anew"):
        rlhf.train(policy, prompts(), method, updates=2, out=tmp_path / "run", resume=True)
    rlhf.train(word_model(), prompts(), method, updates=2, out=tmp_path / "run", resume=True)


def test_the_policy_that_is_trained_may_be_its_own_reference_and_does_not_take_it_along(tmp_path: Path) -> None:
    task = envs()
    policy = task.policy(hidden_sizes=(4,))
    method, settings = rlhf.PPO(kl_coef=0.1), rlhf.Optimize(learning_rate=0.05)
    for name, reference in (("same", policy), ("copy", copy.deepcopy(policy))):
        learner = policy if name == "same" else task.policy(hidden_sizes=(4,))
        charged = envs(reference=reference)
        rlhf.train(learner, charged, method, settings, updates=3, out=tmp_path / name)
    same, apart = (
        [row["kl_ref_k3"] for row in read_lines(tmp_path / name / "ppo" / "metrics.jsonl") if "kl_ref_k3" in row]
        for name in ("same", "copy")
    )
    assert same == apart
    assert same[-1] > 1e-4


def test_half_precision_ends_with_its_run() -> None:
    policy = word_model().float()
    tokens = {"tokens": torch.tensor([[1, 2, 3]]), "lengths": torch.tensor([3]), "actions": torch.tensor([[2]])}
    before = policy(tokens).logprobs
    rlhf.train(policy, prompts(), rlhf.PPO(), rlhf.Optimize(learning_rate=1e-12), updates=1, mixed_precision="bf16")
    assert "_original_forward" not in vars(policy)
    torch.testing.assert_close(policy(tokens).logprobs, before, rtol=0, atol=1e-6)


def test_prompts_are_read_again_for_another_tokenizer() -> None:
    task, first, second = prompts(), word_model(), word_model()
    other = word_tokenizer()
    other.add_tokens(["a b"])
    second.model.resize_token_embeddings(len(other))
    second.tokenizer = other
    seen = []
    for policy in (first, second):
        task.require_measurable(policy, Accelerator(cpu=True))
        seen.append(task.split(0)[0][0].tokens)
    assert seen[0] == first.tokenizer("a b")["input_ids"]
    assert seen[1] == other("a b")["input_ids"] != seen[0]


def test_no_evaluations_are_the_two_at_the_ends(tmp_path: Path) -> None:
    task = envs()
    rlhf.train(task.policy(), task, rlhf.PPO(), steps=64, evaluations=0, checkpoints=0, out=tmp_path / "run")
    rows = read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")
    assert [row["update"] for row in rows if "eval_return_mean" in row] == [0, 4]


def test_a_charge_that_a_task_gives_no_reference_for_is_refused() -> None:
    class NoReference(rlhf.Task):
        def __init__(self) -> None:
            self.task = envs()

        def prepare(self, policy: Any, here: rlhf.Here) -> None:
            self.task.prepare(policy, here)

        def collect(self, policy: Any, update: int, here: rlhf.Here) -> rlhf.Collected:
            return self.task.collect(policy, update, here)

    with pytest.raises(rlhf.InputError, match="ppo charges for the KL to a reference, and the task gives none"):
        rlhf.train(envs().policy(), NoReference(), rlhf.PPO(kl_coef=1.0), updates=1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 1}, "seed"),
        ({"mixed_precision": "bf16"}, "mixed_precision"),
        ({"task": lambda: rlhf.Prompts([*ROWS[1:], ROWS[0]], length, max_new_tokens=3, held_out=ROWS[:2],
                                       prompts_per_rollout=2)}, "data: the data"),
        ({"policy": lambda: hotter(word_model())}, "policy.temperature"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_resumed_run_is_the_same_run(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    rlhf.train(word_model(), prompts(), rlhf.PPO(), updates=1, out=tmp_path / "run")
    made = {name: value() if callable(value) else value for name, value in change.items()}
    policy, task = made.pop("policy", None) or word_model(), made.pop("task", None) or prompts()
    with pytest.raises(rlhf.InputError, match=what):
        rlhf.train(policy, task, rlhf.PPO(), updates=2, out=tmp_path / "run", resume=True, **made)


def hotter(policy: Any) -> Any:
    policy.temperature = 1.5
    return policy


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rlhf.train("gpt2", envs(), rlhf.PPO(), updates=1), "policy is str 'gpt2', which is no policy"),
        (lambda: rlhf.train(envs().policy(), rlhf.Envs, rlhf.PPO(), updates=1), "task is the class Envs"),
        (lambda: rlhf.train(envs().policy(), envs(), rlhf.PPO(), {"epochs": 1}, updates=1), "settings is dict"),
        (lambda: rlhf.train(envs().policy(), prompts(), rlhf.PPO(), updates=1), "which is no language model"),
        (lambda: rlhf.train(word_model(), envs(), rlhf.PPO(), updates=1), "the policy is for CausalLM, but CartPole"),
        (
            lambda: rlhf.train(rlhf.Envs("Acrobot-v1").policy(), envs(), rlhf.PPO(), updates=1),
            "observation_size=6.*but CartPole-v1 has",
        ),
        (lambda: rlhf.train(envs().policy(), envs(), rlhf.PPO(), updates=1, resume=True), "without `out` nothing"),
        (
            lambda: rlhf.train(envs().policy(), envs(), rlhf.PPO(), updates=1, mixed_precision="fp8"),
            "it must be 'no' or 'bf16'",
        ),
        (
            lambda: rlhf.train(envs(lag=1).policy(replays=True), envs(lag=1), rlhf.SAC(), updates=1),
            "have no meaning for methods with a replay buffer",
        ),
        (lambda: prompts(heldout=3), "no setting 'heldout'; did you mean held_out"),
        (lambda: envs(evaluat=FEW), "no setting 'evaluat'; did you mean evaluate"),
        (lambda: prompts(engine="vllm"), "engine is 'vllm'; it must be an object with a method `generate`"),
        (lambda: prompts(engine=SimpleNamespace(generate=print)), "does not say whether it is `exact`"),
        (lambda: rlhf.Prompts(None, length, max_new_tokens=3), "data is None; give a list of dicts"),
        (lambda: rlhf.Envs(SimpleNamespace), "not a gymnasium.Env"),
        (
            lambda: rlhf.train(
                word_model(),
                rlhf.Demonstrations([{"text": "a b"}] * 4, rows_per_update=2, held_out=-1),
                rlhf.BehaviourCloning(),
                updates=1,
            ),
            "held_out is -1; it must not be negative",
        ),
        (
            lambda: rlhf.train(
                word_model(),
                rlhf.Demonstrations([{"text": "a b"}] * 4, rows_per_update=2),
                rlhf.BehaviourCloning(),
                rlhf.Optimize(minibatches=3),
                updates=1,
            ),
            "has 2 rows, which make no 3 parts",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_no_folder(call: Any, message: str) -> None:
    with pytest.raises(rlhf.InputError, match=message):
        call()
