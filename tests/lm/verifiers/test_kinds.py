"""The checkers of IFEval's instructions say what their definitions say, whatever the text, in linear time."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from rlhf.core.random import uniforms
from rlhf.lm.verifiers.instructions import loose_verdicts, strict_verdicts
from rlhf.lm.verifiers.kinds import CHECKERS
from tests.lm.verifiers.agreement import IFEVAL, ifeval_rows
from tests.lm.verifiers.cases import CASES, ENGLISH, LOOSE


def each(cases: list[Any]) -> list[Any]:
    return [
        pytest.param(
            kind, keywords, text, expected, id=f"{kind.partition(':')[2]}-{'follows' if expected else 'not'}{i}"
        )
        for kind, keywords, *texts in cases
        for expected, some in zip((True, False), texts, strict=True)
        for i, text in enumerate(some)
    ]


@pytest.mark.parametrize(("kind", "keywords", "text", "expected"), each(CASES))
def test_a_text_follows_what_it_follows_by_definition(
    kind: str, keywords: dict[str, Any], text: str, expected: bool
) -> None:
    assert strict_verdicts(text, [kind], [keywords]) == [expected]
    # Loose is never stricter; of these texts some follow without their first or last line, or stars.
    assert loose_verdicts(text, [kind], [keywords]) >= [expected]


@pytest.mark.parametrize(("kind", "keywords", "text", "expected"), each(LOOSE))
def test_loose_looks_past_first_line_last_line_and_stars(
    kind: str, keywords: dict[str, Any], text: str, expected: bool
) -> None:
    assert strict_verdicts(text, [kind], [keywords]) == [False]
    assert loose_verdicts(text, [kind], [keywords]) == [expected]


def test_every_kind_has_eight_cases_and_follows_an_empty_text_never() -> None:
    counts = {kind: sum(len(a) + len(b) for name, _, a, b in CASES if name == kind) for kind in CHECKERS}
    assert len(CHECKERS) == 25
    assert min(counts.values()) >= 8
    assert sum(counts.values()) >= 200
    assert {kind for kind, _, _, texts in CASES if "" in texts} == set(CHECKERS)


@pytest.mark.skipif(not IFEVAL.is_file(), reason="needs IFEval's prompts, beside the checkout in ../shared/data")
@pytest.mark.parametrize(("verdicts", "column"), [(strict_verdicts, "strict"), (loose_verdicts, "loose")])
def test_verdicts_on_responses_of_gpt4_are_those_of_the_authors(verdicts: Any, column: str) -> None:
    rows = ifeval_rows()
    theirs = [each for row in rows for each in row[f"gpt4_follow_{column}"]]
    ours = [each for row in rows for each in verdicts(row["gpt4_response"], row["instruction_id_list"], row["kwargs"])]
    assert len(theirs) == 408
    assert ours == theirs


KEYWORDS = {kind: keywords for kind, keywords, *_ in CASES}
PIECES = (
    *("*", "**", "***", "******", "[", "]", "<<", ">>", '"', "'", "```", "```json", "{", "}", ":", ",", "-", "* "),
    *("\n", "\n\n", "\r", "\t", " ", "\x00", "\x1c", "\u2028", "\u200b", "\ufeff", "\ud800", "\U0001f600", "ß", "İ"),
    *("P.S.", "p.p.s", "SECTION 1", "My answer is yes.", "A", "a", "Z", "star", "cat", "日本", "नमस्ते", "1.5"),
    *("Mr.", "...", "?", "!", "http://a.b", "a@b.c", "\\", "$", "(", ")", "^", "|", "cAN'T", "U.S.", "—", "_"),
)  # fmt: skip


def noise(seed: int, length: int) -> str:
    draws = uniforms(seed, "noise", 0, torch.tensor([0]), length)[0] * len(PIECES)
    return "".join(PIECES[int(draw)] for draw in draws)


@pytest.mark.parametrize("seed", range(8))
def test_every_text_gets_a_verdict_and_always_the_same(seed: int) -> None:
    kinds, keywords = list(KEYWORDS), list(KEYWORDS.values())
    for length in (1, 2, 5, 20, 80):
        text = noise(100 * seed + length, length)
        strict, loose = (verdicts(text, kinds, keywords) for verdicts in (strict_verdicts, loose_verdicts))
        assert all(type(verdict) is bool for verdict in strict)
        assert all(b >= a for a, b in zip(strict, loose, strict=True))
        assert strict == strict_verdicts(text, kinds, keywords)


@pytest.mark.parametrize("kind", CHECKERS)
def test_time_is_linear_in_the_text(kind: str) -> None:
    """Where every start is followed to the end, 200,000 characters take hours."""
    for piece in ("*", "<", "[", "\n", " ", "-\n", "* ", "P.", "SECTION", '"', "a ", ENGLISH + " "):
        text = piece * (200_000 // len(piece))
        begun = time.monotonic()
        strict_verdicts(text, [kind], [KEYWORDS[kind]])
        assert time.monotonic() - begun < 20.0, piece
