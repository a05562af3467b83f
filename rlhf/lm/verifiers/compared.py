"""One model before and after training on the same prompts: what changed, paired by prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.budget import micro_batches, passed_by
from rlhf.core.random import hashed_order
from rlhf.errors import InputError
from rlhf.lm.answer import answers
from rlhf.lm.data import Data, demonstration_rollout, load_data
from rlhf.lm.policy import CausalLM
from rlhf.lm.verifiers.instructions import require_instructions, strict_verdicts
from rlhf.lm.verifiers.kinds import asks_for_little
from rlhf.runs.evaluate import bootstrap_interval
from rlhf.runs.log import read_lines
from rlhf.runs.phase import Phase
from rlhf.sources import rows_sums

Result = dict[str, float | None]
# Answers that people are shown.
SHOWN = 20


def read_ifeval(source: str) -> list[dict[str, Any]]:
    """Rows of `prompt`, `instruction_id_list` and `kwargs`, each of which can be checked."""
    rows = [dict(row) for row in load_data(source).rows]
    for number, row in enumerate(rows):
        lacking = {"prompt", "instruction_id_list", "kwargs"} - row.keys()
        if lacking:
            raise InputError(f"{source} has no column {min(lacking)}; IFEval's prompts have it.")
        try:
            require_instructions(row["instruction_id_list"], row["kwargs"])
        except InputError as error:
            raise InputError(f"{source}: row {number}: {error}") from error
    return rows


@dataclass(frozen=True, kw_only=True)
class Apart:
    """What is measured of a model apart from what it is trained on."""

    ifeval: list[dict[str, Any]]
    """As `read_ifeval` gives them; answered greedily."""
    texts: Data | None
    """With a column text."""
    max_new_tokens: int
    token_budget: int
    """Most tokens that are decoded, or scored, at a time."""

    def inputs(self) -> dict[str, str]:
        sums = rows_sums("ifeval", "ifeval", self.ifeval) if self.ifeval else {}
        return sums | ({} if self.texts is None else rows_sums("texts", self.texts.name, self.texts.rows))

    def measured(self, phase: Phase, name: str, policy: CausalLM) -> dict[str, Any]:
        """Of the policy as it is when this is first called by that name, in this run or before it was interrupted."""
        folder = phase.once(name, lambda folder: (folder / "measured.json").write_text(json.dumps(self._of(policy))))
        found: dict[str, Any] = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
        return found

    def _of(self, policy: CausalLM) -> dict[str, Any]:
        said = answers(
            policy,
            [row["prompt"] for row in self.ifeval],
            max_new_tokens=self.max_new_tokens,
            token_budget=self.token_budget,
        )
        followed = [
            strict_verdicts(text, row["instruction_id_list"], row["kwargs"])
            for text, row in zip(said, self.ifeval, strict=True)
        ]
        losses = [] if self.texts is None else losses_on(policy, self.texts, token_budget=self.token_budget)
        return {"answers": said, "followed": followed, "losses": losses}

    def change(self, before: Mapping[str, Any], after: Mapping[str, Any], *, seed: int) -> Result:
        """IFEval's accuracy by prompt and by instruction, strict, and the loss in nats a token."""
        result: Result = {}
        if self.ifeval:
            pairs = [[np.array(one["followed"][i], float) for one in (before, after)] for i in range(len(self.ifeval))]
            result |= paired("ifeval_by_prompt", [(float(a.all()), float(b.all())) for a, b in pairs], seed=seed)
            counts = [len(a) for a, _ in pairs]
            result |= paired("ifeval_by_instruction", [(a.sum(), b.sum()) for a, b in pairs], counts, seed=seed)
        if self.texts is not None:
            sums = [(one[0], other[0]) for one, other in zip(before["losses"], after["losses"], strict=True)]
            result |= paired("loss_on_texts", sums, [number for _, number in before["losses"]], seed=seed)
        return result


def paired(
    name: str, pairs: Sequence[tuple[float, float]], counts: Sequence[float] | None = None, *, seed: int
) -> Result:
    """Means before and after, and the 95 % bootstrap interval of their difference, which draws pairs.

    Args:
        pairs: Of each prompt or text, the sum before and the sum after.
        counts: Of how many numbers each is the sum; None: of one.
    """
    table = np.array([[*pair, count] for pair, count in zip(pairs, counts or [1] * len(pairs), strict=True)], float)

    def change(rows: np.ndarray) -> float:
        return float((rows[:, 1] - rows[:, 0]).sum() / rows[:, 2].sum())

    low, high = bootstrap_interval(table, statistic=change, seed=seed)
    before, after, total = table.sum(axis=0).tolist()
    return {
        f"{name}_before": before / total,
        f"{name}_after": after / total,
        f"{name}_change_low": low,
        f"{name}_change_high": high,
    }


