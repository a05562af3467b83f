"""What the recipes ask of the algorithms before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.algorithms import a2c, grpo, impala, off_policy, ppo, reinforce, reinforce_pp
from rlhf.algorithms.catalogue import ALGORITHMS, require_settings
from rlhf.control.presets import PRESETS
from rlhf.errors import InputError
from rlhf.lm import presets as lm_presets

DOCS = Path(__file__).parent.parent.parent / "docs" / "algorithms.md"


def test_whitening_is_part_of_the_method() -> None:
    require_settings(reinforce_pp.Config(), whiten="batch", steps=4, lag=0)
    require_settings(grpo.Config(), whiten="none", steps=4, lag=0)
    for whiten in ("none", "minibatch", "batch"):
        require_settings(ppo.Config(), whiten=whiten, steps=4, lag=0)
    with pytest.raises(InputError, match=r"whiten is none, but reinforce_pp needs batch"):
        require_settings(reinforce_pp.Config(), whiten="none", steps=1, lag=0)
    with pytest.raises(InputError, match=r"whiten is batch, but grpo needs none"):
        require_settings(grpo.Config(), whiten="batch", steps=1, lag=0)


def test_methods_without_a_ratio_in_their_loss_take_one_step() -> None:
    for config in (a2c.Config(), reinforce.Config(), impala.Config()):
        require_settings(config, whiten="none", steps=1, lag=0)
        with pytest.raises(InputError, match=r"minibatches is 2, but \w+ takes one step on each batch"):
            require_settings(config, whiten="none", steps=2, lag=0)


def test_only_methods_that_correct_for_it_take_a_lag() -> None:
    for config in (impala.Config(), off_policy.Config()):
        require_settings(config, whiten="none", steps=1, lag=3)
    for config in (ppo.Config(), a2c.Config(), grpo.Config()):
        with pytest.raises(InputError, match=r"lag is 3, but \w+ takes the actions for its own policy's"):
            require_settings(config, whiten="none", steps=1, lag=3)


def test_every_algorithm_has_settings_that_are_allowed_and_a_row_in_the_docs() -> None:
    """The table of `docs/algorithms.md` names each, and so do the presets."""
    assert {name for name, _ in PRESETS} == set(ALGORITHMS)
    for settings in PRESETS.values():
        steps = settings.optimize.epochs * settings.optimize.minibatches
        require_settings(settings.method, whiten=settings.optimize.whiten, steps=steps, lag=settings.collect.lag)
    assert set(lm_presets.PRESETS) <= set(ALGORITHMS)
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} >= set(ALGORITHMS)
