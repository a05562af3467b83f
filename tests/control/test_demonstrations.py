from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.ppo import PPO
from rlhf.algorithms.sac import SAC
from rlhf.control.demonstrations import demonstrations
from rlhf.control.envs import make_env, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.control.tasks import Envs, Imitation
from rlhf.errors import InputError
from rlhf.training import train
from tests.control import worlds  # noqa: F401 (registers environments)


def policy_of(env_id: str, **config: bool) -> ControlPolicy:
    return ControlPolicy(spaces_of(make_env(env_id)), PolicyConfig(**config), seed=0)


def test_demonstrations_are_what_the_controller_saw_and_did() -> None:
    rollout = demonstrations(lambda x: int(x[0] >= 2), policy_of("Walk-v0"), "Walk-v0", episodes=2, seed=0)
    # Walk-v0 ends at 4; both episodes are stepped together, one row a step.
    assert rollout.inputs["observations"].flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert rollout.inputs["actions"].flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert rollout.mask.shape == (8, 1)
    assert rollout.mask.all()
    assert rollout.sample_ids.tolist() == list(range(8))


def test_demonstrations_use_the_policy_s_names_of_actions() -> None:
    rollout = demonstrations(lambda _: 6, policy_of("Named-v0"), "Named-v0", episodes=1, seed=0)
    assert rollout.inputs["actions"].flatten().tolist() == [1, 1]


def test_demonstrations_prepare_the_learner_s_moments() -> None:
    learner = policy_of("Walk-v0", normalise_observations=True)
    rollout = demonstrations(lambda _: 0, learner, "Walk-v0", episodes=1, seed=0)
    raw = np.arange(4.0)
    expected = (raw - raw.mean()) / raw.std()
    np.testing.assert_allclose(rollout.inputs["observations"].flatten(), expected, rtol=1e-6)
    assert float(learner.normalizer.mean) == 1.5


def test_demonstrations_of_a_policy_are_its_likeliest_actions() -> None:
    expert, learner = policy_of("Pendulum-v1"), policy_of("Pendulum-v1").double()
    rollout = demonstrations(expert, learner, "Pendulum-v1", episodes=1, seed=0)
    means = expert.actor(rollout.inputs["observations"].float()).detach()
    assert torch.allclose(rollout.inputs["actions"].float(), means, rtol=0, atol=1e-6)
    assert rollout.inputs["actions"].dtype == torch.float64
    assert learner(rollout.inputs).logprobs.shape == (200, 1)


def test_demonstrations_refuse_no_episodes() -> None:
    with pytest.raises(InputError, match="at least 1"):
        demonstrations(lambda _: 0, policy_of("Walk-v0"), "Walk-v0", episodes=0, seed=0)


@pytest.mark.parametrize(
    ("method", "env", "settings", "message"),
    [
        (
            PPO(),
            "Pendulum-v1",
            {},
            "ppo learns from rewards, and here there are demonstrations; take Behaviour",
        ),
        (SAC(), "Pendulum-v1", {"replays": True}, "sac learns from rewards, and here there are demonstrations"),
        (BehaviourCloning(), "Pendulum-v1", {"replays": True}, "the policy is a TwinPolicy"),
        (BehaviourCloning(), "CartPole-v1", {}, "the policy is a ControlPolicy for .*, but Pendulum-v1 has"),
    ],
    ids=["rewards", "replay", "twin critics", "other spaces"],
)
def test_imitation_refuses_what_cannot_clone(
    method: Any, env: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def never(**_: Any) -> Any:
        raise AssertionError("nothing is shown to what is refused")

    policy = Envs(env).policy(**settings)
    with pytest.raises(InputError, match=message):
        train(policy, Imitation("Pendulum-v1", never), method, updates=1, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
