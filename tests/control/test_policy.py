from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf.control.load import load_control_policy
from rlhf.control.policy import ControlPolicy, PolicyConfig, Spaces
from rlhf.errors import InputError

DISCRETE = Spaces(observation_size=3, num_actions=4, first_action=2)
VECTOR = Spaces(observation_size=3, action_low=(-1.0, None), action_high=(1.0, None))
SPACES = pytest.mark.parametrize("spaces", [DISCRETE, VECTOR], ids=["discrete", "vector"])


def random_policy(spaces: Spaces, dtype: torch.dtype = torch.float32, **config: bool) -> ControlPolicy:
    policy = ControlPolicy(spaces, PolicyConfig(hidden_sizes=(8, 8), initial_log_std=-0.3, **config), seed=3)
    policy = policy.double() if dtype == torch.float64 else policy
    with torch.no_grad():
        policy.actor[-1].weight.mul_(100.0)
    return policy


def observations_of(rows: int) -> torch.Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))


def bandit(*probabilities: float) -> tuple[ControlPolicy, torch.Tensor]:
    policy = ControlPolicy(Spaces(observation_size=1, num_actions=len(probabilities)), PolicyConfig(), seed=0)
    return policy, torch.tensor(probabilities).log()


@SPACES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_policy_scores_an_action_as_it_did_when_it_acted(spaces: Spaces, dtype: torch.dtype, tolerance: float) -> None:
    policy = random_policy(spaces, dtype, normalise_observations=True)
    observations = observations_of(12)
    policy.normalizer.update(3 * observations + 1, lambda sums: sums)
    draws = torch.rand(12, spaces.action_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    actions, logprobs, values = policy.act(observations, draws)
    inputs = {"observations": policy.normalise(observations).view(4, 3, 3)}
    inputs["actions"] = actions.view(4, 3, *actions.shape[1:])
    with torch.no_grad():
        output = policy(inputs)
    assert output.logprobs.shape == output.values.shape == output.entropy.shape == (4, 3)
    assert float((output.logprobs.flatten() - logprobs).abs().max()) <= tolerance
    assert float((output.values.flatten() - values).abs().max()) <= tolerance


def test_policy_matches_torch_distributions_on_discrete_actions() -> None:
    policy = random_policy(DISCRETE, torch.float64)
    logits = policy.actor(observations_of(6).double()).detach()
    actions = torch.tensor([0, 1, 2, 3, 0, 1])
    expected = torch.distributions.Categorical(logits=logits)
    logprobs, entropy = policy.score(logits, actions)
    assert torch.allclose(logprobs, expected.log_prob(actions), rtol=0, atol=1e-12)
    assert torch.allclose(entropy, expected.entropy(), rtol=0, atol=1e-12)


def test_policy_matches_torch_distributions_on_vector_actions() -> None:
    policy = random_policy(VECTOR, torch.float64)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([0.4, -1.1]))
        means = policy.actor(observations_of(6).double())
    actions = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.distributions.Normal(means, policy.log_std.detach().exp())
    logprobs, entropy = policy.score(means, actions)
    assert torch.allclose(logprobs, expected.log_prob(actions).sum(-1), rtol=0, atol=1e-12)
    assert torch.allclose(entropy, expected.entropy().sum(-1), rtol=0, atol=1e-12)


def test_policy_draws_arms_as_often_as_it_says() -> None:
    policy, logits = bandit(0.25, 0.75)
    grid = (torch.arange(1000, dtype=torch.float64).unsqueeze(1) + 0.5) / 1000
    arms = policy.sample(logits.expand(1000, 2), grid)
    assert arms.bincount().tolist() == [250, 750]


def test_policy_never_draws_an_arm_of_probability_zero() -> None:
    policy, logits = bandit(0.0, 0.5, 0.0, 0.5, 0.0)
    extremes = torch.tensor([[0.0], [2.0**-53], [0.5 - 2.0**-53], [0.5], [1.0 - 2.0**-53]], dtype=torch.float64)
    assert policy.sample(logits.expand(5, 5), extremes).flatten().tolist() == [1, 1, 1, 3, 3]


def test_policy_draws_vectors_by_the_inverse_of_the_normal_cdf() -> None:
    policy = random_policy(VECTOR, torch.float64)
    means = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    one_sigma = torch.tensor([[0.5, 0.5 * (1 + math.erf(1 / math.sqrt(2)))]], dtype=torch.float64)
    drawn = policy.sample(means, one_sigma)
    assert torch.allclose(drawn, torch.tensor([[1.0, -2.0 + math.exp(-0.3)]], dtype=torch.float64), rtol=0, atol=1e-7)


@SPACES
def test_policy_without_draws_takes_the_likeliest_action(spaces: Spaces) -> None:
    policy = random_policy(spaces)
    logprobs = policy.act(observations_of(20), None)[1]
    for seed in range(5):
        draws = torch.rand(20, spaces.action_size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert bool((policy.act(observations_of(20), draws)[1] <= logprobs).all())


@SPACES
def test_policy_initial_weights_depend_on_the_seed_alone(spaces: Spaces) -> None:
    before = torch.get_rng_state()
    policies = []
    for seed in (3, 3, 4):
        policies.append(ControlPolicy(spaces, PolicyConfig(), seed=seed).state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])
    assert not torch.equal(policies[0]["actor.0.weight"], policies[2]["actor.0.weight"])
    assert not torch.equal(policies[0]["actor.0.weight"], policies[0]["critic.0.weight"])


