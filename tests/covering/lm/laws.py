"""What every run keeps, whatever its mechanisms."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.covering import laws
from tests.covering.cases import Case
from tests.covering.laws import ROUNDING, Weights, assert_same_change, changed, limit_of
from tests.covering.lm import runs

# How far two ways to compute the same may be apart: of a ratio, and of all weights' change together.
# What the names of the critic's own weights begin with.
CRITIC = ("value_head", "critic_trunk")


def assert_laws(case: Case, models: Path, folder: Path) -> None:
    whole = runs.run(case, models, folder / "whole")
    assert_acted_as_scored(case, whole)
    assert_starts_at_its_reference(case, whole)
    assert_frozen(whole)
    assert_within_budget(case, whole)
    first = runs.weights_at(1, case, models, folder / "whole")
    assert_only_the_critic_warms_up(case, whole.before, first)
    assert_micro_batches_change_nothing(case, whole, first, models, folder / "budget")
    laws.assert_resumed_is_uninterrupted(
        laws.Run(whole.before, whole.after, whole.rows), partial(runs.run, case, models, folder / "resumed")
    )
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
    """What is not trained is afterwards what it was, bit for bit, or that in the precision in which it is now held."""
    before, after = whole.frozen
    assert all(torch.equal(one.to(other.dtype), other) for one, other in zip(before, after, strict=True))


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


def assert_only_the_critic_warms_up(case: Case, before: Weights, first: Weights) -> None:
    moved = changed(before, first)
    assert moved
    if case["method"] == "ppo warming up":
        assert all(name.startswith(CRITIC) for name in moved)


def assert_micro_batches_change_nothing(
    case: Case, whole: runs.Outcome, first: Weights, models: Path, out: Path
) -> None:
    """Law 1, on what an update changes of all weights; of TRPO's single step also on the gradient."""
    other = {**case, "budget": "one row" if case["budget"] == "all" else "all"}
    again = runs.run(other, models, out, updates=1)
    # What sequences share goes back through their model's norms as one sum, and not the sum through each: all but OPT's
    # round to float32 whatever the model is in.
    in_float64 = case["precision"] == "float64" and case["model"] == "padded"
    rounding = 0.0 if case["group"] == "1" or in_float64 else 1e-6
    if case["method"] == "trpo":
        norms = [outcome.rows[1]["gradient_norm"] for outcome in (whole, again)]
        assert norms[0] == pytest.approx(norms[1], rel=max(ROUNDING[case["precision"]], rounding))
    # Conjugate gradients enlarge that beyond what can be compared.
    if case["method"] != "trpo" or not rounding:
        assert_same_change(whole.before, first, again.after, limit=max(limit_of(case), rounding))


def assert_alike_scores_move_no_policy(case: Case, models: Path, out: Path) -> None:
    """Where all scores are equal and the reference is where the policy is, no action was better than another."""
    if case["scores"] in ("penalised", "drawn again") or case["entropy"] != "0":
        return
    if case["reference"] == "bfloat16" and case["adapter"] == "none":
        return
    still = runs.run(case, models, out, updates=1, reward=runs.alike)
    assert all(name.startswith(CRITIC) for name in changed(still.before, still.after))
