"""How near a text that does not follow an instruction comes to following it, from 0 to below 1.

A model that never follows an instruction learns nothing from its verdicts, which are all alike; what comes nearer is
found by chance and can be paid. Each function takes the keywords of its kind's checker; kinds that have none here are
followed or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf.lm.verifiers import counting


def nearness(text: str, kind: str, keywords: Mapping[str, Any]) -> float:
    """Of a text that does not follow the instruction, whose keywords are those of its checker."""
    near = _NEARNESS.get(kind)
    return near(text, **keywords) if near and text.strip() else 0.0


def _related(number: int, relation: str, threshold: int) -> float:
    return threshold / (number + 1) if relation == "less than" else number / threshold


def _exactly(number: int, wanted: int) -> float:
    """Below 1 also where the number is right and something else is not."""
    return min(number, wanted) / (max(number, wanted) + 1)


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)


def _paragraphs(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> float:
    parts = [part.strip().lower() for part in text.split("\n\n") if part.strip()]
    begun = len(parts) >= nth_paragraph and parts[nth_paragraph - 1].startswith(first_word.lower())
    return (_exactly(len(parts), num_paragraphs) + begun) / 2


def _repeated(text: str, prompt_to_repeat: str) -> float:
    """The share of the request that the text begins with."""
    said, asked = text.strip().lower(), prompt_to_repeat.strip().lower()
    same = next((i for i, (one, other) in enumerate(zip(said, asked, strict=False)) if one != other), len(said))
    return same / len(asked)


def _letters(text: str, wanted: Callable[[str], bool]) -> float:
    """The share of letters that are as wanted; a half of it, as these may be of no language."""
    letters = [letter for letter in text if letter.isalpha()]
    return _share([wanted(letter) for letter in letters]) / 2 if letters else 0.0


_NEARNESS: dict[str, Callable[..., float]] = {
    "keywords:existence": lambda text, keywords: _share([counting.occurrences(word, text) > 0 for word in keywords]),
    "keywords:frequency": lambda text, keyword, frequency, relation: _related(
        counting.occurrences(keyword.strip(), text), relation, frequency
    ),
    "keywords:forbidden_words": lambda text, forbidden_words: _share(
        [not counting.stands_alone(word, text) for word in forbidden_words]
    ),
    "keywords:letter_frequency": lambda text, letter, let_frequency, let_relation: _related(
        text.lower().count(letter.lower()), let_relation, let_frequency
    ),
    "length_constraints:number_sentences": lambda text, num_sentences, relation: _related(
        counting.num_sentences(text), relation, num_sentences
    ),
    "length_constraints:number_words": lambda text, num_words, relation: _related(
        counting.num_words(text), relation, num_words
    ),
    "length_constraints:number_paragraphs": lambda text, num_paragraphs: _exactly(
        len(counting.between("***", text)), num_paragraphs
    ),
    "length_constraints:nth_paragraph_first_word": _paragraphs,
    "detectable_content:number_placeholders": lambda text, num_placeholders: (
        counting.num_placeholders(text) / num_placeholders
    ),
    "detectable_format:number_bullet_lists": lambda text, num_bullets: _exactly(
        counting.num_bullets(text), num_bullets
    ),
    "detectable_format:number_highlighted_sections": lambda text, num_highlights: (
        counting.num_highlights(text) / num_highlights
    ),
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: (
        counting.num_sections(section_spliter, text) / num_sections
    ),
    "detectable_format:json_format": lambda text: _share(
        [text.strip().startswith(("{", "[", "```json")), text.strip().endswith(("}", "]", "```")), False]
    ),
    "detectable_format:title": lambda text: _share(["<<" in text, ">>" in text, False]),
    "combination:two_responses": lambda text: _exactly(len(counting.between("******", text)), 2),
    "combination:repeat_prompt": _repeated,
    "startend:end_checker": lambda text, end_phrase: _share([end_phrase.strip().lower() in text.lower(), False]),
    "startend:quotation": lambda text: _share([text.strip().startswith('"'), text.strip().endswith('"'), False]),
    "change_case:english_capital": lambda text: _letters(text, str.isupper),
    "change_case:english_lowercase": lambda text: _letters(text, str.islower),
    "change_case:capital_word_frequency": lambda text, capital_frequency, capital_relation: _related(
        counting.num_capital_words(text), capital_relation, capital_frequency
    ),
    "punctuation:no_comma": lambda text: 1 / (1 + text.count(",")),
}