def test_policy_starts_orthogonal_with_the_usual_gains() -> None:
    policy = ControlPolicy(DISCRETE, PolicyConfig(hidden_sizes=(16, 16)), seed=0)
    for network, last in ((policy.actor, 0.01), (policy.critic, 1.0)):
        for layer, gain in ((0, math.sqrt(2.0)), (2, math.sqrt(2.0)), (4, last)):
            weight = network[layer].weight.detach()
            gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
            assert torch.allclose(gram, gain**2 * torch.eye(len(gram)), rtol=0, atol=1e-5)
            assert not network[layer].bias.any()


@SPACES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_policy_is_rebuilt_from_its_folder_alone(spaces: Spaces, dtype: torch.dtype, tmp_path: Path) -> None:
    policy = random_policy(spaces, dtype, normalise_observations=True)
    policy.normalizer.update(observations_of(9) * 5, lambda sums: sums)
    policy.save(tmp_path / "policy")
    loaded = load_control_policy(tmp_path / "policy")
    own, other = policy.state_dict(), loaded.state_dict()
    assert all(torch.equal(own[name], other[name]) and own[name].dtype == other[name].dtype for name in own)
    assert (loaded.spaces, loaded.config) == (policy.spaces, policy.config)
    assert torch.equal(policy.act(observations_of(4), None)[0], loaded.act(observations_of(4), None)[0])


def test_policy_folder_is_strict_json(tmp_path: Path) -> None:
    random_policy(VECTOR).save(tmp_path)
    assert "Infinity" not in (tmp_path / "policy.json").read_text()
    assert json.loads((tmp_path / "policy.json").read_text())["spaces"]["action_low"] == [-1.0, None]


def test_policy_refuses_weights_of_another_precision(tmp_path: Path) -> None:
    random_policy(DISCRETE, torch.float64).save(tmp_path)
    with pytest.raises(InputError, match="precision"):
        random_policy(DISCRETE).load(tmp_path)


def test_load_policy_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"policy\.json"):
        load_control_policy(tmp_path)


def test_spaces_name_discrete_actions_from_the_first() -> None:
    assert DISCRETE.for_env(torch.tensor([0, 3])).tolist() == [2, 5]
    assert DISCRETE.from_env(np.array([2, 5])).tolist() == [0, 3]


def test_spaces_clip_vector_actions_to_their_bounds() -> None:
    given = VECTOR.for_env(torch.tensor([[-3.0, -3.0], [0.5, 1e6]]))
    assert given.tolist() == [[-1.0, -3.0], [0.5, 1e6]]
    assert given.dtype == np.float32


@pytest.mark.parametrize(
    ("low", "high", "middle", "half"),
    [
        (5.0, 10.0, 7.5, 2.5),
        (-100.0, 100.0, 0.0, 100.0),
        (0.0, 1.0, 0.5, 0.5),
        (-0.01, 0.01, 0.0, 0.01),
        (-1.0, 9.0, 4.0, 5.0),
        # Where a Gaussian of deviation 1 around 0 reaches both bounds, where there is none, and where nothing is free.
        (-1.0, 1.0, 0.0, 1.0),
        (-2.0, 2.0, 0.0, 1.0),
        (-0.4, 3.0, 0.0, 1.0),
        (None, None, 0.0, 1.0),
        (0.0, None, 0.0, 1.0),
        (-3.4e38, 3.4e38, 0.0, 1.0),
        (7.0, 7.0, 0.0, 1.0),
    ],
)
def test_vector_actions_are_scaled_where_the_first_policy_would_stay_at_a_bound(
    low: float | None, high: float | None, middle: float, half: float
) -> None:
    """-1, 0 and 1 of the policy's own are low, middle and high of the environment, and back."""
    spaces = Spaces(observation_size=3, action_low=(low, -1.0), action_high=(high, 1.0))
    policy = ControlPolicy(spaces, PolicyConfig(), seed=0)
    own = torch.tensor([[-1.0, -1.0], [0.0, 0.5], [1.0, 1.0], [2.0, 2.0]])
    given = policy.for_env(own)
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    expected = [[min(max(middle + half * a, least), most), min(max(b, -1.0), 1.0)] for a, b in own.tolist()]
    assert given.dtype == np.float32
    assert given == pytest.approx(np.array(expected), rel=1e-6)
    inside = given[1:2]
    if low != high:
        assert policy.from_env(inside).float().numpy() == pytest.approx(own[1:2].numpy(), abs=1e-6)


@pytest.mark.parametrize(("low", "high"), [(100.0, None), (None, -5.0)])
def test_a_policy_refuses_one_bound_that_lies_away_from_0(low: float | None, high: float | None) -> None:
    with pytest.raises(InputError, match="would stay at the bound"):
        ControlPolicy(Spaces(observation_size=3, action_low=(low,), action_high=(high,)), PolicyConfig(), seed=0)


def test_policy_config_refuses_layers_without_units() -> None:
    with pytest.raises(InputError, match="hidden_sizes"):
        PolicyConfig(hidden_sizes=(64, 0))
