"""Tabular MDPs against series, hand-worked cases and the policy-gradient theorem."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from theory import mdp
from theory.mdp import Mdp

GAMMA = 0.9


def tensor(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one(seed: int = 0, *, num_states: int = 4, num_actions: int = 3) -> Mdp:
    return Mdp(*(x[0] for x in mdp.random_mdps(1, num_states=num_states, num_actions=num_actions, seed=seed)))


def a_policy(seed: int = 0, *, num_states: int = 4, num_actions: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_states, num_actions, generator=generator, dtype=torch.float64).softmax(-1)


# State 0: action 0 pays 1 and stays, action 1 pays 5 and leads to state 1, where every action pays 2 and ends.
HAND = Mdp(
    tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]), tensor([[1.0, 5.0], [2.0, 2.0]]), tensor([1.0, 0.0])
)
EVEN = tensor([[0.5, 0.5], [0.5, 0.5]])


def test_state_values_of_a_case_worked_by_hand() -> None:
    """V(1) = 2 and V(0) = .5 (1 + .5 V(0)) + .5 (5 + .5 * 2) at gamma 1/2, so V(0) = 3.5 / .75."""
    torch.testing.assert_close(mdp.state_values(HAND, EVEN, gamma=0.5), tensor([14 / 3, 2.0]), rtol=0, atol=1e-12)


def test_action_values_and_advantages_of_a_case_worked_by_hand() -> None:
    values = tensor([[1 + 7 / 3, 6.0], [2.0, 2.0]])
    torch.testing.assert_close(mdp.action_values(HAND, EVEN, gamma=0.5), values, rtol=0, atol=1e-12)
    expected = values - tensor([[14 / 3], [2.0]])
    torch.testing.assert_close(mdp.advantages(HAND, EVEN, gamma=0.5), expected, rtol=0, atol=1e-12)


def test_an_mdp_whose_episodes_end_has_values_and_visits_without_discount() -> None:
    """Half of the visits to state 0 are followed by another: 2 in all, one to state 1; they pay 2 * 3 + 2."""
    torch.testing.assert_close(mdp.visits(HAND, EVEN, gamma=1.0), tensor([2.0, 1.0]), rtol=0, atol=1e-12)
    assert float(mdp.expected_return(HAND, EVEN, gamma=1.0)) == pytest.approx(8.0, abs=1e-12)


def test_values_and_occupancy_equal_their_series() -> None:
    world, policy = one(), a_policy()
    marginals = mdp.step_marginals(world, policy, num_steps=400)
    discounts = GAMMA ** torch.arange(400, dtype=torch.float64)
    rewards = (policy * world.rewards).sum(-1)
    occupancy = mdp.occupancy(world, policy, gamma=GAMMA)
    torch.testing.assert_close(occupancy, (1 - GAMMA) * discounts @ marginals, rtol=0, atol=1e-9)
    assert float(occupancy.sum()) == pytest.approx(1.0, abs=1e-12)
    series = float(discounts @ marginals @ rewards)
    assert float(mdp.expected_return(world, policy, gamma=GAMMA)) == pytest.approx(series, abs=1e-9)


def test_step_marginals_equal_the_sum_over_all_paths() -> None:
    world, policy = one(), a_policy()
    follow = torch.stack([policy[s] @ world.transitions[s] for s in range(4)])
    marginals = mdp.step_marginals(world, policy, num_steps=3)
    paths = [[sum(world.start[i] * follow[i, j] * follow[j, k] for i in range(4) for j in range(4)) for k in range(4)]]
    torch.testing.assert_close(marginals[0], world.start)
    torch.testing.assert_close(marginals[2], tensor(paths[0]), rtol=0, atol=1e-12)
    assert marginals.shape == (3, 4)


def test_advantages_have_mean_zero_under_the_policy() -> None:
    world, policy = one(), a_policy()
    means = (policy * mdp.advantages(world, policy, gamma=GAMMA)).sum(-1)
    torch.testing.assert_close(means, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)


def test_policy_gradient_is_that_of_the_theorem() -> None:
    """dJ / dlogit(s, a) = visits(s) pi(a | s) A(s, a) (Sutton et al., 2000, theorem 1)."""
    world = one()
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    policy = logits.softmax(-1)
    visits = mdp.visits(world, policy, gamma=GAMMA).unsqueeze(-1)
    theorem = visits * policy * mdp.advantages(world, policy, gamma=GAMMA)
    torch.testing.assert_close(mdp.policy_gradient(world, logits, gamma=GAMMA), theorem, rtol=0, atol=1e-12)


def test_discounting_is_ending_with_probability_one_less_gamma() -> None:
    """Values and gradient under gamma are the undiscounted ones where every step ends the episode so often."""
    world, logits = one(), a_policy().log()
    mortal = world._replace(transitions=GAMMA * world.transitions)
    for function in (lambda w, gamma: mdp.state_values(w, logits.softmax(-1), gamma=gamma),
                     lambda w, gamma: mdp.policy_gradient(w, logits, gamma=gamma)):  # fmt: skip
        torch.testing.assert_close(function(world, GAMMA), function(mortal, 1.0), rtol=0, atol=1e-12)


def test_optimal_values_are_the_best_of_all_deterministic_policies() -> None:
    world, tables = one(num_states=3, num_actions=2), torch.eye(2, dtype=torch.float64)
    choices = torch.cartesian_prod(*[torch.arange(2)] * 3)
    best = torch.stack([mdp.state_values(world, tables[choice], gamma=GAMMA) for choice in choices]).amax(0)
    values = mdp.optimal_values(world, gamma=GAMMA, num_iterations=300)
    torch.testing.assert_close(values, best, rtol=0, atol=1e-9)


def test_optimal_values_of_episodes_that_end_are_exact_without_discount() -> None:
    """Where action 0 ends the episode as well, the best is two steps that pay 5 + 2."""
    world = HAND._replace(transitions=HAND.transitions * tensor([0.0, 1.0]).view(1, 2, 1))
    assert mdp.optimal_values(world, gamma=1.0, num_iterations=2).tolist() == [7.0, 2.0]


@pytest.mark.parametrize(
    "function",
    [mdp.state_values, mdp.action_values, mdp.advantages, mdp.visits, mdp.occupancy, mdp.expected_return],
)
def test_functions_map_over_stacks_of_mdps_and_policies(function) -> None:
    worlds = mdp.random_mdps(5, num_states=4, num_actions=3, seed=0)
    policies = torch.stack([a_policy(seed) for seed in range(5)])
    stacked = torch.func.vmap(lambda world, policy: function(world, policy, gamma=GAMMA))(worlds, policies)
    singly = torch.stack([function(Mdp(*(x[i] for x in worlds)), policies[i], gamma=GAMMA) for i in range(5)])
    torch.testing.assert_close(stacked, singly, rtol=0, atol=1e-12)


def test_other_functions_map_over_stacks_too() -> None:
    worlds = mdp.random_mdps(5, num_states=4, num_actions=3, seed=0)
    logits = torch.zeros(5, 4, 3, dtype=torch.float64)
    calls = (
        lambda world, x: mdp.policy_gradient(world, x, gamma=GAMMA),
        lambda world, x: mdp.step_marginals(world, x.softmax(-1), num_steps=3),
        lambda world, _: mdp.optimal_values(world, gamma=GAMMA, num_iterations=9),
    )
    for call in calls:
        stacked = torch.func.vmap(call)(worlds, logits)
        torch.testing.assert_close(stacked[3], call(Mdp(*(x[3] for x in worlds)), logits[3]), rtol=0, atol=1e-12)


def test_random_mdps_are_distributions_and_follow_from_the_seed() -> None:
    worlds = mdp.random_mdps(50, num_states=4, num_actions=3, seed=0)
    torch.testing.assert_close(worlds.transitions.sum(-1), torch.ones(50, 4, 3, dtype=torch.float64))
    torch.testing.assert_close(worlds.start.sum(-1), torch.ones(50, dtype=torch.float64))
    assert float(worlds.transitions.min()) >= 0.0
    assert float(worlds.rewards.abs().max()) <= 1.0
    again = mdp.random_mdps(50, num_states=4, num_actions=3, seed=0)
    assert torch.equal(worlds.transitions, again.transitions)
    assert not torch.equal(worlds.rewards, mdp.random_mdps(50, num_states=4, num_actions=3, seed=1).rewards)


def test_random_transitions_are_uniform_on_the_simplex() -> None:
    """There E[p^2] = 2 / (n (n + 1)), 1/10 for four states."""
    worlds = mdp.random_mdps(2000, num_states=4, num_actions=3, seed=0)
    assert float(worlds.transitions.square().mean()) == pytest.approx(0.1, abs=0.002)


def test_marginal_ratios_are_zero_where_the_behaviour_never_is() -> None:
    ratios, new, old = (torch.tensor([x], dtype=torch.float64) for x in ([2.0, 3.0], [0.2, 0.3], [0.4, 0.0]))
    torch.testing.assert_close(mdp.marginal_ratios(ratios.log(), new, old), torch.tensor([[1.0, 0.0]]).double())
