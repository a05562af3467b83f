"""The 25 kinds of instruction of IFEval (Zhou et al., 2023, table 4; https://arxiv.org/abs/2311.07911), each a checker.

A checker says whether a text follows one instruction; its keywords are those of the instruction. Where the paper leaves
open what counts, it is what the authors' published verdicts count. No expression here searches again what it has
searched: time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rlhf.errors import InputError
from rlhf.lm.verifiers import counting
from rlhf.lm.verifiers.forms import read_json
from rlhf.settings import Count, checked

Relation = Literal["at least", "less than"]

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
"""One of them is in an answer that is constrained to them."""


def _related(number: int, relation: Relation, threshold: int) -> bool:
    return number < threshold if relation == "less than" else number >= threshold


def _require_words(name: str, words: Sequence[str]) -> None:
    if not words or not all(word.strip() for word in words):
        raise InputError(f"{name} is {list(words)!r:.60}; it must be a list of words, at least one.")


def _require_text(name: str, text: str) -> None:
    if not text.strip():
        raise InputError(f"{name} is {text!r}; it must hold some text.")


@checked
def existence(text: str, *, keywords: Sequence[str]) -> bool:
    """Every keyword is there, also within longer words."""
    _require_words("keywords", keywords)
    return all(counting.occurrences(keyword, text) for keyword in keywords)


@checked
def frequency(text: str, *, keyword: str, frequency: Count, relation: Relation) -> bool:
    """The keyword is there so often, also within longer words."""
    _require_text("keyword", keyword)
    return _related(counting.occurrences(keyword.strip(), text), relation, frequency)


@checked
def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """None of the words is there; within longer words they may be."""
    _require_words("forbidden_words", forbidden_words)
    return not any(counting.stands_alone(word, text) for word in forbidden_words)


@checked
def letter_frequency(text: str, *, letter: str, let_frequency: Count, let_relation: Relation) -> bool:
    """The letter is there so often, as a capital or not."""
    if len(letter) != 1 or letter.isspace():
        raise InputError(f"letter is {letter!r:.60}; it must be one character.")
    return _related(text.lower().count(letter.lower()), let_relation, let_frequency)


@checked
def response_language(text: str, *, language: str) -> bool:
    """The whole is in the language; a text without words is in none."""
    counting.require_language(language)
    return counting.language(text) == language


@checked
def number_sentences(text: str, *, num_sentences: Count, relation: Relation) -> bool:
    return _related(counting.num_sentences(text), relation, num_sentences)


@checked
def number_words(text: str, *, num_words: Count, relation: Relation) -> bool:
    return _related(counting.num_words(text), relation, num_words)


@checked
def number_paragraphs(text: str, *, num_paragraphs: Count) -> bool:
    """As many as there should be stand between dividers ***, of which one may come first and one last."""
    paragraphs = counting.between("***", text)
    return len(paragraphs) == num_paragraphs and all(paragraphs)


@checked
def nth_paragraph_first_word(text: str, *, num_paragraphs: Count, nth_paragraph: Count, first_word: str) -> bool:
    """There are so many paragraphs between empty lines, and the nth begins with the word."""
    _require_text("first_word", first_word)
    if nth_paragraph > num_paragraphs:
        raise InputError(f"nth_paragraph is {nth_paragraph}; it must be at most num_paragraphs, {num_paragraphs}.")
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    # An empty one is none, but counts where the nth is looked for.
    if sum(map(bool, paragraphs)) != num_paragraphs or not paragraphs[nth_paragraph - 1]:
        return False
    word = paragraphs[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word)[0].lower() == first_word.lower()


@checked
def postscript(text: str, *, postscript_marker: str) -> bool:
    """The marker is there, as capitals or not, with spaces after its full stops or not."""
    _require_text("postscript_marker", postscript_marker)
    pattern = r"\.\s?".join(re.escape(part.strip()) for part in postscript_marker.strip().split("."))
    return re.search(pattern, text, re.IGNORECASE) is not None


@checked
def number_placeholders(text: str, *, num_placeholders: Count) -> bool:
    """At least so many times something stands in square brackets on one line."""
    return counting.num_placeholders(text) >= num_placeholders


@checked
def number_bullet_lists(text: str, *, num_bullets: Count) -> bool:
    """Exactly so many lines begin with - or with one *."""
    return counting.num_bullets(text) == num_bullets


@checked
def number_highlighted_sections(text: str, *, num_highlights: Count) -> bool:
    """At least so many times something stands between stars on one line; what stands between two counts by itself."""
    return counting.num_highlights(text) >= num_highlights


@checked
def multiple_sections(text: str, *, section_spliter: str, num_sections: Count) -> bool:
    """At least so many times the word that begins a section is followed by a number."""
    _require_text("section_spliter", section_spliter)
    return counting.num_sections(section_spliter, text) >= num_sections


@checked
def json_format(text: str) -> bool:
    """The whole is JSON, in a fence of three backticks or not."""
    try:
        read_json(text)
    except ValueError:
        return False
    return True


@checked
def title(text: str) -> bool:
    """Something stands between << and >> on one line."""
    return any(_titled(line) for line in text.split("\n"))


def _titled(line: str) -> bool:
    start, end = line.find("<<"), line.rfind(">>")
    return 0 <= start < end - 2 and bool(line[start:end].lstrip("<").rstrip(">").strip())


@checked
def constrained_response(text: str) -> bool:
    """It holds one of the OPTIONS."""
    return any(option in text for option in OPTIONS)


@checked
def two_responses(text: str) -> bool:
    """Two different ones, with ****** between them, which may also come first and last."""
    responses = counting.between("******", text)
    return len(responses) == 2 and all(responses) and responses[0] != responses[1]


@checked
def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """It begins with the request, without regard to case."""
    _require_text("prompt_to_repeat", prompt_to_repeat)
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


@checked
def end_checker(text: str, *, end_phrase: str) -> bool:
    """It ends with the phrase, without regard to case and to double quotes around the whole."""
    _require_text("end_phrase", end_phrase)
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


@checked
def quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


@checked
def english_capital(text: str) -> bool:
    return text.isupper() and counting.language(text) == "en"


@checked
def english_lowercase(text: str) -> bool:
    return text.islower() and counting.language(text) == "en"


@checked
def capital_word_frequency(text: str, *, capital_frequency: Count, capital_relation: Relation) -> bool:
    """So many words have no lowercase letter."""
    return _related(counting.num_capital_words(text), capital_relation, capital_frequency)


@checked
def no_comma(text: str) -> bool:
    return "," not in text


def asks_for_little(kinds: Sequence[str], kwargs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some instruction keeps the answer short: one of the OPTIONS, or less than so many words or sentences."""
    return any(
        kind == "detectable_format:constrained_response" or (kind in _LENGTHS and given.get("relation") == "less than")
        for kind, given in zip(kinds, kwargs, strict=True)
    )


_LENGTHS = ("length_constraints:number_words", "length_constraints:number_sentences")

CHECKERS: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
