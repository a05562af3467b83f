"""What every run on control keeps, whatever its mechanisms."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.covering import laws
from tests.covering.cases import Case
from tests.covering.control import runs
from tests.covering.laws import ROUNDING, Weights, assert_same_change, changed, limit_of

# How far two ways to compute the same may be apart: of a ratio, and of all weights' change together.
# What the names of the critic's own weights begin with, and of what running moments have moved.
CRITIC, MOMENTS = ("critic.", "stack.critic."), "normalizer."


def assert_laws(case: Case, folder: Path) -> None:
    whole = runs.run(case, folder / "whole")
    assert_acted_as_scored(case, whole)
    assert_starts_at_its_reference(case, whole)
    assert_within_budget(case, whole)
    assert_only_a_terminal_state_is_worth_nothing(case, whole)
    assert not whole.moved_by_evaluation
    first = runs.weights_at(1, case, folder / "whole")
    assert_only_the_critic_warms_up(case, whole.before, first)
    assert_micro_batches_change_nothing(case, whole, first, folder / "budget")
    laws.assert_resumed_is_uninterrupted(
        laws.Run(whole.before, whole.after, whole.rows),
        partial(runs.run, case, folder / "resumed", evaluations=runs.UPDATES),
    )
    assert_a_limit_at_the_end_of_a_fragment_changes_nothing(case, first)
    assert_alike_scores_move_no_policy(case)
    assert_seeds_side_by_side_are_as_alone(case, whole)


def assert_acted_as_scored(case: Case, whole: runs.Outcome) -> None:
    """Law 2: right after acting, training gives each action the probability it was drawn with."""
    if not runs.replays(case):
        assert whole.rows[1]["ratio_error_max"] <= ROUNDING[case["precision"]]


def assert_starts_at_its_reference(case: Case, whole: runs.Outcome) -> None:
    """And the reference stays as it is, wherever it was."""
    before, after = whole.reference
    assert not changed(before, after)
    if case["reference"] == "same":
        assert whole.rows[1]["kl_ref_k3"] == 0.0
    elif case["reference"] == "other":
        assert whole.rows[1]["kl_ref_k3"] > 0.0


def assert_within_budget(case: Case, whole: runs.Outcome) -> None:
    """No pass reads more steps, padding included, than the budget, unless it is a single row or block."""
    together = 2 if case["method"] == "grpo in blocks" else 1
    assert all(rows * steps <= runs.BUDGETS[case["budget"]] or rows <= together for rows, steps in whole.passes)


def assert_only_a_terminal_state_is_worth_nothing(case: Case, whole: runs.Outcome) -> None:
    """What a step led to has the critic's value, be the episode cut there; 0 stands for a terminal state alone."""
    ended = torch.zeros((), dtype=torch.int64)
    for rollout in whole.rollouts:
        dones, terminals = rollout.dones & rollout.mask, rollout.terminals & rollout.mask
        if case["ends"] == "cut":
            assert not terminals.any()
        elif case["ends"] == "terminated" and not runs.replays(case):
            assert torch.equal(terminals, dones)
        if not runs.replays(case):
            assert torch.equal(rollout.next_values[rollout.mask] == 0.0, terminals[rollout.mask])
        ended += dones.sum()
    assert ended > 0


def assert_only_the_critic_warms_up(case: Case, before: Weights, first: Weights) -> None:
    moved = changed(before, first)
    assert moved
    if case["method"] == "ppo warming up":
        assert all(name.startswith((*CRITIC, MOMENTS)) for name in moved)


def assert_micro_batches_change_nothing(case: Case, whole: runs.Outcome, first: Weights, out: Path) -> None:
    """Law 1, on what an update changes of all weights; of TRPO's single step also on the gradient."""
    other = {**case, "budget": "one row" if case["budget"] == "all" else "all"}
    again = runs.run(other, out if case["method"] == "trpo" else None, updates=1)
    assert_same_change(whole.before, first, again.after, limit=limit_of(case))
    if case["method"] == "trpo":
        norms = [outcome.rows[1]["gradient_norm"] for outcome in (whole, again)]
        assert norms[0] == pytest.approx(norms[1], rel=ROUNDING[case["precision"]])


def assert_a_limit_at_the_end_of_a_fragment_changes_nothing(case: Case, first: Weights) -> None:
    """In the first update: that an episode goes on after its fragment, or is cut with it, is the same so far."""
    if case["acting"] == "fragments" and case["ends"] == "cut":
        opened = runs.run(case, updates=1, ends="open")
        assert not changed(first, opened.after)


def assert_alike_scores_move_no_policy(case: Case) -> None:
    """Where nothing is paid and the reference is where the policy is, no action was better than another."""
    if case["reference"] == "other" or case["entropy"] != "0" or case["environment"] == "CartPole":
        return
    if runs.replays(case):
        return
    still = runs.run(case, updates=1, paid=False)
    assert all(name.startswith((*CRITIC, MOMENTS)) for name in changed(still.before, still.after))


def assert_seeds_side_by_side_are_as_alone(case: Case, whole: runs.Outcome) -> None:
    if case["seeds"] == "one":
        return
    for i, seed in enumerate(runs.SEEDS):
        alone = runs.run({**case, "seeds": "one"}, seed=seed)
        together = {name.removeprefix("stack."): tensor[i] for name, tensor in whole.after.items()}
        assert_same_change(alone.before, alone.after, together, limit=ROUNDING[case["precision"]])
