"""What every run keeps, whatever its mechanisms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.covering import runs
from tests.covering.cases import Case
from tests.covering.mechanisms import PLAIN

# How far two ways to compute the same may be apart: of a ratio, and of all weights' change together.
ROUNDING = {"float64": 1e-9, "float32": 1e-4, "bf16": 0.1}
# What the names of the critic's own weights begin with.
CRITIC = ("value_head", "critic_trunk")
OF_THE_CLOCK = ("seconds", "steps_per_second", "memory")


def named(case: Case) -> str:
    """What of a case is not plain."""
    return ", ".join(f"{name} {value}" for name, value in case.items() if value != PLAIN[name]) or "plain"


def assert_laws(case: Case, models: Path, folder: Path) -> None:
    whole = runs.run(case, models, folder / "whole")
    assert_acted_as_scored(case, whole)
    assert_starts_at_its_reference(case, whole)
    assert_frozen(whole)
    assert_within_budget(case, whole)
    first = runs.weights_at(1, case, models, folder / "whole")
    assert_only_the_critic_warms_up(case, whole.before, first)
    assert_micro_batches_change_nothing(case, whole, first, models, folder / "budget")
    assert_resumed_is_uninterrupted(case, whole, models, folder / "resumed")
    assert_alike_scores_move_no_policy(case, models, folder / "alike")


def assert_acted_as_scored(case: Case, whole: runs.Outcome) -> None:
    """Law 2: right after acting, training gives each action the probability it was drawn with."""
    assert whole.rows[1]["ratio_error_max"] <= ROUNDING[case["precision"]]


def assert_starts_at_its_reference(case: Case, whole: runs.Outcome) -> None:
    """And the reference stays there."""
    if case["reference"] == "same" or (case["reference"] == "bfloat16" and case["adapter"] != "none"):
        assert whole.rows[1]["kl_ref_k3"] == 0.0
        assert torch.equal(*whole.said)


def assert_frozen(whole: runs.Outcome) -> None:
    """What is not trained is afterwards what it was, bit for bit."""
    before, after = whole.frozen
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def assert_within_budget(case: Case, whole: runs.Outcome) -> None:
    """No pass reads more tokens, padding included, than the budget, unless it is a single row or block."""
    if case["responses"] == "another engine":
        return
    budget = runs.BUDGETS[case["budget"]]
    together = 3 if case["method"] == "grpo in blocks" else 1
    longest = together * max(tokens for _, tokens, decodes in whole.passes if not decodes)
    for rows, tokens, decodes in whole.passes:
        if not decodes:
            assert rows * tokens <= budget or rows <= together, (rows, tokens, longest)
        elif case["responses"] == "chunked":
            assert rows == 1 or rows * (tokens + runs.MAX_NEW_TOKENS) <= runs.TOKEN_BUDGET


def assert_only_the_critic_warms_up(case: Case, before: dict[str, Tensor], first: dict[str, Tensor]) -> None:
    moved = {name for name in before if not torch.equal(before[name], first[name])}
    assert moved
    if case["method"] == "ppo warming up":
        assert all(name.startswith(CRITIC) for name in moved)


def assert_micro_batches_change_nothing(
    case: Case, whole: runs.Outcome, first: dict[str, Tensor], models: Path, out: Path
) -> None:
    """Law 1, on what an update changes of all weights; of TRPO's single step also on the gradient."""
    other = {**case, "budget": "one row" if case["budget"] == "all" else "all"}
    again = runs.run(other, models, out, updates=1)
    assert_same_change(case, whole.before, first, again.after)
    if case["method"] == "trpo":
        norms = [outcome.rows[1]["gradient_norm"] for outcome in (whole, again)]
        assert norms[0] == pytest.approx(norms[1], rel=ROUNDING[case["precision"]])


def assert_same_change(case: Case, before: dict[str, Tensor], one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    changes = [torch.cat([(after[name] - before[name]).flatten() for name in before]) for after in (one, other)]
    # Conjugate gradients of a model this small enlarge rounding ten orders of magnitude (gradients agree to 1e-15).
    limit = 1e-2 if case["method"] == "trpo" else ROUNDING[case["precision"]]
    error = float((changes[0] - changes[1]).norm() / changes[0].norm())
    assert error <= limit, (named(case), error)


def assert_resumed_is_uninterrupted(case: Case, whole: runs.Outcome, models: Path, out: Path) -> None:
    """Law 6, bit for bit."""
    with pytest.raises(runs.Interrupted):
        runs.run(case, models, out, interrupted_at=1)
    resumed = runs.run(case, models, out, resume=True)
    assert all(torch.equal(whole.after[name], resumed.after[name]) for name in whole.after)
    assert [_timeless(row) for row in resumed.rows] == [_timeless(row) for row in whole.rows]


def _timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith(OF_THE_CLOCK)}


def assert_alike_scores_move_no_policy(case: Case, models: Path, out: Path) -> None:
    """Where all scores are equal and the reference is where the policy is, no action was better than another."""
    if case["scores"] == "penalised" or case["entropy"] != "0":
        return
    if case["reference"] == "bfloat16" and case["adapter"] == "none":
        return
    still = runs.run(case, models, out, updates=1, reward=runs.alike)
    moved = [name for name in still.before if not torch.equal(still.before[name], still.after[name])]
    assert all(name.startswith(CRITIC) for name in moved), moved
