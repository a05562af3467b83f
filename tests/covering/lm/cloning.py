"""The mechanisms of cloning texts, tiny runs of them, and what each run keeps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import rlhf
from rlhf.rollout import Rollout
from rlhf.runs.log import read_lines
from tests.covering import laws
from tests.covering.cases import Case, Mechanisms
from tests.covering.laws import ROUNDING, Interruptible, assert_same_change, changed, quickly
from tests.covering.lm import runs
from tests.covering.lm.laws import CRITIC
from tests.covering.lm.mechanisms import FACTORS

_OF_ACTING = ("method", "reference", "entropy", "group", "lag", "whiten", "responses", "prompts", "turns", "scores")
# Of the texts: every token but the first is learned, what follows the prompt, or the assistant's turns.
MECHANISMS = Mechanisms(
    {name: values for name, values in FACTORS.items() if name not in _OF_ACTING}
    | {"shown": ("texts", "completions", "answers", "conversations"), "held out": ("none", "some")},
    [],
    [(("model", "experts"), ("precision", "float64")), (("model", "capped head"), ("precision", "float64"))],
)
SHOWN = [("a b", "c"), ("c", "d e f g a b"), ("b a b a c d", "e"), ("g", "f"), ("e f", "g a"), ("d", "a b c d e f g")]


def _row(shown: str, prompt: str, completion: str) -> Mapping[str, Any]:
    asked, answered = {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}
    return {
        "texts": {"text": f"{prompt} {completion}"},
        "completions": {"prompt": f"{prompt} ", "completion": completion},
        "answers": {"prompt": [asked], "completion": [answered]},
        "conversations": {"messages": [asked, answered, asked, answered]},
    }[shown]


class Shown(Interruptible, rlhf.Demonstrations):
    """Keeps what was learned first."""

    first: Rollout | None = None

    def collect(self, policy: Any, update: int, here: rlhf.Here) -> rlhf.Collected:
        collected = super().collect(policy, update, here)
        self.first = self.first or collected.rollout
        return collected


class Outcome(NamedTuple):
    """What a run came to."""

    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    trained: list[str]
    rows: list[dict[str, Any]]
    passes: list[tuple[int, int, bool]]
    first: Rollout
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
    """Clones by the front door, with a policy that is loaded anew; an epoch is one update and a half."""
    case = {**case, "reference": "none", "whiten": "none"}
    policy, held_out = runs.policy_of(case, models), 2 if case["held out"] == "some" else 0
    rows = [_row(case["shown"], *pair) for pair in (SHOWN if held_out else SHOWN[2:])]
    task = Shown(rows, rows_per_update=3, held_out=held_out)
    task.interrupted_at = interrupted_at
    before = laws.copied(dict(policy.named_parameters()))
    with runs.watched(policy) as passes, quickly():
        rlhf.train(
            policy,
            task,
            rlhf.BehaviourCloning(),
            runs.settings_of(case),
            updates=updates,
            evaluations=1,
            checkpoints=updates,
            out=out,
            resume=resume,
            mixed_precision="bf16" if case["precision"] == "bf16" else "no",
        )
    assert task.first is not None
    after = laws.copied(dict(policy.named_parameters()))
    trained = [name for name, tensor in policy.named_parameters() if tensor.requires_grad]
    logged = [] if out is None else read_lines(out / "clone" / "metrics.jsonl")
    return Outcome(before, after, trained, logged, passes, task.first, policy.temperature)


def assert_laws(case: Case, models: Path, folder: Path) -> None:
    whole = run(case, models, folder / "whole")
    assert_logs_the_likelihood(case, whole, models)
    assert_only_the_policy_learns(whole)
    assert_within_budget(case, whole)
    assert whole.temperature == float(case["temperature"])
    assert_neither_budget_nor_temperature_matters(case, whole, models, folder / "whole")
    laws.assert_resumed_is_uninterrupted(
        laws.Run(whole.before, whole.after, whole.rows), partial(run, case, models, folder / "resumed")
    )


@torch.no_grad()
def assert_logs_the_likelihood(case: Case, whole: Outcome, models: Path) -> None:
    """Of the shown actions, each row scored alone, at temperature 1, by the policy before it learned from them."""
    if case["precision"] == "bf16" or case["steps"] != "1 x 1":
        return
    policy = runs.policy_of({**case, "reference": "none", "temperature": "1"}, models)
    rollout = whole.first
    alone = [policy({name: x[i : i + 1] for name, x in rollout.inputs.items()}) for i in range(len(rollout.mask))]
    logprobs = torch.cat([output.logprobs for output in alone])[rollout.mask].double()
    expected = pytest.approx(float(-logprobs.mean()), rel=ROUNDING[case["precision"]])
    assert whole.rows[1]["negative_log_likelihood"] == expected


def assert_only_the_policy_learns(whole: Outcome) -> None:
    """Neither frozen weights nor the critic's own, to the last bit."""
    moved = set(changed(whole.before, whole.after))
    assert moved
    assert moved <= {name for name in whole.trained if not name.startswith(CRITIC)}


def assert_within_budget(case: Case, whole: Outcome) -> None:
    """No pass reads more tokens, padding included, than the budget, unless it is a single row."""
    assert all(rows * tokens <= runs.BUDGETS[case["budget"]] or rows == 1 for rows, tokens, _ in whole.passes)


def assert_neither_budget_nor_temperature_matters(case: Case, whole: Outcome, models: Path, folder: Path) -> None:
    """Law 1; and what is shown was not drawn at the policy's temperature."""
    policy = runs.policy_of({**case, "reference": "none"}, models)
    policy.load(folder / "clone" / "checkpoints" / "00000001" / "policy")
    first = laws.copied(dict(policy.named_parameters()))
    other = {
        "budget": "one row" if case["budget"] == "all" else "all",
        "temperature": "0.7" if case["temperature"] == "1" else "1",
    }
    again = run({**case, **other}, models, updates=1)
    before = {name: whole.before[name] for name in whole.trained}
    assert_same_change(before, first, again.after, limit=ROUNDING[case["precision"]])
