"""The outer loop on a bandit whose optimum is known: learning, order of events, stopping, resuming, what is logged."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rlhf import optimize, train
from rlhf.algorithms import ppo
from rlhf.control import collect as control_collect
from rlhf.control import evaluate as control_evaluate
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.core.random import uniforms
from rlhf.errors import InputError
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.generate import Sampling
from rlhf.lm.rewards import Rewards
from rlhf.rollout import Collected, NonFiniteError, Rollout
from rlhf.runs.evaluate import Evaluation
from rlhf.runs.log import read_lines
from rlhf.runs.run import Phase, Run
from rlhf.runs.state import load_state
from rlhf.runs.stop import Stopped
from tests.lm.words import word_tokenizer
from tests.lm.worlds import length_and_bonus, word_collector, word_policy, word_prompts
from tests.tabular import TabularPolicy

CPU = Accelerator(cpu=True)
PAYS = torch.tensor([0.0, 0.2, 1.0], dtype=torch.float64)
ROWS, STEPS = 64, 2
CLOCK = ("seconds", "steps_per_second", "memory")


class Bandit:
    """Episodes of two pulls of three arms, each of which always pays the same; `rows` of them at each update."""

    def __init__(
        self,
        *,
        reference: TabularPolicy | None = None,
        event: Callable[[int], None] = lambda update: None,
        rows: Callable[[int], int] = lambda update: ROWS,
    ):
        self.reference, self.event, self.rows, self.pulls = reference, event, rows, 0

    @torch.no_grad()
    def collect(self, policy: Any, update: int) -> Collected:
        self.event(update)
        rows = self.rows(update)
        states = torch.zeros(rows, STEPS, dtype=torch.int64)
        odds = torch.softmax(policy.logits[0], dim=-1).cumsum(0)
        draws = uniforms(0, "pulls", update, torch.arange(rows), STEPS)
        inputs = {"states": states, "actions": torch.searchsorted(odds, draws, right=True).clamp(max=2)}
        output = policy(inputs)
        values = output.values
        rewards = PAYS[inputs["actions"]]
        self.pulls += rewards.numel()
        rollout = Rollout(
            inputs=inputs,
            behaviour_logprobs=output.logprobs,
            logprobs=output.logprobs,
            values=values,
            next_values=torch.cat([values[:, 1:], torch.zeros(rows, 1, dtype=torch.float64)], dim=1),
            rewards=rewards,
            dones=torch.tensor([False, True]).expand(rows, STEPS),
            mask=torch.ones(rows, STEPS, dtype=torch.bool),
            sample_ids=torch.arange(rows),
            costs=torch.full((rows,), STEPS),
            ref_logprobs=None if self.reference is None else self.reference(inputs).logprobs,
        )
        samples = [{"arm": arm} for arm in inputs["actions"][:, 0].tolist()]
        return Collected(rollout, {"return_mean": float(rewards.sum(1).mean()), "pulls": self.pulls}, samples)

    def state_dict(self) -> dict[str, Any]:
        return {"pulls": self.pulls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pulls = state["pulls"]


@torch.no_grad()
def expected_return(policy: Any) -> Evaluation:
    """Exactly, since the policy can be enumerated."""
    mean = STEPS * float(torch.softmax(policy.logits[0], dim=-1) @ PAYS)
    return Evaluation({"eval_return_mean": mean}, [{"eval_return_mean": mean}])


@dataclass(frozen=True, kw_only=True)
class Settings:
    train: train.Config = train.Config(updates=4, eval_every=2, checkpoint_every=2, record_samples=3)
    ppo: ppo.Config = ppo.Config(gae_lambda=1.0)
    optimize: optimize.Config = optimize.Config(learning_rate=0.1, schedule="linear", minibatches=2)


def attempt(
    folder: Path,
    settings: Settings = Settings(),
    *,
    bandit: Bandit | None = None,
    evaluate: Callable[[Any], Evaluation] = expected_return,
    resume: bool = False,
) -> TabularPolicy:
    policy = TabularPolicy(1, 3)
    train.train(
        policy=policy,
        algorithm=ppo,
        algorithm_config=settings.ppo,
        optimize_config=settings.optimize,
        collector=bandit or Bandit(),
        evaluate=evaluate,
        phase=new_phase(folder, settings, resume=resume),
        accelerator=CPU,
        config=settings.train,
        seed=0,
    )
    return policy


def new_phase(folder: Path, settings: Any, *, resume: bool = False) -> Phase:
    return Run(folder, settings, resume=resume, accelerator=CPU, extendable={"train.updates", "train.steps"}).phase(
        "ppo"
    )


def updates(number: int, **changes: Any) -> Settings:
    return Settings(train=train.Config(updates=number, eval_every=2, checkpoint_every=2), **changes)


def logged(folder: Path) -> list[dict[str, float]]:
    """Metrics without those of the clock."""
    rows = read_lines(folder / "ppo" / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(CLOCK)} for row in rows]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "ppo" / "checkpoints").iterdir())


def at(update: int, act: Callable[[], Any]) -> Callable[[int], None]:
    return lambda index: act() if index == update else None


def test_the_loop_finds_the_best_arm(tmp_path):
    policy = attempt(tmp_path / "run", Settings(train=train.Config(updates=25, eval_every=0, checkpoint_every=0)))
    first, *_, last = logged(tmp_path / "run")
    assert first["eval_return_mean"] < 0.1
    assert last["eval_return_mean"] > 1.95
    # The critic of a state visited twice an episode ends near the mean of what is left: 2 and 1.
    assert float(policy.critic.detach()) == pytest.approx(1.5, abs=0.1)


def test_evaluations_and_checkpoints_keep_their_pace(tmp_path):
    attempt(tmp_path / "run", Settings(train=train.Config(updates=5, eval_every=2, checkpoint_every=2)))
    rows = logged(tmp_path / "run")
    assert [row["update"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["update"] for row in rows if "eval_return_mean" in row] == [0, 2, 4, 5]
    assert checkpoints(tmp_path / "run") == [4, 5]
    attempt(tmp_path / "rare", Settings(train=train.Config(updates=5, eval_every=0, checkpoint_every=0)))
    assert [row["update"] for row in logged(tmp_path / "rare") if "eval_return_mean" in row] == [0, 5]
    assert checkpoints(tmp_path / "rare") == [0, 5]


def test_steps_samples_and_the_collectors_metrics_are_logged(tmp_path):
    attempt(tmp_path / "run")
    rows = logged(tmp_path / "run")
    assert [row["steps"] for row in rows] == [0, 128, 256, 384, 512]
    assert [row["pulls"] for row in rows[1:]] == [128, 256, 384, 512]
    samples = read_lines(tmp_path / "run" / "ppo" / "samples.jsonl")
    assert [sample["update"] for sample in samples if sample["kind"] == "training"] == [1] * 3 + [2] * 3 + [3] * 3 + [
        4
    ] * 3
    assert [sample["update"] for sample in samples if sample["kind"] == "evaluation"] == [0, 2, 4]


def test_schedules_follow_the_share_of_the_run_that_is_done(tmp_path):
    attempt(tmp_path / "run")
    assert [row["learning_rate"] for row in logged(tmp_path / "run")[1:]] == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_a_checkpoint_precedes_the_first_update(tmp_path):
    def fail(update: int) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        attempt(tmp_path / "run", bandit=Bandit(event=fail))
    (checkpoint,) = (tmp_path / "run" / "ppo" / "checkpoints").iterdir()
    saved = json.loads((checkpoint / "policy" / "policy.json").read_text())
    assert checkpoint.name == "00000000"
    assert saved["logits"] == TabularPolicy(1, 3).logits.tolist()
    assert [row["update"] for row in logged(tmp_path / "run")] == [0]


def test_sigterm_finishes_the_update_in_hand_saves_it_and_the_run_goes_on_as_if_nothing_had_been(tmp_path):
    whole = attempt(tmp_path / "whole", updates(6))
    killer = Bandit(event=at(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Stopped) as stopped:
        attempt(tmp_path / "run", updates(6), bandit=killer)
    assert stopped.value.status == 143
    assert [row["update"] for row in logged(tmp_path / "run")] == [0, 1, 2, 3]
    assert checkpoints(tmp_path / "run")[-1] == 3
    assert not (tmp_path / "run" / "ppo" / "final").exists()
    resumed = attempt(tmp_path / "run", updates(6), resume=True)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert torch.equal(resumed.logits, whole.logits)
    assert torch.equal(resumed.critic, whole.critic)


def test_a_signal_during_the_last_update_finishes_the_phase_and_still_stops(tmp_path):
    killer = Bandit(event=at(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Stopped):
        attempt(tmp_path / "run", bandit=killer)
    assert [row["update"] for row in logged(tmp_path / "run")] == [0, 1, 2, 3, 4]
    untouched = Bandit(event=lambda update: pytest.fail("a finished phase acted again"))
    attempt(tmp_path / "run", bandit=untouched, resume=True)


def test_a_signal_during_the_last_evaluation_stops_too(tmp_path):
    calls = []

    def evaluate(policy: Any) -> Evaluation:
        calls.append(policy)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return expected_return(policy)

    with pytest.raises(Stopped):
        attempt(tmp_path / "run", evaluate=evaluate)
    assert (tmp_path / "run" / "ppo" / "final" / "finished.json").exists()


def test_signals_are_the_systems_again_after_training(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    attempt(tmp_path / "run", updates(1))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_finished_phase_only_loads_its_final_policy(tmp_path):
    trained = attempt(tmp_path / "run")
    before = (tmp_path / "run" / "ppo" / "metrics.jsonl").read_bytes()
    untouched = Bandit(event=lambda update: pytest.fail("a finished phase acted again"))
    loaded = attempt(tmp_path / "run", bandit=untouched, resume=True)
    assert torch.equal(loaded.logits, trained.logits)
    assert (tmp_path / "run" / "ppo" / "metrics.jsonl").read_bytes() == before


def test_a_finished_phase_goes_on_when_it_is_given_more_updates(tmp_path):
    constant = optimize.Config(learning_rate=0.1, minibatches=2)
    whole = attempt(tmp_path / "whole", updates(6, optimize=constant))
    attempt(tmp_path / "run", updates(4, optimize=constant))
    extended = attempt(tmp_path / "run", updates(6, optimize=constant), resume=True)
    assert torch.equal(extended.logits, whole.logits)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def uneven(**options: Any) -> Bandit:
    """Updates of 10, 20, 30, 10, 20, 30, ... pulls."""
    return Bandit(rows=lambda update: 5 * (update % 3 + 1), **options)


def counted(steps: int, **changes: Any) -> Settings:
    return Settings(train=train.Config(steps=steps, eval_every=25, checkpoint_every=25), **changes)


def test_a_run_counted_in_steps_ends_with_the_update_that_reaches_them(tmp_path):
    attempt(tmp_path / "run", counted(85), bandit=uneven())
    rows = logged(tmp_path / "run")
    assert [row["steps"] for row in rows] == [0, 10, 30, 60, 70, 90]
    # Evaluations and checkpoints follow the updates that pass 25, 50, 75, and the last.
    assert [row["steps"] for row in rows if "eval_return_mean" in row] == [0, 30, 60, 90]
    assert checkpoints(tmp_path / "run") == [3, 5]
    # Schedules follow the share of the steps that were taken before the update.
    rates = [0.1 * (1 - steps / 85) for steps in (0, 10, 30, 60, 70)]
    assert [row["learning_rate"] for row in rows[1:]] == pytest.approx(rates, rel=1e-12)


def test_a_run_counted_in_steps_goes_on_as_if_nothing_had_been(tmp_path):
    whole = attempt(tmp_path / "whole", counted(150), bandit=uneven())
    killer = uneven(event=at(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Stopped):
        attempt(tmp_path / "run", counted(150), bandit=killer)
    assert logged(tmp_path / "run")[-1]["steps"] == 70
    resumed = attempt(tmp_path / "run", counted(150), bandit=uneven(), resume=True)
    assert torch.equal(resumed.logits, whole.logits)
    # The stop brought a checkpoint, and no other difference.
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


@pytest.mark.parametrize("more", [88, 150])
def test_a_finished_run_counted_in_steps_can_be_given_more(more, tmp_path):
    """85 were reached with 90, which is enough for 88 too."""
    constant = optimize.Config(learning_rate=0.1, minibatches=2)
    whole = attempt(tmp_path / "whole", counted(more, optimize=constant), bandit=uneven())
    attempt(tmp_path / "run", counted(85, optimize=constant), bandit=uneven())
    extended = attempt(tmp_path / "run", counted(more, optimize=constant), bandit=uneven(), resume=True)
    assert torch.equal(extended.logits, whole.logits)
    training = [logged(tmp_path / name) for name in ("run", "whole")]
    assert [row["steps"] for row in training[0]] == [row["steps"] for row in training[1]]
    untouched = uneven(event=lambda update: pytest.fail("a finished phase acted again"))
    attempt(tmp_path / "run", counted(more, optimize=constant), bandit=untouched, resume=True)


def test_a_number_that_is_not_finite_leaves_the_last_good_checkpoint(tmp_path):
    broken = Bandit()

    def spoil(update: int) -> None:
        if update == 3:
            broken.reference = TabularPolicy(1, 3)
            broken.reference.logits.data.fill_(torch.nan)

    broken.event = spoil
    with pytest.raises(NonFiniteError, match="ref_logprobs is not finite in samples"):
        attempt(tmp_path / "run", bandit=broken)
    assert checkpoints(tmp_path / "run") == [0, 2]


ADAPTIVE = updates(4, ppo=ppo.Config(kl_coef=0.1, kl_target=0.05, gae_lambda=1.0))


def test_the_kl_coefficient_is_steered_by_the_kl_that_is_logged(tmp_path):
    attempt(tmp_path / "run", ADAPTIVE, bandit=Bandit(reference=TabularPolicy(1, 3)))
    coefficient = 0.1
    for row in logged(tmp_path / "run")[1:]:
        assert row["kl_ref_per_episode"] == pytest.approx(STEPS * row["kl_ref_k1"], abs=1e-12)
        error = min(max(row["kl_ref_per_episode"] / 0.05 - 1.0, -0.2), 0.2)
        coefficient *= 1.0 + 0.1 * error
        assert row["kl_coef"] == pytest.approx(coefficient, rel=1e-12)
    assert logged(tmp_path / "run")[1]["kl_ref_per_episode"] == 0.0
    assert coefficient != pytest.approx(0.1)


def test_the_kl_coefficient_is_part_of_the_checkpoint(tmp_path):
    attempt(tmp_path / "whole", ADAPTIVE, bandit=Bandit(reference=TabularPolicy(1, 3)))
    killer = Bandit(reference=TabularPolicy(1, 3), event=at(1, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(Stopped):
        attempt(tmp_path / "run", ADAPTIVE, bandit=killer)
    saved = load_state(tmp_path / "run" / "ppo" / "checkpoints" / "00000002")["algorithm"]["kl_coef"]
    assert float(saved) == logged(tmp_path / "run")[-1]["kl_coef"]
    attempt(tmp_path / "run", ADAPTIVE, bandit=Bandit(reference=TabularPolicy(1, 3)), resume=True)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def test_control_is_refused_in_mixed_precision(tmp_path):
    """Its rewards would be rounded to what the log-probabilities are in."""
    half = SimpleNamespace(mixed_precision="bf16")
    with pytest.raises(InputError, match="mixed precision is bf16, but control computes in its weights' own"):
        train.train(
            policy=TabularPolicy(1, 3),
            algorithm=ppo,
            algorithm_config=ppo.Config(),
            optimize_config=optimize.Config(),
            collector=Bandit(),
            evaluate=expected_return,
            phase=new_phase(tmp_path / "run", Settings()),
            accelerator=half,
            config=train.Config(updates=1),
            seed=0,
        )


def test_updates_below_one_are_refused():
    with pytest.raises(ValueError, match="updates is 0; it must be at least 1"):
        train.Config(updates=0)
    with pytest.raises(ValueError, match="updates is 3 and steps 50; give one"):
        train.Config(updates=3, steps=50)
    with pytest.raises(ValueError, match="eval_every is -1"):
        train.Config(updates=1, eval_every=-1)


# Under the same names whatever the policy acts in.
ALWAYS = {
    *("update", "steps", "episodes", "return_mean", "episode_length_mean", "reward_per_step"),
    *("loss", "policy_loss", "value_loss", "entropy", "approx_kl_k1", "approx_kl_k3", "clip_fraction"),
    *("ratio_max", "ratio_error_max", "kl_ref_k1", "kl_ref_k3", "kl_ref_per_episode", "kl_coef"),
    *("explained_variance", "td_error", "value_max", "advantage_mean", "advantage_std"),
    *("gradient_norm", "gradient_steps", "learning_rate", "memory_gib", "steps_per_second"),
    *("steps_per_second/collect", "steps_per_second/update", "seconds/collect", "seconds/update", "seconds/evaluate"),
}
# What only one side can know.
CONTROL = {"eval_return_mean", "eval_return_std", "eval_length_mean"}
LANGUAGE = {
    *("score_mean", "score_std", "finished_fraction", "reward/length_and_bonus"),
    *("eval_score_mean", "eval_greedy_score_mean", "eval_length_mean", "eval_finished_fraction"),
    *("eval_kl_ref_per_episode", "eval_length_and_bonus", "eval_greedy_length_and_bonus"),
}


def one_update(folder: Path, policy: Any, collector: Any, evaluate: Any) -> dict[str, float]:
    settings = Settings(train=train.Config(updates=1), ppo=ppo.Config(kl_coef=0.1), optimize=optimize.Config(epochs=1))
    train.train(
        policy=policy,
        algorithm=ppo,
        algorithm_config=settings.ppo,
        optimize_config=settings.optimize,
        collector=collector,
        evaluate=evaluate,
        phase=new_phase(folder, settings),
        accelerator=CPU,
        config=settings.train,
        seed=0,
    )
    return read_lines(folder / "ppo" / "metrics.jsonl")[-1]


def test_control_and_language_log_the_same_names(tmp_path):
    envs = make_envs("CartPole-v1", 4, num_processes=1)
    control = ControlPolicy(spaces_of(envs), PolicyConfig(), seed=0)
    row = one_update(
        tmp_path / "control",
        control,
        control_collect.EnvCollector(
            envs,
            config=control_collect.Config(num_envs=4, steps_per_rollout=64),
            gamma=1.0,
            seed=0,
            accelerator=CPU,
            reference=copy.deepcopy(control),
        ),
        control_evaluate.Evaluator(
            "CartPole-v1",
            config=control_evaluate.Config(episodes=2, sampled_episodes=0),
            seed=0,
            accelerator=CPU,
            cache=tmp_path / "episodes.safetensors",
        ),
    )
    language = word_policy()
    language.make_reference()
    evaluate = ResponseEvaluator(
        word_prompts(),
        word_tokenizer(),
        Rewards([length_and_bonus]),
        sampling=Sampling(max_new_tokens=6, stop_tokens=(0,)),
        seed=0,
        accelerator=CPU,
        micro_batch_cost=64,
        use_reference=True,
    )
    language_row = one_update(tmp_path / "language", language, word_collector(use_reference=True), evaluate)
    assert set(row) >= ALWAYS | CONTROL
    assert set(language_row) >= ALWAYS | LANGUAGE
    for each in (row, language_row):
        # Before the first step, the policy is its own reference.
        assert each["kl_ref_per_episode"] == pytest.approx(0.0, abs=1e-5)
        assert each["ratio_error_max"] < 1e-5
        assert each["approx_kl_k3"] == pytest.approx(0.0, abs=1e-6)
