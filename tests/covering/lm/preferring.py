"""The mechanisms of learning from preferences, tiny runs of it, and what each run keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch import Tensor

import rlhf
from rlhf.runs.log import read_lines
from tests.covering import laws
from tests.covering.cases import Case, Mechanisms, Refusal, refused
from tests.covering.laws import ROUNDING, Interruptible, assert_same_change, changed, quickly
from tests.covering.lm import runs
from tests.covering.lm.cloning import MECHANISMS as CLONING
from tests.covering.lm.laws import CRITIC

METHODS: dict[str, rlhf.Method] = {
    "dpo": rlhf.DPO(),
    "smoothed dpo": rlhf.DPO(beta=0.5, label_smoothing=0.1),
    "ipo": rlhf.DPO(loss_type="ipo"),
    "hinge": rlhf.DPO(loss_type="hinge"),
    "kto": rlhf.KTO(undesirable_weight=0.5),
    "reward model": rlhf.BradleyTerry(margin_coef=0.5, centring_coef=0.1),
}
_PAIRED = ("dpo", "smoothed dpo", "ipo", "hinge", "reward model")
_WHOLE = "a reward model is saved as a whole classifier"


def _refusals() -> list[Refusal]:
    return [
        *refused("method", _PAIRED, "compared", ("labels",), "learns from pairs, and the data has one answer a row"),
        Refusal(("method", "reward model"), ("critic", "none"), "critic is none"),
        Refusal(("method", "reward model"), ("critic", "separate"), "critic is separate"),
        *(
            Refusal(("method", "reward model"), ("adapter", adapter), _WHOLE)
            for adapter in ("dora", "lora with a module")
        ),
    ]


MECHANISMS = Mechanisms(
    {"method": tuple(METHODS)}
    | {name: values for name, values in CLONING.factors.items() if name != "shown"}
    | {"compared": ("strings", "messages", "what both begin with", "labels")},
    _refusals(),
    [(("model", "experts"), ("precision", "float64")), (("model", "capped head"), ("precision", "float64"))],
)
SHOWN = [
    ("a b", "c", "d"),
    ("c d", "d e f g a b", "a"),
    ("b a b", "e", "f g"),
    ("g a", "f", "a c e g"),
    ("e f", "g a", "b"),
    ("d b", "a b c d e f g", "g"),
    ("a c", "b", "f e d"),
]


def _rows(compared: str, prompt: str, chosen: str, rejected: str) -> list[Mapping[str, Any]]:
    asked = {"role": "user", "content": prompt}
    answers = [{"role": "assistant", "content": answer} for answer in (chosen, rejected)]
    if compared == "labels":
        return [
            {"prompt": f"{prompt} ", "completion": answer, "label": answer == chosen} for answer in (chosen, rejected)
        ]
    sides: dict[str, dict[str, Any]] = {
        "strings": {"prompt": f"{prompt} ", "chosen": chosen, "rejected": rejected},
        "messages": {"chosen": [asked, answers[0]], "rejected": [asked, answers[1]]},
        "what both begin with": {"chosen": f"{prompt} {chosen}", "rejected": f"{prompt} {rejected}"},
    }
    return [sides[compared] | {"margin": len(chosen)}]


class Compared(Interruptible, rlhf.Preferences):
    pass


class Outcome(NamedTuple):
    """What a run came to."""

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    trained: list[str]
    rows: list[dict[str, Any]]
    passes: list[tuple[int, int, bool]]
    temperature: float
    """Of the policy afterwards."""


def run(
    case: Case,
    models: Path,
    out: Path | None = None,
    *,
    updates: int = runs.UPDATES,
    interrupted_at: int | None = None,
    resume: bool = False,
) -> Outcome:
    """Learns by the front door, with a policy that is loaded anew; an epoch is an update and a half, or more."""
    plain, method = {**case, "reference": "none", "whiten": "none", "entropy": "0"}, METHODS[case["method"]]
    policy, held_out = runs.policy_of(plain, models), 2 if case["held out"] == "some" else 0
    shown = SHOWN if held_out else SHOWN[2:]
    task = Compared(
        [row for each in shown for row in _rows(case["compared"], *each)], rows_per_update=3, held_out=held_out
    )
    task.interrupted_at = interrupted_at
    before = laws.copied(dict(policy.named_parameters()))
    settings = laws.optimize_of(plain, budget=runs.BUDGETS[case["budget"]], critic=case["method"] == "reward model")
    with runs.watched(policy) as passes, quickly():
        rlhf.train(
            policy,
            task,
            method,
            settings,
            updates=updates,
            evaluations=1,
            checkpoints=updates,
            out=out,
            resume=resume,
            mixed_precision="bf16" if case["precision"] == "bf16" else "no",
        )
    after = laws.copied(dict(policy.named_parameters()))
    trained = [name for name, tensor in policy.named_parameters() if tensor.requires_grad]
    logged = [] if out is None else read_lines(out / method.name / "metrics.jsonl")
    return Outcome(before, after, trained, logged, passes, policy.temperature)


def assert_laws(case: Case, models: Path, folder: Path) -> None:
    whole = run(case, models, folder / "whole")
    assert_starts_where_no_row_is_preferred(case, whole)
    assert_only_what_it_is_about_learns(case, whole)
    assert_within_budget(case, whole)
    assert whole.temperature == float(case["temperature"])
    assert_neither_budget_nor_temperature_matters(case, whole, models, folder / "whole")
    laws.assert_resumed_is_uninterrupted(
        laws.Run(whole.before, whole.after, whole.rows), partial(run, case, models, folder / "resumed")
    )


def assert_starts_where_no_row_is_preferred(case: Case, whole: Outcome) -> None:
    """The policy is its own reference, and a value head begins at 0."""
    if case["steps"] != "1 x 1":
        return
    expected = {
        "dpo": math.log(2),
        "smoothed dpo": math.log(2),
        "ipo": 25.0,
        "hinge": 1.0,
    }
    name, tolerance = case["method"], 10 * ROUNDING[case["precision"]]
    if name in expected:
        assert whole.rows[1]["preference_loss"] == pytest.approx(expected[name], rel=tolerance)
    if name == "kto":
        # Of so many desirable and undesirable rows of weight 1 and 0.5.
        assert 0.25 - tolerance <= whole.rows[1]["preference_loss"] <= 0.5 + tolerance
        assert whole.rows[1]["kl_to_reference"] == pytest.approx(0.0, abs=tolerance)
    if name == "reward model":
        assert whole.rows[1]["margin"] == 0.0


def assert_only_what_it_is_about_learns(case: Case, whole: Outcome) -> None:
    """Neither frozen weights nor, but for a reward model, the critic's own; of that not the bias."""
    moved = set(changed(whole.before, whole.after))
    assert moved
    if case["method"] == "reward model":
        assert "value_head.weight" in moved
        assert "value_head.bias" not in moved
        assert moved <= set(whole.trained)
    else:
        assert moved <= {name for name in whole.trained if not name.startswith(CRITIC)}


