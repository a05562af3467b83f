"""Our verdicts on GPT-4's responses beside those that the authors of IFEval published: docs/verifiers.md's table.

python -m tests.lm.verifiers.agreement
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from rlhf.lm.verifiers.instructions import loose_verdicts, strict_verdicts
from rlhf.lm.verifiers.kinds import CHECKERS
from tests.warning_rule import ROOT

IFEVAL = ROOT.parent / "shared" / "data" / "ifeval" / "prompts.jsonl"


def ifeval_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in IFEVAL.read_text(encoding="utf-8").splitlines()]


def table() -> str:
    """For each kind: how many instructions, how many of them the authors say are followed, how many verdicts differ."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in CHECKERS}
    for row in ifeval_rows():
        asked = row["gpt4_response"], row["instruction_id_list"], row["kwargs"]
        for verdicts, column in ((strict_verdicts, "strict"), (loose_verdicts, "loose")):
            for kind, ours, theirs in zip(asked[1], verdicts(*asked), row[f"gpt4_follow_{column}"], strict=True):
                counts[kind] += Counter({f"{column} n": 1, column: theirs, f"{column} apart": ours != theirs})
    counts["all"] = sum(counts.values(), Counter())
    lines = [
        "| instruction | n | strict | loose | differ, strict | differ, loose |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind, count in counts.items():
        cells = count["strict n"], count["strict"], count["loose"], count["strict apart"], count["loose apart"]
        lines.append(f"| {kind if kind == 'all' else f'`{kind}`'} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
