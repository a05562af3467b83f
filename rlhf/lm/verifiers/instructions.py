"""Whether a response follows the instructions of its row: as reward functions, and as IFEval's verdicts.

The data need two columns, as IFEval's have them: `instruction_id_list`, the ids of kinds.py, and `kwargs`, a dict for
each of them with what its checker asks for. A keyword that is None counts as not given, since tables have all columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlhf.errors import InputError
from rlhf.lm.rewards import checks_rows
from rlhf.lm.verifiers.kinds import CHECKERS
from rlhf.lm.verifiers.nearness import nearness

Given = Mapping[str, Any]

# A letter of either case, so that whatever package a checker takes, it takes at the door; Deseret, which is found in no
# language at once, where a Latin one would be in many at length.
_TRIED = ("\U00010400", "\U00010428")
_KEYWORDS = {
    kind: [name for name in inspect.signature(checker).parameters if name != "text"]
    for kind, checker in CHECKERS.items()
}


def require_instructions(instruction_id_list: Sequence[str], kwargs: Sequence[Given]) -> None:
    """Refuses instructions of one row that no response could be checked against.

    Raises:
        InputError: A kind that is not known, keywords that it has not or lacks, a value that it cannot use; or a
            package that it takes is not installed.
    """
    for check in _checks(instruction_id_list, kwargs):
        for text in _TRIED:
            check.followed_by(text)


@checks_rows(require_instructions)
def share_followed(
    responses: list[str], instruction_id_list: list[Sequence[str]], kwargs: list[Sequence[Given]]
) -> list[float]:
    """The share of its instructions that a response follows, strictly: the reward to train on, since half is better
    than nothing."""
    each = map(strict_verdicts, responses, instruction_id_list, kwargs)
    return [sum(verdicts) / len(verdicts) for verdicts in each]


@checks_rows(require_instructions)
def all_followed(
    responses: list[str], instruction_id_list: list[Sequence[str]], kwargs: list[Sequence[Given]]
) -> list[float]:
    """1 for a response that follows all of its instructions, strictly, else 0: IFEval's accuracy by prompt."""
    return [float(all(each)) for each in map(strict_verdicts, responses, instruction_id_list, kwargs)]


@checks_rows(require_instructions)
def share_nearly_followed(
    responses: list[str], instruction_id_list: list[Sequence[str]], kwargs: list[Sequence[Given]]
) -> list[float]:
    """As `share_followed`, where an instruction that is not followed counts up to a half, by nearness.py: to train
    on, where verdicts are all alike and what comes nearer is found by chance."""
    return [
        sum(_credit(response, check) for check in checks) / len(checks)
        for response, checks in zip(responses, map(_checks, instruction_id_list, kwargs), strict=True)
    ]


def strict_verdicts(response: str, instruction_id_list: Sequence[str], kwargs: Sequence[Given]) -> list[bool]:
    """Which of the instructions the response follows as it stands; an empty one follows none."""
    return _verdicts([response], instruction_id_list, kwargs)


def loose_verdicts(response: str, instruction_id_list: Sequence[str], kwargs: Sequence[Given]) -> list[bool]:
    """Which of them it follows as it stands or without its first line, its last, both, and its stars, each way.

    More is let through than is meant, as what a response says around its answer is not known (Zhou et al., 2023,
    section 2.2; https://arxiv.org/abs/2311.07911).
    """
    lines = response.split("\n")
    parts = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    variants = dict.fromkeys([*parts, *(part.replace("*", "") for part in parts)])
    return _verdicts(list(variants), instruction_id_list, kwargs)


class _Check(NamedTuple):
    """One instruction of a row."""

    kind: str
    keywords: dict[str, Any]

    def followed_by(self, text: str) -> bool:
        try:
            return CHECKERS[self.kind](text, **self.keywords)
        except InputError as error:
            raise InputError(f"instruction {self.kind}: {error}") from error


def _verdicts(variants: list[str], instruction_id_list: Sequence[str], kwargs: Sequence[Given]) -> list[bool]:
    texts = [text for text in variants if text.strip()]
    return [any(check.followed_by(text) for text in texts) for check in _checks(instruction_id_list, kwargs)]


def _credit(text: str, check: _Check) -> float:
    if text.strip() and check.followed_by(text):
        return 1.0
    return nearness(text, check.kind, check.keywords) / 2


def _checks(kinds: Any, kwargs: Any) -> list[_Check]:
    for name, column in (("instruction_id_list", kinds), ("kwargs", kwargs)):
        if not isinstance(column, list | tuple):
            raise InputError(f"{name} is {column!r:.60}; it must be a list, with one entry an instruction.")
    if not kinds or len(kinds) != len(kwargs):
        raise InputError(f"there are {len(kinds)} instructions and {len(kwargs)} kwargs; give one each, at least one.")
    return [_Check(_known(kind), _keywords(kind, given)) for kind, given in zip(kinds, kwargs, strict=True)]


def _known(kind: Any) -> str:
    if not isinstance(kind, str) or kind not in CHECKERS:
        raise InputError(f"there is no instruction {kind!r:.60}; there are {', '.join(CHECKERS)}.")
    return kind


def _keywords(kind: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(f"instruction {kind}: kwargs are {given!r:.60}; they must be a dict.")
    keywords = {name: value for name, value in given.items() if value is not None}
    if keywords.keys() != set(_KEYWORDS[kind]):
        needs = " and ".join(_KEYWORDS[kind]) or "none"
        raise InputError(f"instruction {kind}: kwargs hold {', '.join(keywords) or 'none'}; it needs {needs}.")
    return keywords