def assert_within_budget(case: Case, whole: Outcome) -> None:
    """No pass reads more tokens, padding included, than the budget, unless it is a single row or pair."""
    together = 1 if case["method"] == "kto" else 2
    longest = max(tokens for _, tokens, _ in whole.passes)
    budget = max(runs.BUDGETS[case["budget"]], together * longest)
    assert all(rows * tokens <= budget for rows, tokens, _ in whole.passes)


def assert_neither_budget_nor_temperature_matters(case: Case, whole: Outcome, models: Path, folder: Path) -> None:
    """Law 1; and what was compared was not drawn at the policy's temperature."""
    policy = runs.policy_of({**case, "reference": "none"}, models)
    policy.load(folder / METHODS[case["method"]].name / "checkpoints" / "00000001" / "policy")
    first = laws.copied(dict(policy.named_parameters()))
    other = {
        "budget": "one row" if case["budget"] == "all" else "all",
        "temperature": "0.7" if case["temperature"] == "1" else "1",
    }
    again = run({**case, **other}, models, updates=1)
    before = {name: whole.before[name] for name in whole.trained}
    # transformers' norms compute in float32, and a prompt that two rows share stands there once: what both add to its
    # gradient is rounded together or apart.
    assert_same_change(before, first, again.after, limit=max(ROUNDING[case["precision"]], 1e-6))
