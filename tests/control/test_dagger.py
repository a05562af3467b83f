"""DAgger: labels in the states of the learner, kept for good; and the exact example of why cloning needs it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms import clone
from rlhf.control.collect import CollectSteps
from rlhf.control.dagger import Dagger, DaggerCollector
from rlhf.control.demonstrations import demonstrations
from rlhf.control.envs import make_env, make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.demonstrations import DemonstrationCollector
from rlhf.errors import InputError
from rlhf.loop import Duration
from rlhf.runs.evaluate import Evaluation
from rlhf.runs.run import Run
from rlhf.training import train_phase
from tests.control.worlds import CPU, bare
from tests.given import Given
from theory.mdp import step_marginals
from theory.worlds.road import DITCH, ROAD, STRAIGHT, TURN


def expert(observation: np.ndarray) -> int:
    """Keeps to the road."""
    return STRAIGHT if observation[ROAD] else TURN


def dagger_of(env_id: str, controller: Any = expert, *, num_envs: int = 2, steps: int = 5, share: float = 0.0) -> Any:
    config = Dagger(num_envs=num_envs, steps=steps, expert_share=share)
    return DaggerCollector(make_envs(env_id, num_envs), controller, config=config, seed=0, accelerator=CPU)


def policy_of(env_id: str, **config: bool) -> ControlPolicy:
    return ControlPolicy(spaces_of(make_env(env_id)), PolicyConfig(**config), seed=0)


def always(action: int) -> ControlPolicy:
    """A learner for the road that takes one action with probability 1."""
    policy = policy_of("theory/Road-v0")
    with torch.no_grad():
        policy.actor[-1].weight.zero_()
        policy.actor[-1].bias[action] = 1e9
    return policy


def test_first_update_follows_the_expert_and_the_next_the_learner() -> None:
    collector = dagger_of("theory/Road-v0", num_envs=1, steps=4)
    first = collector.collect(always(TURN), 0)
    assert first.rollout.inputs["observations"].argmax(-1).flatten().tolist() == [ROAD] * 4
    assert first.metrics["expert_led"] == 1.0
    second = collector.collect(always(TURN), 1)
    # Turning for ever goes to and fro; the expert's label is the right one in both places.
    assert second.rollout.inputs["observations"].argmax(-1).flatten().tolist()[4:] == [ROAD, DITCH, ROAD, DITCH]
    assert second.rollout.inputs["actions"].flatten().tolist()[4:] == [STRAIGHT, TURN, STRAIGHT, TURN]
    assert second.metrics == {
        "expert_agreement": 0.5,
        "expert_led": 0.0,
        "episodes": 0,
        "labels": 8,
        "steps": 4,
    }


def test_labels_add_up_and_keep_their_names() -> None:
    collector = dagger_of("theory/Road-v0", num_envs=3, steps=4)
    rollouts = [collector.collect(policy_of("theory/Road-v0"), update).rollout for update in range(3)]
    assert [len(rollout.mask) for rollout in rollouts] == [12, 24, 36]
    assert torch.equal(rollouts[2].sample_ids[:24], rollouts[1].sample_ids)
    assert sorted(rollouts[2].sample_ids.tolist()) == list(range(36))
    assert rollouts[2].mask.all()
    assert not rollouts[2].rewards.any()


def test_expert_leads_in_a_share_that_decays() -> None:
    collector = dagger_of("theory/Road-v0", num_envs=50, steps=40, share=0.5)
    shares = [collector.collect(always(TURN), update).metrics["expert_led"] for update in range(4)]
    # Five standard errors of 2000 steps.
    np.testing.assert_allclose(shares, [1.0, 0.5, 0.25, 0.125], atol=5 * 0.5 / math.sqrt(2000))


def test_steps_of_expert_and_learner_are_mixed_as_drawn() -> None:
    """The expert goes straight on the road, the learner turns: where it was led, the next state is the road."""
    collector = dagger_of("theory/Road-v0", num_envs=1, steps=40, share=0.5)
    collector.collect(always(TURN), 0)
    rollout = collector.collect(always(TURN), 1).rollout
    places = rollout.inputs["observations"].argmax(-1).flatten()[40:].tolist()
    moves = {(a, b) for a, b in itertools.pairwise(places)}
    # In the ditch both turn.
    assert moves == {(ROAD, ROAD), (ROAD, DITCH), (DITCH, ROAD)}


def test_labels_of_a_policy_are_its_likeliest_actions_on_raw_observations() -> None:
    learner, teacher = policy_of("Pendulum-v1", normalise_observations=True), policy_of("Pendulum-v1")
    collector = dagger_of("Pendulum-v1", teacher, num_envs=2, steps=6)
    rollout = collector.collect(learner, 0).rollout
    raw = collector.labelled["observations"]
    assert torch.allclose(rollout.inputs["actions"][:, 0], teacher.act(raw, None)[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(learner.normalizer.mean, raw.double().mean(0), atol=1e-6)
    np.testing.assert_allclose(rollout.inputs["observations"][:, 0].mean(0), np.zeros(3), atol=1e-5)


def test_moments_take_in_each_state_once() -> None:
    learner = policy_of("CartPole-v1", normalise_observations=True)
    collector = dagger_of("CartPole-v1", lambda _: 0, num_envs=2, steps=5)
    for update in range(3):
        rollout = collector.collect(learner, update).rollout
    raw = collector.labelled["observations"].double()
    assert float(learner.normalizer.count) == 30
    np.testing.assert_allclose(learner.normalizer.mean, raw.mean(0), atol=1e-9)
    # All of the data is normalised by the moments as they are now.
    np.testing.assert_allclose(rollout.inputs["observations"][:, 0], learner.normalise(raw), atol=1e-6)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "theory/RockPaperScissors-v0"])
def test_a_resumed_collector_goes_on_exactly(env_id: str) -> None:
    policy = policy_of(env_id)
    whole, resumed = (dagger_of(env_id, lambda x: int(x[0] > 0), steps=30, share=0.5) for _ in range(2))
    for update in range(2):
        whole.collect(policy, update)
    resumed.load_state_dict(whole.state_dict())
    a, b = (collector.collect(policy, 2) for collector in (whole, resumed))
    assert a.metrics == b.metrics
    assert a.samples == b.samples
    for name in ("observations", "actions"):
        assert torch.equal(a.rollout.inputs[name], b.rollout.inputs[name])
    assert torch.equal(a.rollout.sample_ids, b.rollout.sample_ids)


def test_ranks_label_what_one_process_would() -> None:
    policy = policy_of("CartPole-v1")
    whole = dagger_of("CartPole-v1", lambda x: int(x[2] > 0), num_envs=4, steps=12)

    class Rank:
        num_processes, device = 2, torch.device("cpu")

        def __init__(self, index: int) -> None:
            self.process_index = index

        def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
            return tensor

    config = Dagger(num_envs=4, steps=12)
    ranks: list[Any] = [
        DaggerCollector(
            make_envs("CartPole-v1", 4, num_processes=2),
            lambda x: int(x[2] > 0),
            config=config,
            seed=0,
            accelerator=Rank(index),
        )
        for index in range(2)
    ]
    for update in range(2):
        one = whole.collect(policy, update).rollout
        parts = [rank.collect(policy, update).rollout for rank in ranks]
        ids = torch.cat([part.sample_ids for part in parts])
        order, known = ids.argsort(), one.sample_ids.argsort()
        assert torch.equal(ids[order], one.sample_ids[known])
        observations = torch.cat([part.inputs["observations"] for part in parts])
        assert torch.equal(observations[order], one.inputs["observations"][known])


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_shares_outside_the_unit_interval_are_refused(share: float) -> None:
    with pytest.raises(InputError, match="expert_share is"):
        Dagger(expert_share=share)


def trained(collector: Any, policy: ControlPolicy, *, updates: int, folder: Any) -> ControlPolicy:
    train_phase(
        policy,
        Given(collector, lambda _: Evaluation({}, [])),
        clone.BehaviourCloning(),
        optimize.Optimize(learning_rate=0.003, epochs=4, whiten="none"),
        duration=Duration(updates=updates, eval_every=0, checkpoint_every=0),
        phase=Run(folder, CollectSteps(), resume=False, accelerator=Accelerator(cpu=True)).phase("clone"),
        seed=0,
    )
    return policy


def regret(policy: ControlPolicy, horizon: int) -> float:
    """Of the road's reward, in expectation and exactly."""
    mdp = bare("theory/Road-v0").mdp
    table = policy.actor(torch.eye(2)).detach().double().softmax(-1)
    lost = 1.0 - (table * mdp.rewards).sum(-1)
    return float((step_marginals(mdp, table, num_steps=horizon) @ lost).sum())


def test_cloning_loses_as_the_horizon_squared_and_dagger_as_the_horizon(tmp_path: Any) -> None:
    """Both train by our own loop; what the trained policies lose is enumerated, from a horizon of 5 to one of 20."""
    env_id = "theory/Road-v0"
    learner = policy_of(env_id)
    rollout = demonstrations(expert, learner, env_id, episodes=1, seed=0)
    assert set(rollout.inputs["observations"].argmax(-1).flatten().tolist()) == {ROAD}
    collector = DemonstrationCollector(rollout, rows_per_update=100, seed=0, accelerator=CPU)
    cloned = trained(collector, learner, updates=8, folder=tmp_path / "clone")
    collector = dagger_of(env_id, num_envs=4, steps=25)
    corrected = trained(collector, policy_of(env_id), updates=8, folder=tmp_path / "dagger")
    slopes = [math.log(regret(policy, 20) / regret(policy, 5)) / math.log(4.0) for policy in (cloned, corrected)]
    assert slopes[0] > 1.6
    assert slopes[1] == pytest.approx(1.0, abs=0.1)
