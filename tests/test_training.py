"""Training on a bandit whose optimum is known and on CartPole: learning, order of events, stopping, resuming, what is
logged, and what is refused before anything is written."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from filelock import FileLock
from torch import Tensor

import rlhf
from rlhf import optimize
from rlhf.algorithms import ppo
from rlhf.algorithms.a2c import A2C
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.discrete_sac import DiscreteSAC
from rlhf.algorithms.grpo import GRPO
from rlhf.algorithms.off_policy import OffPolicy
from rlhf.algorithms.q_actor_critic import QActorCritic
from rlhf.algorithms.reinforce import Reinforce
from rlhf.algorithms.reinforce_pp import ReinforcePP
from rlhf.algorithms.replay_actor_critic import ReplayActorCritic
from rlhf.algorithms.rloo import RLOO
from rlhf.algorithms.sac import SAC
from rlhf.algorithms.td_lambda import TDLambda
from rlhf.control import collect as control_collect
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.evaluate import EvaluateEpisodes, Evaluator
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.control.tasks import Envs
from rlhf.core.random import uniforms
from rlhf.errors import InputError, NonFiniteError
from rlhf.lm.engine import Sampling
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.rewards import Rewards
from rlhf.loop import Duration, describe
from rlhf.rollout import Collected, Rollout
from rlhf.runs.clock import seconds_spent
from rlhf.runs.evaluate import Evaluation
from rlhf.runs.log import read_lines
from rlhf.runs.run import Phase, Run, Unsaved
from rlhf.runs.state import load_state
from rlhf.runs.stop import Stopped
from rlhf.task import Task
from rlhf.training import Result, require, spread, train, train_phase
from tests.batches import make_batch, make_rollout
from tests.given import Given
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
    train: Duration = Duration(updates=4, eval_every=2, checkpoint_every=2, record_samples=3)
    ppo: ppo.PPO = ppo.PPO(gae_lambda=1.0)
    optimize: optimize.Optimize = optimize.Optimize(learning_rate=0.1, schedule="linear", minibatches=2)


def attempt(
    folder: Path,
    settings: Settings = Settings(),
    *,
    bandit: Bandit | None = None,
    evaluate: Callable[[Any], Evaluation] = expected_return,
    resume: bool = False,
) -> TabularPolicy:
    policy = TabularPolicy(1, 3)
    train_phase(
        policy,
        Given(bandit or Bandit(), evaluate),
        settings.ppo,
        settings.optimize,
        duration=settings.train,
        phase=new_phase(folder, settings, resume=resume),
        seed=0,
    )
    return policy


def new_phase(folder: Path, settings: Any, *, resume: bool = False) -> Phase:
    return Run(folder, settings, resume=resume, accelerator=CPU, extendable={"train.updates", "train.steps"}).phase(
        "ppo"
    )


def updates(number: int, **changes: Any) -> Settings:
    return Settings(train=Duration(updates=number, eval_every=2, checkpoint_every=2), **changes)


def logged(folder: Path) -> list[dict[str, float]]:
    """Metrics without those of the clock."""
    rows = read_lines(folder / "ppo" / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith(CLOCK)} for row in rows]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "ppo" / "checkpoints").glob("[0-9]*"))


def at(update: int, act: Callable[[], Any]) -> Callable[[int], None]:
    return lambda index: act() if index == update else None


def test_the_loop_finds_the_best_arm(tmp_path):
    policy = attempt(tmp_path / "run", Settings(train=Duration(updates=25, eval_every=0, checkpoint_every=0)))
    first, *_, last = logged(tmp_path / "run")
    assert first["eval_return_mean"] < 0.1
    assert last["eval_return_mean"] > 1.95
    # The critic of a state visited twice an episode ends near the mean of what is left: 2 and 1.
    assert float(policy.critic.detach()) == pytest.approx(1.5, abs=0.1)


def test_evaluations_and_checkpoints_keep_their_pace(tmp_path):
    attempt(tmp_path / "run", Settings(train=Duration(updates=5, eval_every=2, checkpoint_every=2)))
    rows = logged(tmp_path / "run")
    assert [row["update"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["update"] for row in rows if "eval_return_mean" in row] == [0, 2, 4, 5]
    assert checkpoints(tmp_path / "run") == [4, 5]
    attempt(tmp_path / "rare", Settings(train=Duration(updates=5, eval_every=0, checkpoint_every=0)))
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


@pytest.mark.parametrize("saved", [True, False], ids=["folder", "no folder"])
def test_every_second_of_a_run_is_told_the_first_evaluation_and_checkpoints_too(tmp_path, saved):
    """Evaluations take 0.03 s and writing 0.02: at updates 0, 2 and 4 each, the last writing after the last row."""
    policy = Slow(1, 3)
    phase = new_phase(tmp_path / "run", Settings()) if saved else Unsaved("ppo", CPU)
    began = time.perf_counter()
    train_phase(policy, Given(Bandit(), slow), ppo.PPO(), Settings().optimize, duration=Settings().train, phase=phase,
                seed=0)  # fmt: skip
    took, rows = time.perf_counter() - began, phase.rows()
    assert [row.get("seconds/evaluate", 0.0) >= 0.03 for row in rows] == [True, False, True, False, True]
    assert not saved or min(rows[1]["seconds/other"], rows[3]["seconds/other"]) >= 0.02
    least = 3 * 0.03 + (2 * 0.02 if saved else 0.0)
    assert least <= beside_updates(rows)
    # Making the phase came before `began`.
    assert seconds_spent(rows) - rows[0]["seconds/other"] <= took


def test_the_time_of_a_run_is_that_of_all_its_processes_and_phases(tmp_path):
    """Two phases, the second of which is extended: what was told once is told again, and what is new comes on top."""

    def both(number: int, *, resume: bool) -> tuple[list[dict[str, float]], float]:
        began = time.perf_counter()
        run = Run(tmp_path / "run", updates(number), resume=resume, accelerator=CPU, extendable={"train.updates"})
        first, second = run.phase("first"), run.phase("second")
        policy = Slow(1, 3)
        for phase, duration in ((first, Duration(updates=2)), (second, updates(number).train)):
            train_phase(policy, Given(Bandit(), slow), ppo.PPO(), Settings().optimize, duration=duration, phase=phase,
                        seed=0)  # fmt: skip
        return [*first.rows(), *second.rows()], time.perf_counter() - began

    once, took = both(2, resume=False)
    # Two evaluations and three writings a phase; the last two come after the last row.
    assert beside_updates(once) >= 4 * 0.03 + 4 * 0.02
    assert seconds_spent(once) <= took
    again, _ = both(2, resume=True)
    assert again == once
    extended, took = both(4, resume=True)
    # Another process reads two policies of 0.04 s each, and evaluates once.
    assert extended[: len(once)] == once
    assert beside_updates(extended[len(once) :]) >= 2 * 0.04 + 0.03
    assert seconds_spent(extended[len(once) :]) <= took


def beside_updates(rows: list[dict[str, float]]) -> float:
    """Seconds of all that is no update, which on this bandit takes as long as the machine lets it."""
    return seconds_spent(rows) - sum(row.get(f"seconds/{part}", 0.0) for row in rows for part in ("collect", "update"))


class Slow(TabularPolicy):
    """As a large model is."""

    def save(self, folder: Path) -> None:
        time.sleep(0.02)
        super().save(folder)

    def load(self, folder: Path) -> None:
        time.sleep(0.04)
        super().load(folder)


def slow(policy: Any) -> Evaluation:
    time.sleep(0.03)
    return expected_return(policy)


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


class FrozenAndRunning(TabularPolicy):
    """A policy with a frozen weight and a running statistic."""

    def __init__(self) -> None:
        super().__init__(1, 3)
        self.base = torch.nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
        self.register_buffer("moments", torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["logits", "critic", "base", "moments"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("update", [1, 3])
def test_what_an_update_made_not_finite_is_neither_evaluated_nor_saved(tmp_path, name, bad, update):
    """In the last update before a checkpoint, and in the last of all: no later loss would have shown it."""
    policy = FrozenAndRunning()
    seen = []

    def evaluate(policy: Any) -> Evaluation:
        seen.append(bool(torch.isfinite(policy.state_dict()[name]).all()))
        return Evaluation({"eval_return_mean": 0.0}, [])

    class Breaking(ppo.PPO):
        """What it adapts after the last loss of an update is a tensor of the policy."""

        def adapt(self, state: dict[str, Tensor], metrics: dict[str, float]) -> dict[str, Tensor]:
            if int(state["update"]) == update:
                policy.state_dict()[name].view(-1)[0] = bad
            return state

    settings = Settings()
    with pytest.raises(NonFiniteError, match=rf"{name} is not finite after update {update + 1}\."):
        train_phase(
            policy,
            Given(Bandit(), evaluate),
            Breaking(gae_lambda=1.0),
            settings.optimize,
            duration=settings.train,
            phase=new_phase(tmp_path / "run", settings),
            seed=0,
        )
    assert all(seen)
    assert checkpoints(tmp_path / "run")[-1] == update - 1
    assert not (tmp_path / "run" / "ppo" / "final").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"adam_eps": 0.0},
        {"adam_eps": 0.0, "weight_decay": 0.1},
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_steps_that_cannot_be_taken_leave_no_model(tmp_path, changes, number):
    """Without epsilon a parameter whose gradient is 0 becomes 0 / 0: the critic, whose loss counts nothing."""
    settings = Settings(
        train=Duration(updates=number),
        ppo=ppo.PPO(gae_lambda=1.0, value_coef=0.0),
        optimize=optimize.Optimize(epochs=1, **changes),
    )
    with pytest.raises(NonFiniteError):
        attempt(tmp_path / "run", settings)
    assert checkpoints(tmp_path / "run") == [0]
    assert not (tmp_path / "run" / "ppo" / "final").exists()


def test_a_checkpoint_from_which_the_run_stops_again_is_passed_over(tmp_path, capsys):
    """Its state was broken before it was saved: only an older one leads on, and to the end it would have had."""
    whole = attempt(tmp_path / "whole", updates(6))

    def stop() -> None:
        raise NonFiniteError("loss is not finite.")

    # The run that wrote the checkpoint has not gone on from it, so the first resume does.
    for resume in (False, True):
        with pytest.raises(NonFiniteError):
            attempt(tmp_path / "run", updates(6), bandit=Bandit(event=at(3, stop)), resume=resume)
        assert checkpoints(tmp_path / "run") == [0, 2]
    begun: list[int] = []
    capsys.readouterr()
    resumed = attempt(tmp_path / "run", updates(6), bandit=Bandit(event=begun.append), resume=True)
    told = r"From .*00000002 the run stopped again: loss is not finite. Using the older .*00000000\."
    assert re.search(told, capsys.readouterr().out)
    assert begun == [0, 1, 2, 3, 4, 5]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    assert torch.equal(resumed.logits, whole.logits)


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
    constant = optimize.Optimize(learning_rate=0.1, minibatches=2)
    whole = attempt(tmp_path / "whole", updates(6, optimize=constant))
    attempt(tmp_path / "run", updates(4, optimize=constant))
    extended = attempt(tmp_path / "run", updates(6, optimize=constant), resume=True)
    assert torch.equal(extended.logits, whole.logits)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def uneven(**options: Any) -> Bandit:
    """Updates of 10, 20, 30, 10, 20, 30, ... pulls."""
    return Bandit(rows=lambda update: 5 * (update % 3 + 1), **options)


def counted(steps: int, **changes: Any) -> Settings:
    return Settings(train=Duration(steps=steps, eval_every=25, checkpoint_every=25), **changes)


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
    constant = optimize.Optimize(learning_rate=0.1, minibatches=2)
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


ADAPTIVE = updates(4, ppo=ppo.PPO(kl_coef=0.1, kl_target=0.05, gae_lambda=1.0))


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
    saved = load_state(tmp_path / "run" / "ppo" / "checkpoints" / "00000002")["method"]["kl_coef"]
    assert float(saved) == logged(tmp_path / "run")[-1]["kl_coef"]
    attempt(tmp_path / "run", ADAPTIVE, bandit=Bandit(reference=TabularPolicy(1, 3)), resume=True)
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")


def test_control_is_refused_in_mixed_precision():
    """Its rewards would be rounded to what the log-probabilities are in."""
    half = SimpleNamespace(mixed_precision="bf16", num_processes=1)
    with pytest.raises(InputError, match="mixed precision is bf16, but control computes in its weights' own"):
        train_phase(
            TabularPolicy(1, 3),
            Given(Bandit(), expected_return),
            ppo.PPO(),
            optimize.Optimize(),
            duration=Duration(updates=1),
            phase=Unsaved("ppo", half),
            seed=0,
        )


def test_updates_below_one_are_refused():
    with pytest.raises(ValueError, match="updates is 0; it must be at least 1"):
        Duration(updates=0)
    with pytest.raises(ValueError, match="updates is 3 and steps 50; give one"):
        Duration(updates=3, steps=50)
    with pytest.raises(ValueError, match="eval_every is -1"):
        Duration(updates=1, eval_every=-1)


@pytest.mark.parametrize(
    ("scale", "shift", "expected"),
    [(1.0, 0.0, 1.0), (1.0, -100.0, 1.0), (0.0, 5.0, 0.0), (0.5, 0.0, 0.75), (-1.0, 0.0, -3.0)],
    ids=["perfect", "shifted", "constant", "half", "opposite"],
)
def test_explained_variance_is_the_share_that_the_values_explain(scale, shift, expected):
    rollout = make_rollout(TabularPolicy(3, 2), rows=4, steps=3)
    batch = make_batch(TabularPolicy(3, 2), rows=4, steps=3)
    batch = batch._replace(values=scale * batch.returns + shift)
    assert describe(rollout, batch, {}, CPU)["explained_variance"] == pytest.approx(expected, abs=1e-9)


def test_explained_variance_is_0_where_the_returns_do_not_vary():
    rollout = make_rollout(TabularPolicy(3, 2), rows=4, steps=3)
    batch = make_batch(TabularPolicy(3, 2), rows=4, steps=3)
    batch = batch._replace(returns=torch.zeros_like(batch.returns))
    assert describe(rollout, batch, {}, CPU)["explained_variance"] == 0.0


# Under the same names whatever the policy acts in.
ALWAYS = {
    *("update", "steps", "episodes", "return_mean", "episode_length_mean", "reward_per_step"),
    *("loss", "policy_loss", "value_loss", "entropy", "approx_kl_k1", "approx_kl_k3", "clip_fraction"),
    *("ratio_max", "ratio_error_max", "kl_ref_k1", "kl_ref_k3", "kl_ref_per_episode", "kl_coef"),
    *("explained_variance", "td_error", "value_max", "advantage_mean", "advantage_std"),
    *("gradient_norm", "gradient_steps", "learning_rate", "memory_gib", "steps_per_second"),
    *("steps_per_second/collect", "steps_per_second/update"),
    *("seconds/collect", "seconds/update", "seconds/evaluate", "seconds/other"),
}
# What only one side can know.
CONTROL = {"eval_return_mean", "eval_return_std", "eval_length_mean"}
LANGUAGE = {
    *("score_mean", "score_std", "finished_fraction", "reward/length_and_bonus"),
    *("eval_score_mean", "eval_greedy_score_mean", "eval_length_mean", "eval_finished_fraction"),
    *("eval_kl_ref_per_episode", "eval_length_and_bonus", "eval_greedy_length_and_bonus"),
}


def one_update(folder: Path, policy: Any, collector: Any, evaluate: Any) -> dict[str, float]:
    settings = Settings(train=Duration(updates=1), ppo=ppo.PPO(kl_coef=0.1), optimize=optimize.Optimize(epochs=1))
    train_phase(
        policy,
        Given(collector, evaluate),
        settings.ppo,
        settings.optimize,
        duration=settings.train,
        phase=new_phase(folder, settings),
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
            config=control_collect.CollectSteps(num_envs=4, steps=64),
            gamma=1.0,
            seed=0,
            accelerator=CPU,
            reference=copy.deepcopy(control),
        ),
        Evaluator(
            "CartPole-v1",
            config=EvaluateEpisodes(episodes=2, sampled_episodes=0),
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


def refused(policy: Any, task: Task, method: Any, folder: Path, message: str) -> None:
    """Before anything is written or changed."""
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(InputError, match=message):
        train(policy, task, method, optimize.Optimize(epochs=1), updates=1, out=folder / "runs" / "mine")
    assert list(folder.iterdir()) == []
    after = policy.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def fragments(**changes: Any) -> Envs:
    """CartPole, a few steps of each environment at a time."""
    evaluated = EvaluateEpisodes(episodes=2, sampled_episodes=0)
    return Envs("CartPole-v1", evaluate=evaluated, **{"num_envs": 4, "steps": 8, **changes})


def test_a_class_in_the_place_of_a_method_is_refused(tmp_path):
    task = fragments()
    refused(task.policy(), task, ppo.PPO, tmp_path, r"method is <class .*PPO'>, which is no method; write PPO\(\)\.$")


def test_what_is_no_method_is_refused(tmp_path):
    task = fragments()
    refused(task.policy(), task, "ppo", tmp_path, r"method is 'ppo', which is no method\.$")


@dataclass(frozen=True, kw_only=True)
class WholeRows(ppo.PPO):
    rows: ClassVar[Any] = "episodes"


@pytest.mark.parametrize(
    "method",
    [Reinforce(), Reinforce(baseline="value"), ReinforcePP(), OffPolicy(ratios="trajectory"), WholeRows()],
    ids=lambda method: method.name,
)
def test_methods_of_whole_episodes_refuse_fragments(method, tmp_path):
    task = fragments()
    message = f"{method.name} with these settings learns from whole episodes, and rows .* are fragments; set episodes"
    refused(task.policy(), task, method, tmp_path, message)
    whole = fragments(episodes=4)
    require(whole.policy(), whole, method, optimize.Optimize(epochs=1), CPU)


@pytest.mark.parametrize("method", [GRPO(), RLOO(), ReinforcePP(baseline="group")], ids=lambda method: method.name)
def test_methods_of_groups_refuse_rows_that_are_alone(method, tmp_path):
    task = fragments(episodes=4)
    refused(task.policy(), task, method, tmp_path, f"{method.name} compares rows that share a start, and each row is")


@pytest.mark.parametrize(
    "method",
    [QActorCritic(), TDLambda(), Reinforce(baseline="least_variance"), DiscreteSAC()],
    ids=lambda method: method.name,
)
def test_methods_of_single_actions_refuse_a_policy_that_remembers(method, tmp_path):
    policy = TabularPolicy(1, 3)
    policy.memoryless = False
    message = f"{method.name} with these settings takes the gradient or the value of every single action"
    refused(policy, Given(Bandit(), expected_return), method, tmp_path, message)


@pytest.mark.parametrize(
    "method",
    [ppo.PPO(critic_warmup=1), A2C(critic=Critic(epochs=1)), Reinforce(baseline="value"), OffPolicy()],
    ids=lambda method: method.name,
)
def test_methods_that_fit_a_critic_refuse_a_policy_without_one(method, tmp_path):
    policy = TabularPolicy(1, 3)
    policy.has_critic = False
    message = f"critic is none, but {method.name} with these settings fits one; choose shared or separate"
    refused(policy, Given(Bandit(), expected_return), method, tmp_path, message)


@pytest.mark.parametrize("method", [SAC(), DiscreteSAC(), ReplayActorCritic()], ids=lambda method: method.name)
def test_methods_that_replay_refuse_a_policy_without_twin_critics(method, tmp_path):
    task = fragments()
    message = rf"{method.name} cannot train a ControlPolicy; make it with the task's policy\(replays=True\)"
    refused(task.policy(), task, method, tmp_path, message)


def test_twin_critics_are_refused_by_a_method_that_does_not_replay(tmp_path):
    task = fragments()
    message = r"ppo cannot train a TwinPolicy; make it with the task's policy\(\)"
    refused(task.policy(replays=True), task, ppo.PPO(), tmp_path, message)


@pytest.mark.parametrize(
    ("method", "env_id", "message"),
    [
        (DiscreteSAC(), "Pendulum-v1", "discrete_sac needs discrete as actions, and those of Pendulum-v1 are vectors"),
        (SAC(), "CartPole-v1", "sac needs vectors as actions, and those of CartPole-v1 are discrete"),
    ],
    ids=["discrete", "vectors"],
)
def test_actions_of_the_other_kind_are_refused(method, env_id, message, tmp_path):
    task = Envs(env_id, num_envs=4)
    refused(task.policy(replays=True), task, method, tmp_path, message)


def test_demonstrations_are_asked_for_where_there_are_rewards(tmp_path):
    task = fragments()
    refused(
        task.policy(),
        task,
        BehaviourCloning(),
        tmp_path,
        "clone learns from demonstrations, and here there are rewards",
    )


def weights(policy: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_without_a_folder_nothing_is_kept_and_both_evaluations_come_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = TabularPolicy(1, 3)
    first = expected_return(policy).metrics
    result = train(policy, Given(Bandit(), expected_return), ppo.PPO(), optimize.Optimize(learning_rate=0.1), updates=3)
    assert list(tmp_path.iterdir()) == []
    assert result.folder is None
    assert result.before == first
    assert result.after == expected_return(policy).metrics
    assert result.after["eval_return_mean"] > result.before["eval_return_mean"]


def test_with_a_folder_the_same_is_learned_and_kept(tmp_path):
    trained = []
    for out in (None, tmp_path / "run"):
        policy = TabularPolicy(1, 3)
        result = train(policy, Given(Bandit(), expected_return), ppo.PPO(), updates=3, out=out)
        trained.append((weights(policy), result.before, result.after))
    assert torch.equal(trained[0][0], trained[1][0])
    assert trained[0][1:] == trained[1][1:]
    assert result.folder == tmp_path / "run" / "ppo"
    kept = json.loads((tmp_path / "run" / "result.json").read_text())
    assert kept["eval_return_mean"] == result.after["eval_return_mean"]
    assert kept["eval_return_mean_before"] == result.before["eval_return_mean"]


def test_one_process_trains_twice(tmp_path):
    """As a notebook does: the second run is what it is alone, whatever the first was and in what precision."""
    remembers = TabularPolicy(1, 3)
    remembers.memoryless = False
    first = train(remembers, Given(Bandit(), expected_return), ppo.PPO(), updates=2, mixed_precision="bf16")
    assert first.after != first.before
    trained = []
    for name in ("one", "two"):
        task = fragments()
        policy = task.policy(hidden_sizes=(8,))
        start = weights(policy)
        train(policy, task, ppo.PPO(), optimize.Optimize(learning_rate=0.01), updates=2, out=tmp_path / name)
        assert not torch.equal(weights(policy), start)
        trained.append(weights(policy))
    assert torch.equal(*trained)


def on_cartpole(folder: Path, *, resume: bool = False, **how_long: int) -> tuple[torch.Tensor, Result]:
    task = fragments(normalise_rewards=True)
    policy = task.policy(hidden_sizes=(8,), normalise_observations=True)
    settings = optimize.Optimize(learning_rate=0.01, schedule="constant", epochs=2, minibatches=2)
    result = train(policy, task, ppo.PPO(gamma=0.97), settings, out=folder, resume=resume, seed=3, **how_long)
    return weights(policy), result


def test_a_finished_run_is_extended_as_if_it_had_been_longer_from_the_start(tmp_path):
    whole, long = on_cartpole(tmp_path / "whole", updates=7)
    part, short = on_cartpole(tmp_path / "run", updates=3)
    extended, again = on_cartpole(tmp_path / "run", updates=7, resume=True)
    assert not torch.equal(part, whole)
    assert torch.equal(extended, whole)
    assert short.before == again.before == long.before
    assert again.after == long.after
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    loaded, finished = on_cartpole(tmp_path / "run", updates=7, resume=True)
    assert torch.equal(loaded, whole)
    assert finished.after == long.after


def test_a_run_of_other_settings_is_not_resumed(tmp_path):
    on_cartpole(tmp_path / "run", updates=2)
    task = fragments()
    with pytest.raises(InputError, match="normalise_rewards"):
        train(task.policy(hidden_sizes=(8,)), task, ppo.PPO(gamma=0.97), updates=3, out=tmp_path / "run", resume=True)


def test_steps_are_counted_in_updates_where_rollouts_are_of_one_size(tmp_path):
    """250 steps at 32 an update are 8 updates; schedules follow the share of updates that is done."""
    task = fragments()
    settings = optimize.Optimize(learning_rate=0.01, schedule="linear")
    train(task.policy(hidden_sizes=(8,)), task, ppo.PPO(), settings, steps=250, evaluations=2, out=tmp_path / "run")
    rows = logged(tmp_path / "run")
    assert [row["steps"] for row in rows] == [32 * update for update in range(9)]
    assert [row["learning_rate"] for row in rows[1:]] == pytest.approx(
        [0.01 * (1 - n / 8) for n in range(8)], rel=1e-12
    )
    finished = json.loads((tmp_path / "run" / "ppo" / "final" / "finished.json").read_text())
    assert finished == {"updates": 8, "update": 8}


def test_steps_are_counted_as_steps_where_rollouts_are_of_any_size(tmp_path):
    train(TabularPolicy(1, 3), Given(uneven(), expected_return), ppo.PPO(), steps=85, out=tmp_path / "run")
    assert [row["steps"] for row in logged(tmp_path / "run")] == [0, 10, 30, 60, 70, 90]
    finished = json.loads((tmp_path / "run" / "ppo" / "final" / "finished.json").read_text())
    assert finished == {"steps": 85, "update": 5}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, InputError])
def test_the_folder_of_a_run_that_failed_is_given_back(error, tmp_path):
    """A notebook goes on after the error, and another process may have the folder."""

    def fail(policy: Any) -> Evaluation:
        raise error("here")

    with pytest.raises((error, Stopped)):
        train(TabularPolicy(1, 3), Given(uneven(), fail), ppo.PPO(), updates=2, out=tmp_path / "run")
    with FileLock(tmp_path / "run" / ".lock", timeout=0):
        assert not (tmp_path / "run" / ".lock.json").exists()


def test_evaluations_and_checkpoints_are_spread_over_the_run():
    assert spread(updates=100, steps=0, evaluations=10, checkpoints=4) == Duration(
        updates=100, eval_every=10, checkpoint_every=25
    )
    assert spread(updates=0, steps=1000, evaluations=3, checkpoints=0) == Duration(
        steps=1000, eval_every=334, checkpoint_every=0
    )


def test_settings_that_are_left_out_are_those_that_go_with_the_method() -> None:
    """REINFORCE takes one step on each batch, and with a baseline of the batch no whitening."""
    task = rlhf.Envs("CartPole-v1", episodes=4, evaluate=EvaluateEpisodes(episodes=2, sampled_episodes=0))
    result = rlhf.train(task.policy(hidden_sizes=(4,)), task, rlhf.Reinforce(), updates=1)
    assert result.after["eval_return_mean"] > 0.0
