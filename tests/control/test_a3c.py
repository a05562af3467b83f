"""A3C: a lone worker is A2C bit for bit, workers step one set of weights, what cannot be asynchronous is refused."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlhf import optimize
from rlhf.algorithms import a2c
from rlhf.algorithms.actor_critic import Critic
from rlhf.control import a3c, collect
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.core.random import derive_seed
from rlhf.errors import InputError
from rlhf.rollout import single_steps
from tests.control.worlds import CPU
from tests.learners import learner_of

JOB = a3c.Job(
    "CartPole-v1",
    steps=120,
    collect=collect.CollectSteps(num_envs=2, steps=5),
    method=a2c.A2C(gamma=0.9, entropy_coef=0.01),
    optimize=optimize.Optimize(learning_rate=1e-2, schedule="linear", epochs=1, whiten="none"),
    seed=3,
)


def policy_of(**config: Any) -> ControlPolicy:
    return ControlPolicy(spaces_of(make_envs("CartPole-v1", 1)), PolicyConfig(hidden_sizes=(8,), **config), seed=0)


def board() -> a3c.Board:
    context = multiprocessing.get_context("spawn")
    made = a3c.Board(context.Value("q", 0), context.Event(), context.Value("q", 0), context.SimpleQueue())
    made.running.set()
    return made


@pytest.mark.parametrize("critic_learning_rate", [0.0, 3e-3])
def test_a_lone_worker_is_a2c_bit_for_bit(critic_learning_rate: float) -> None:
    policy, by_hand, shared = policy_of(), policy_of(), board()
    settings = replace(JOB.optimize, critic_learning_rate=critic_learning_rate)
    a3c.work(0, policy, a3c.shared_moments(policy), shared, JOB._replace(optimize=settings))
    seed = derive_seed(JOB.seed, "a3c worker", 0)
    collector = collect.EnvCollector(
        make_envs("CartPole-v1", 2), config=JOB.collect, gamma=0.9, seed=seed, accelerator=CPU
    )
    optimizer = optimize.make_optimizer(by_hand, settings)
    for k in range(12):
        rollout = collector.collect(by_hand, k).rollout
        batch, _ = JOB.method.estimate(rollout, {})
        loss = JOB.method.objective({})
        where = {"seed": seed, "update_index": k, "progress": 10 * k / 120}
        optimize.update(learner_of(by_hand, settings, optimizer=optimizer, **where), single_steps(batch), loss)
    assert shared.steps.value == 120
    for ours, expected in zip(policy.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, expected)
    report = shared.reports.get()
    assert report["entropy"] > 0.6
    td_errors = rollout.rewards + 0.9 * rollout.next_values - rollout.values
    assert report["td_error"] == pytest.approx(float(td_errors.abs().mean()), abs=1e-6)
    assert report["value_max"] == pytest.approx(float(rollout.values.max()), abs=1e-6)
    assert report["advantage_std"] == pytest.approx(float(batch.advantages.std(correction=0)), abs=1e-6)


def test_two_workers_step_one_set_of_weights_and_moments() -> None:
    """Two optimizers that take turns move the weights as one that takes all steps."""
    policy, alone = policy_of(), policy_of()
    moments = a3c.shared_moments(policy)
    locals_ = [policy_of() for _ in range(2)]
    workers = [a3c.SharedOptimizer(policy, local, moments, JOB.optimize) for local in locals_]
    optimizer = optimize.make_optimizer(alone, JOB.optimize)
    for k in range(6):
        for local, own in zip(locals_[k % 2].parameters(), alone.parameters(), strict=True):
            local.grad = torch.full_like(local, (-1.5) ** k)
            own.grad = local.grad.clone()
        workers[k % 2].step()
        optimizer.step()
    for ours, expected in zip(policy.parameters(), alone.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_workers_in_processes_of_their_own_share_the_weights_and_moments_of_the_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every update of either worker counts in the moments that the parent made, and moves the parent's weights."""
    policy, made, rows = policy_of(), [], []
    start = [parameter.detach().clone() for parameter in policy.parameters()]

    def watched(of: ControlPolicy, make: Any = a3c.shared_moments) -> list[dict[str, torch.Tensor]]:
        made.extend(make(of))
        return made

    monkeypatch.setattr(a3c, "shared_moments", watched)
    job = JOB._replace(steps=100, optimize=replace(JOB.optimize, schedule="constant"))
    a3c.train(policy, job, num_workers=2, eval_every_steps=1000, log=rows.append)
    # The last to begin may do so just before the other's steps are counted.
    assert rows[-1]["steps"] in (100, 110)
    assert rows[-1]["steps_per_second"] == rows[-1]["steps"] / rows[-1]["seconds/train"]
    updates = rows[-1]["steps"] / (job.collect.num_envs * job.collect.steps)
    counts = [float(own["step"]) for own in made]
    assert max(counts) == updates
    # There is no lock: where both workers add to one count in the same nanoseconds, one of the two is lost.
    assert min(counts) >= updates - 1
    assert all(not torch.equal(a, b) for a, b in zip(policy.parameters(), start, strict=True))


def test_a_worker_leaves_its_pause_though_the_next_has_begun() -> None:
    """It sees that work goes on later than the others end it again; neither may wait for the other."""
    shared = board()
    a3c.resume(shared)
    shared.running.clear()
    waiting = threading.Thread(target=a3c.wait, args=(shared, 1), daemon=True)
    waiting.start()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
    too_early = threading.Thread(target=a3c.wait, args=(shared, 2), daemon=True)
    too_early.start()
    too_early.join(timeout=0.2)
    assert too_early.is_alive()
    a3c.resume(shared)
    too_early.join(timeout=10)
    assert not too_early.is_alive()


def test_evaluations_are_of_steps_that_grow_though_updates_pass_several_at_once() -> None:
    """One worker, whose updates take ten steps each, of which every third is due."""
    rows: list[dict[str, float]] = []
    a3c.train(policy_of(), JOB._replace(steps=40), num_workers=1, eval_every_steps=3, log=rows.append)
    steps = [row["steps"] for row in rows]
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-1] == 40


def test_metrics_of_workers_are_averaged_or_the_largest() -> None:
    reports = [
        {"entropy": 0.5, "ratio_max": 1.0, "episodes": 2.0},
        {"entropy": 0.7, "ratio_max": 3.0, "return_mean": 9.0},
    ]
    assert a3c._mean(reports) == {"entropy": pytest.approx(0.6), "ratio_max": 3.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimize": replace(JOB.optimize, epochs=2)}, "a2c takes one step on each batch; set both to 1"),
        ({"method": a2c.A2C(critic=Critic(epochs=1))}, "set critic.epochs to 0"),
        ({"collect": replace(JOB.collect, normalise_rewards=True)}, "A3C shares weights only"),
        (
            {"collect": replace(JOB.collect, lag=1)},
            "collect.lag is 1, but A3C's workers act with the weights that they have just copied; set it to 0",
        ),
        ({"collect": replace(JOB.collect, episodes=4)}, "workers act in fragments"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_asynchronous_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        a3c.train(policy_of(), JOB._replace(**changes), num_workers=2, eval_every_steps=10, log=print)
    with pytest.raises(InputError, match="A3C shares weights only"):
        a3c.train(policy_of(normalise_observations=True), JOB, num_workers=2, eval_every_steps=10, log=print)