@torch.no_grad()
def losses_on(policy: CausalLM, texts: Data, *, token_budget: int) -> list[tuple[float, int]]:
    """Of each text its negative log-likelihood, nats, and its tokens but the first."""
    rows = demonstration_rollout(texts, policy.tokenizer, context=policy.context)
    losses = torch.zeros(len(rows.mask), dtype=torch.float64)
    for part in micro_batches(rows.costs, token_budget, passed=passed_by(policy, rows.inputs)):
        some = rows.rows(part)
        inputs = {name: tensor.to(policy.device) for name, tensor in some.inputs.items()}
        logprobs = policy(inputs).logprobs.double().cpu().masked_fill(~some.mask, 0.0)
        losses[part] = -logprobs.sum(dim=1)
    return list(zip(losses.tolist(), rows.mask.sum(dim=1).tolist(), strict=True))


def compared(samples: Path, rows: Sequence[Mapping[str, Any]], *, seed: int) -> Result:
    """What the sampled answers to held-out prompts tell, at the first evaluation and at the last.

    Args:
        samples: The phase's samples.jsonl.
        rows: The held-out rows, in the order of the task; answers to one prompt count together.
    """
    before, after = _evaluations(samples)
    result: Result = {}

    def add(name: str, value: Callable[[dict[str, Any]], float | None], rows_that: Callable[[Any], bool]) -> None:
        chosen = [i for i, row in enumerate(rows) if rows_that(row)]
        prompts: dict[str, list[int]] = {}
        for i in chosen:
            prompts.setdefault(str(rows[i]["prompt"]), []).append(i)
        sums = [tuple(sum(value(one[i]) or 0.0 for i in same) for one in (before, after)) for same in prompts.values()]
        if sums:
            result.update(paired(name, sums, [len(same) for same in prompts.values()], seed=seed))  # type: ignore[arg-type]

    for kinds, those in (("", lambda row: row["trained"]), ("untrained_", lambda row: not row["trained"])):
        add(f"{kinds}followed", lambda record: record["parts"]["share_followed"], those)
        add(f"{kinds}followed_greedy", lambda record: record["greedy_parts"]["share_followed"], those)
        add(f"{kinds}all_followed", lambda record: record["parts"]["all_followed"], those)
    if "relevance" in before[0]["parts"]:
        add("relevance", lambda record: record["parts"]["relevance"], lambda row: True)
    add(
        "length",
        lambda record: record["length"],
        lambda row: not asks_for_little(row["instruction_id_list"], row["kwargs"]),
    )
    add("finished", lambda record: float(record["finished"]), lambda row: True)
    kl = [record["kl"] for record in after if record["kl"] is not None]
    result["kl_per_response"] = sum(kl) / len(kl) if kl else None
    return result


def show(samples: Path, rows: Sequence[Mapping[str, Any]], place: Path, *, seed: int) -> None:
    """Writes some sampled answers, before and after, for people to judge."""
    before, after = _evaluations(samples)
    chosen = hashed_order(seed, "answers that are shown", 0, torch.arange(len(rows)))[:SHOWN].tolist()
    parts = ["# Answers before and after, drawn by the seed\n"]
    for i in sorted(chosen):
        asked = rows[i]["prompt"][-1]["content"]
        parts.append(f"## {i}\n\n{_quoted(asked)}\n")
        for name, one in (("Before", before[i]), ("After", after[i])):
            parts.append(f"{name} ({one['parts']['share_followed']:.2f} followed):\n\n{_quoted(one['response'])}\n")
    place.write_text("\n".join(parts), encoding="utf-8")


def _evaluations(samples: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of the first evaluation and of the last, by the number of their row."""
    records = [record for record in read_lines(samples) if record["kind"] == "evaluation"]
    first, last = records[0]["update"], records[-1]["update"]
    both = [sorted((r for r in records if r["update"] == update), key=lambda r: r["row"]) for update in (first, last)]
    return both[0], both[1]


def _quoted(text: str) -> str:
    """As it is, in a block that it cannot leave."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
