"""The learning claims of recipes/README.md, every seed: `make learning`. Results stay in runs/learning."""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import Any

import pytest

from rlhf.core.random import derive_seed
from rlhf.runs.log import read_lines
from tests.learning.pendulum_optimum import optimal_return
from tests.learning.results import REVIEWS, ROOT, result_of

pytestmark = pytest.mark.slow
needs_reviews = pytest.mark.skipif(
    not REVIEWS.is_dir(), reason="needs the review texts beside the checkout, in ../shared/data"
)
OF_REVIEWS = range(5)


def reviews(seed: int) -> dict[str, Any]:
    return result_of("movie_reviews", seed, "recipes/movie_reviews.py", "--data", str(REVIEWS))


@pytest.mark.parametrize("seed", range(10))
def test_cartpole_is_solved_and_stays_solved(seed: int) -> None:
    result = result_of("cartpole", seed, "recipes/cartpole.py")
    assert result["eval_episodes"] == 200
    assert result["stays_from_step"] is not None
    assert result["stays_from_step"] <= 40_000
    rows = read_lines(ROOT / "runs" / "learning" / f"cartpole-{seed}" / "ppo" / "metrics.jsonl")
    grid = [row["steps"] for row in rows if "eval_return_mean" in row]
    assert max(b - a for a, b in pairwise(grid)) <= 2_560
    assert grid[-1] >= 100_000


@pytest.mark.parametrize("seed", range(3))
def test_pendulum_comes_near_the_optimum(seed: int) -> None:
    result = result_of("pendulum", seed, "recipes/cartpole.py", "--env-id", "Pendulum-v1")
    optimum = optimal_return([derive_seed(seed, "evaluation", number) for number in range(200)])
    print(f"pendulum seed {seed}: optimum {optimum:.1f}, gap {optimum - result['eval_return_mean']:.1f}")
    assert result["eval_return_mean"] >= optimum - 40.0


@pytest.mark.parametrize("seed", range(3))
def test_acrobot_swings_up(seed: int) -> None:
    result = result_of("acrobot", seed, "recipes/cartpole.py", "--env-id", "Acrobot-v1")
    assert result["eval_return_mean"] > -90.0


@pytest.mark.parametrize("seed", range(3))
def test_arithmetic_is_learned_from_a_careless_teacher(seed: int) -> None:
    result = result_of("arithmetic", seed, "recipes/arithmetic.py")
    assert max(result["exact_match_before"], result["greedy_match_before"]) <= 0.70
    assert min(result["exact_match_after"], result["greedy_match_after"]) >= 0.95


@needs_reviews
@pytest.mark.parametrize("seed", OF_REVIEWS)
def test_movie_reviews_turn_positive_without_hacking_the_reward(seed: int) -> None:
    result = reviews(seed)
    assert 0.35 <= result["positive_before"] <= 0.65
    assert result["positive_after"] >= 0.90
    assert result["second_classifier_after"] >= 0.75
    assert result["kl_per_response"] <= 12.0
    assert abs(result["length_after"] / result["length_before"] - 1.0) <= 0.25
    assert result["distinct2_after"] >= 0.60 * result["distinct2_before"]


@needs_reviews
def test_nine_of_ten_movie_reviews_turn_positive_over_seeds() -> None:
    """Over seeds, with 95 % confidence: one seed's share varies by .013, and by .01 for its 979 beginnings alone."""
    shares = [reviews(seed)["positive_after"] for seed in OF_REVIEWS]
    # Student's t of four degrees of freedom, one-sided.
    lower = statistics.mean(shares) - 2.132 * statistics.stdev(shares) / len(shares) ** 0.5
    print(f"positive after: {shares}, at least {lower:.4f}")
    assert lower >= 0.90
