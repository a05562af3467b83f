"""A chat model before and after training, on the same prompts: what changed, paired by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.core.random import hashed_order
from rlhf.errors import InputError
from rlhf.lm.data import Data, load_data
from rlhf.lm.verifiers.instructions import require_instructions
from rlhf.lm.verifiers.kinds import asks_for_little
from rlhf.runs.evaluate import bootstrap_interval
from rlhf.runs.log import read_lines

Result = dict[str, float | None]
Record = Mapping[str, Any]
Value = Callable[[Record], float]
# What IFEval's prompts are checked by.
CHECKED_BY = ("instruction_id_list", "kwargs")
# Answers that people are shown.
SHOWN = 20


def read_ifeval(source: str) -> Data:
    """IFEval's prompts, as messages, with what its instructions are checked by."""
    data = load_data(source)
    for column in CHECKED_BY:
        data.values(column)
    for number, row in enumerate(data.rows):
        try:
            require_instructions(row["instruction_id_list"], row["kwargs"])
        except InputError as error:
            raise InputError(f"{source}: row {number}: {error}") from error
    return Data(
        name=data.name,
        rows=[
            {"prompt": [{"role": "user", "content": text}], **{name: row[name] for name in CHECKED_BY}}
            for text, row in zip(data.strings("prompt"), data.rows, strict=True)
        ],
    )


class Evaluations:
    """A phase's first evaluation and its last, by what their records say.

    Args:
        samples: The phase's samples.jsonl.
        rows: What was evaluated on, in the order of the task.
        of: The name under which a `Watched` task has them; None: the task's own.

    Raises:
        InputError: The two were on other prompts, as where data were changed on the way.
    """

    def __init__(self, samples: Path, rows: Sequence[Mapping[str, Any]], *, of: str | None = None) -> None:
        records = [
            record for record in read_lines(samples) if record["kind"] == "evaluation" and record.get("of") == of
        ]
        self.rows = rows
        self.before, self.after = (
            sorted((r for r in records if r["update"] == update), key=lambda r: r["row"])
            for update in (records[0]["update"], records[-1]["update"])
        )
        if [r["prompt"] for r in self.before] != [r["prompt"] for r in self.after] or len(rows) != len(self.after):
            raise InputError(
                f"{samples}: the last evaluation was on other prompts than the first, so nothing can be said of what "
                "changed; compare runs that began with the same data."
            )

    def change(
        self,
        name: str,
        value: Value,
        *,
        seed: int,
        weight: Value = lambda row: 1.0,
        where: Callable[[Record], bool] = lambda row: True,
    ) -> Result:
        """Means of a value of the records over the rows that are meant, each with its weight; records of one prompt
        count together. Nothing, if no row is meant."""
        prompts: dict[str, list[int]] = {}
        for i, row in enumerate(self.rows):
            if where(row):
                prompts.setdefault(self.before[i]["prompt"], []).append(i)
        if not prompts:
            return {}
        sums = [
            [sum(value(one[i]) * weight(self.rows[i]) for i in same) for one in (self.before, self.after)]
            for same in prompts.values()
        ]
        weights = [sum(weight(self.rows[i]) for i in same) for same in prompts.values()]
        return paired(name, sums, weights, seed=seed)


def paired(name: str, sums: Sequence[Sequence[float]], weights: Sequence[float], *, seed: int) -> Result:
    """Means before and after, and the 95 % bootstrap interval of their difference, which draws pairs.

    Args:
        sums: Of each prompt, the sum before and the sum after.
        weights: Of how much each is the sum.
    """
    table = np.array([[*pair, weight] for pair, weight in zip(sums, weights, strict=True)])

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


def of_generated(found: Evaluations, *, seed: int) -> Result:
    """What answers to generated prompts tell: `trained` kinds and others, relevance, length, and the KL after."""
    result: Result = {}
    values: dict[str, Value] = {
        "followed": lambda record: record["parts"]["share_followed"],
        "followed_greedy": lambda record: record["greedy_parts"]["share_followed"],
        "all_followed": lambda record: record["parts"]["all_followed"],
    }
    for name, value in values.items():
        result |= found.change(name, value, seed=seed, where=lambda row: row["trained"])
        result |= found.change(f"untrained_{name}", value, seed=seed, where=lambda row: not row["trained"])
    if "relevance" in found.before[0]["parts"]:
        # A sentence model may know no other language than its own.
        result |= found.change(
            "relevance",
            lambda record: record["parts"]["relevance"],
            seed=seed,
            where=lambda row: "language:response_language" not in row["instruction_id_list"],
        )
    result |= found.change(
        "length",
        lambda record: record["length"],
        seed=seed,
        where=lambda row: not asks_for_little(row["instruction_id_list"], row["kwargs"]),
    )
    result |= found.change("finished", lambda record: float(record["finished"]), seed=seed)
    kl = [record["kl"] for record in found.after if record["kl"] is not None]
    result["kl_per_response"] = sum(kl) / len(kl) if kl else None
    return result


def of_ifeval(found: Evaluations, *, seed: int) -> Result:
    """Strict accuracy of greedy answers, by prompt and by instruction (Zhou et al., 2023, section 2.2)."""
    by_prompt = found.change("ifeval_by_prompt", lambda record: record["greedy_parts"]["all_followed"], seed=seed)
    return by_prompt | found.change(
        "ifeval_by_instruction",
        lambda record: record["greedy_parts"]["share_followed"],
        seed=seed,
        weight=lambda row: float(len(row["instruction_id_list"])),
    )


def shown(found: Evaluations, *, seed: int) -> str:
    """Some sampled answers, before and after, for people to judge: a Markdown text."""
    chosen = hashed_order(seed, "answers that are shown", 0, torch.arange(len(found.rows)))[:SHOWN].tolist()
    parts = ["# Answers before and after, drawn by the seed\n"]
    for i in sorted(chosen):
        parts.append(f"## {i}\n\n{_quoted(found.rows[i]['prompt'][-1]['content'])}\n")
        for name, one in (("Before", found.before[i]), ("After", found.after[i])):
            parts.append(f"{name} ({one['parts']['share_followed']:.2f} followed):\n\n{_quoted(one['response'])}\n")
    return "\n".join(parts)


def _quoted(text: str) -> str:
    """As it is, in a block that it cannot leave."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
