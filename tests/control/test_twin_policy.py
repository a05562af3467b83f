from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf.control.evaluate import EvaluateEpisodes, Evaluator, replay_episodes
from rlhf.control.load import load_control_policy
from rlhf.control.policy import PolicyConfig, Spaces
from rlhf.control.twin_policy import TwinPolicy
from rlhf.errors import InputError
from tests.control.worlds import CPU

DISCRETE = Spaces(observation_size=3, num_actions=4, first_action=2)
VECTOR = Spaces(observation_size=3, action_low=(-1.0, 0.0), action_high=(1.0, 6.0))
SPACES = pytest.mark.parametrize("spaces", [DISCRETE, VECTOR], ids=["discrete", "vector"])


def policy_of(spaces: Spaces, **config: bool) -> TwinPolicy:
    policy = TwinPolicy(spaces, PolicyConfig(hidden_sizes=(8, 8), critic="action", **config), seed=3)
    with torch.no_grad():
        policy.actor.weights[-1].mul_(100.0)
    return policy


def observations_of(rows: int) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))


def inputs_of(policy: TwinPolicy, rows: int) -> dict[str, torch.Tensor]:
    """Replayed steps whose actions the policy drew itself, with the noise that drew them."""
    draws = torch.rand(rows, policy.spaces.action_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    observations = observations_of(rows)
    noise = torch.special.ndtri(draws).float().unsqueeze(1)
    actions = policy.act(observations, draws)[0].unsqueeze(1)
    observations = observations.unsqueeze(1)
    inputs = {"observations": observations, "next_observations": observations, "actions": actions}
    return inputs | {"noise": noise, "next_noise": noise}


@SPACES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twin_policy_is_rebuilt_from_its_folder_alone(spaces: Spaces, dtype: torch.dtype, tmp_path: Path) -> None:
    policy = policy_of(spaces, normalise_observations=True).to(dtype)
    policy.normalizer.double().update(observations_of(9) * 5, lambda sums: sums)
    policy.save(tmp_path / "policy")
    loaded = load_control_policy(tmp_path / "policy")
    own, other = policy.state_dict(), loaded.state_dict()
    assert isinstance(loaded, TwinPolicy)
    assert all(torch.equal(own[name], other[name]) and own[name].dtype == other[name].dtype for name in own)
    assert (loaded.spaces, loaded.config) == (policy.spaces, policy.config)
    assert torch.equal(policy.act(observations_of(4), None)[0], loaded.act(observations_of(4), None)[0])


def test_squashed_actions_fill_their_bounds_and_never_leave_them() -> None:
    policy = policy_of(VECTOR)
    draws = torch.rand(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    actions = policy.act(observations_of(1).expand(2000, 3), draws)[0]
    low, high = torch.tensor(VECTOR.action_low), torch.tensor(VECTOR.action_high)
    assert bool(((actions >= low) & (actions <= high)).all())
    assert bool(((actions.amax(0) - actions.amin(0)) > 0.8 * (high - low)).all())


def test_squashed_policy_draws_the_same_action_while_acting_and_while_learning() -> None:
    policy = policy_of(VECTOR)
    inputs = inputs_of(policy, 6)
    output = policy(inputs)
    draws = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, logprobs, values = policy.act(observations_of(6), draws)
    torch.testing.assert_close(output.logprobs.squeeze(1), logprobs, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.sampled_values.amin(-1).squeeze(1), values, rtol=0, atol=1e-5)
    # The critic sees replayed actions on the same scale as drawn ones.
    torch.testing.assert_close(output.values, output.sampled_values, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.next_values, output.values, rtol=0, atol=1e-5)


def test_discrete_policy_says_of_every_action_what_it_says_when_acting() -> None:
    policy = policy_of(DISCRETE)
    inputs = inputs_of(policy, 6)
    output = policy(inputs)
    draws = torch.rand(6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    actions, logprobs, values = policy.act(observations_of(6), draws)
    index = actions.unsqueeze(1)
    chosen = output.logits.log_softmax(-1).squeeze(1).gather(1, index).squeeze(1)
    torch.testing.assert_close(chosen, logprobs, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.values.amin(-2).squeeze(1).gather(1, index).squeeze(1), values, rtol=0, atol=1e-6)
    assert torch.equal(policy.act(observations_of(6), None)[0], output.logits.squeeze(1).argmax(-1))


def test_critic_of_states_values_all_actions_alike() -> None:
    policy = TwinPolicy(DISCRETE, PolicyConfig(hidden_sizes=(8,), critic="state"), seed=0)
    values = policy(inputs_of(policy, 5)).values
    assert values.shape == (5, 1, 2, 4)
    assert torch.equal(values.amax(-1), values.amin(-1))


@SPACES
def test_targets_start_as_the_critics_and_no_gradient_reaches_them(spaces: Spaces) -> None:
    policy = policy_of(spaces)
    for own, target in zip(policy.critic.parameters(), policy.target_critic.parameters(), strict=True):
        assert torch.equal(own, target)
        assert not target.requires_grad
    output = policy(inputs_of(policy, 4))
    assert not output.next_values.requires_grad
    sum(tensor.sum() for tensor in output).backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


def test_squashing_refuses_what_it_cannot_do() -> None:
    endless = Spaces(observation_size=3, action_low=(None,), action_high=(1.0,))
    with pytest.raises(InputError, match="finite"):
        TwinPolicy(endless, PolicyConfig(critic="action"), seed=0)
    with pytest.raises(InputError, match="critic"):
        TwinPolicy(VECTOR, PolicyConfig(critic="state"), seed=0)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_twin_policy_is_evaluated_and_its_episodes_replay(env_id: str, tmp_path: Path) -> None:
    config, cache = EvaluateEpisodes(episodes=2, sampled_episodes=1), tmp_path / "episodes.safetensors"
    evaluator = Evaluator(env_id, config=config, seed=0, accelerator=CPU, cache=cache)
    spaces = {
        "CartPole-v1": Spaces(observation_size=4, num_actions=2),
        "Pendulum-v1": Spaces(observation_size=3, action_low=(-2.0,), action_high=(2.0,)),
    }[env_id]
    evaluation = evaluator(policy_of(spaces))
    assert [episode.total() for episode in replay_episodes(cache)] == [
        sample["return"] for sample in evaluation.samples
    ]
