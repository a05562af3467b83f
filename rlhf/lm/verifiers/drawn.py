"""Instructions drawn for a request: what each asks for, and which of them one response can follow together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

from rlhf.core.random import uniforms
from rlhf.lm.verifiers.kinds import CHECKERS, OPTIONS
from rlhf.lm.verifiers.wordings import END_PHRASES, FIRST_WORDS, FREQUENT, KEYWORDS, LANGUAGES, SECTIONS

T = TypeVar("T")

# More than a row takes whose every kind is tried: each is tried once, with about five draws.
_NUM_DRAWS = 256


class Request(NamedTuple):
    """What is asked for, without instructions."""

    text: str
    topic: str
    yes_or_no: bool


class Draws:
    """The draws of one row, each at a position of its own."""

    def __init__(self, seed: int, purpose: str, row: int) -> None:
        drawn = uniforms(seed, purpose, 0, torch.tensor([row]), _NUM_DRAWS)
        self._uniforms: Iterator[float] = iter(drawn[0].tolist())

    def one(self, choices: Sequence[T]) -> T:
        return choices[int(next(self._uniforms) * len(choices))]

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        """Different ones, in the order they are drawn in."""
        left = list(choices)
        return [left.pop(left.index(self.one(left))) for _ in range(count)]


# A letter's share of English, roughly: a response of 40 to 120 words has so many of one without thinking.
_LETTERS = {"etaoinsr": range(10, 26, 5), "hdlcumfwgpyb": range(3, 9), "vkjxqz": range(2, 5)}


def keywords(kind: str, request: Request, draws: Draws) -> dict[str, Any]:
    """What an instruction of this kind asks for; nothing, where a kind has no keywords."""
    draw = _DRAWN.get(kind)
    return draw(request, draws) if draw else {}


def fit(kind: str, chosen: Mapping[str, Any], request: Request) -> bool:
    """Whether an instruction of this kind may stand beside the chosen ones, whatever they ask for."""
    if kind == "detectable_format:constrained_response" and not request.yes_or_no:
        return False
    return kind not in chosen and not any(frozenset((kind, other)) in _APART for other in chosen)


def together(chosen: Mapping[str, Mapping[str, Any]], request: Request) -> bool:
    """Whether what some ask for is not what others rule out: those are checked on all that must be there."""
    needed = " ".join(_NEEDED[kind](asked, request) for kind, asked in chosen.items() if kind in _NEEDED)
    limits = (kind for kind, asked in chosen.items() if kind in _LIMITS or "less than" in asked.values())
    return all(CHECKERS[kind](needed, **chosen[kind]) for kind in limits)


def _related(draws: Draws, at_least: Sequence[int], less_than: Sequence[int]) -> tuple[str, int]:
    relation = draws.one(("at least", "less than"))
    return relation, draws.one(at_least if relation == "at least" else less_than)


def _words(request: Request, draws: Draws, choices: Sequence[str], count: int) -> list[str]:
    """Sometimes the first is of the topic."""
    last = request.topic.split()[-1].lower()
    words = draws.some([word for word in choices if word != last], count)
    return [last, *words[1:]] if draws.one(range(4)) == 0 else words


def _frequency(request: Request, draws: Draws) -> dict[str, Any]:
    relation, number = _related(draws, (2, 3), (2, 3, 4))
    choices = KEYWORDS if relation == "at least" else FREQUENT
    return {"keyword": _words(request, draws, choices, 1)[0], "frequency": number, "relation": relation}


def _letter_frequency(_: Request, draws: Draws) -> dict[str, Any]:
    letters = draws.one(list(_LETTERS))
    relation, number = _related(draws, _LETTERS[letters], [each + 1 for each in _LETTERS[letters]])
    return {"letter": draws.one(letters), "let_frequency": number, "let_relation": relation}


def _number_sentences(_: Request, draws: Draws) -> dict[str, Any]:
    relation, number = _related(draws, range(2, 6), range(3, 7))
    return {"relation": relation, "num_sentences": number}


def _number_words(_: Request, draws: Draws) -> dict[str, Any]:
    relation, number = _related(draws, range(20, 75, 5), range(30, 85, 5))
    return {"relation": relation, "num_words": number}


def _nth_paragraph(_: Request, draws: Draws) -> dict[str, Any]:
    number = draws.one((2, 3))
    nth = draws.one(range(1, number + 1))
    return {"num_paragraphs": number, "nth_paragraph": nth, "first_word": draws.one(FIRST_WORDS)}


def _capital_words(_: Request, draws: Draws) -> dict[str, Any]:
    relation, number = _related(draws, range(2, 6), range(2, 6))
    return {"capital_frequency": number, "capital_relation": relation}


_DRAWN: dict[str, Callable[[Request, Draws], dict[str, Any]]] = {
    "keywords:existence": lambda request, draws: {"keywords": _words(request, draws, KEYWORDS, draws.one((2, 3)))},
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": lambda request, draws: {
        "forbidden_words": _words(request, draws, FREQUENT, draws.one((2, 3)))
    },
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": lambda _, draws: {"language": draws.one(list(LANGUAGES))},
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_words": _number_words,
    "length_constraints:number_paragraphs": lambda _, draws: {"num_paragraphs": draws.one((2, 3, 4))},
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_content:number_placeholders": lambda _, draws: {"num_placeholders": draws.one((2, 3))},
    "detectable_content:postscript": lambda _, draws: {"postscript_marker": draws.one(("P.S.", "P.P.S"))},
    "detectable_format:number_bullet_lists": lambda _, draws: {"num_bullets": draws.one((2, 3, 4, 5))},
    "detectable_format:number_highlighted_sections": lambda _, draws: {"num_highlights": draws.one((2, 3))},
    "detectable_format:multiple_sections": lambda _, draws: {
        "section_spliter": draws.one(SECTIONS),
        "num_sections": draws.one((2, 3)),
    },
    "combination:repeat_prompt": lambda request, _: {"prompt_to_repeat": request.text},
    "startend:end_checker": lambda _, draws: {"end_phrase": draws.one(END_PHRASES)},
    "change_case:capital_word_frequency": _capital_words,
}

# What must be there, by those that ask for it; and those that rule something out whatever their relation.
_NEEDED: dict[str, Callable[[Mapping[str, Any], Request], str]] = {
    "keywords:existence": lambda asked, _: " ".join(asked["keywords"]),
    "keywords:frequency": lambda asked, _: f"{asked['keyword']} " * (asked["frequency"] * _least(asked["relation"])),
    "keywords:letter_frequency": lambda asked, _: (
        asked["letter"] * (asked["let_frequency"] * _least(asked["let_relation"]))
    ),
    "length_constraints:nth_paragraph_first_word": lambda asked, _: asked["first_word"],
    "detectable_content:postscript": lambda asked, _: asked["postscript_marker"],
    "detectable_format:constrained_response": lambda _, __: OPTIONS[0],
    "detectable_format:multiple_sections": lambda asked, _: f"{asked['section_spliter']} 1 " * asked["num_sections"],
    "combination:repeat_prompt": lambda _, request: request.text,
    "startend:end_checker": lambda asked, _: asked["end_phrase"],
}
_LIMITS = ("keywords:forbidden_words", "punctuation:no_comma")


def _least(relation: str) -> bool:
    return relation == "at least"


def _apart(*groups: Sequence[str]) -> set[frozenset[str]]:
    """Every two of a group."""
    return {frozenset(pair) for group in groups for pair in itertools.combinations(group, 2)}


def _beside(one: str, others: Sequence[str]) -> set[frozenset[str]]:
    return {frozenset((one, other)) for other in others}


_LAYOUTS = (
    *("length_constraints:number_paragraphs", "length_constraints:nth_paragraph_first_word"),
    *("detectable_format:multiple_sections", "detectable_format:number_bullet_lists", "detectable_format:json_format"),
    *("combination:two_responses", "combination:repeat_prompt", "detectable_format:constrained_response"),
)
_CASES = ("change_case:english_capital", "change_case:english_lowercase")
_IN_ENGLISH = (
    *("keywords:existence", "keywords:frequency", "keywords:forbidden_words", "startend:end_checker", *_CASES),
    *(
        "length_constraints:nth_paragraph_first_word",
        "detectable_format:multiple_sections",
        "combination:repeat_prompt",
    ),
    "detectable_format:constrained_response",
)
# Pairs that no response follows, or none that anybody would want.
_APART = (
    _apart(
        _LAYOUTS,
        (*_CASES, "change_case:capital_word_frequency"),
        ("length_constraints:number_words", "length_constraints:number_sentences"),
        ("startend:end_checker", "detectable_content:postscript"),
        ("combination:repeat_prompt", "startend:quotation", "detectable_format:json_format"),
    )
    | _beside("language:response_language", _IN_ENGLISH)
    | _beside("length_constraints:number_sentences", _LAYOUTS)
    | _beside(
        "detectable_format:json_format",
        (
            *("punctuation:no_comma", "startend:end_checker", "detectable_content:postscript"),
            *("detectable_format:title", "detectable_format:number_highlighted_sections"),
        ),
    )
    | _beside(
        "detectable_format:constrained_response",
        (
            *(*_CASES, "keywords:existence", "keywords:frequency", "keywords:letter_frequency"),
            *("length_constraints:number_words", "detectable_content:number_placeholders"),
            "change_case:capital_word_frequency",
        ),
    )
    | {
        frozenset((case, other))
        for case in _CASES
        for other in ("detectable_format:multiple_sections", "combination:repeat_prompt")
    }
)
