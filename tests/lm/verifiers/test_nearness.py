"""How near a text comes to following an instruction: by hand, below 1 for any text, and higher for what is nearer."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf.lm.verifiers.instructions import share_nearly_followed, strict_verdicts
from rlhf.lm.verifiers.nearness import nearness
from tests.lm.verifiers.cases import CASES
from tests.lm.verifiers.test_kinds import noise

LEAST, MOST = {"relation": "at least"}, {"relation": "less than"}


@pytest.mark.parametrize(
    ("kind", "keywords", "text", "expected"),
    [
        ("keywords:existence", {"keywords": ["fox", "owl"]}, "A fox.", 1 / 2),
        ("keywords:frequency", {"keyword": "fox", "frequency": 3} | LEAST, "Fox, foxes.", 2 / 3),
        ("keywords:frequency", {"keyword": "fox", "frequency": 2} | MOST, "fox fox fox", 2 / 4),
        ("keywords:forbidden_words", {"forbidden_words": ["fox", "owl", "bee"]}, "A fox, two foxes.", 2 / 3),
        ("keywords:letter_frequency", {"letter": "e", "let_frequency": 4, "let_relation": "at least"}, "Ee", 2 / 4),
        ("language:response_language", {"language": "de"}, "It is an English text.", 0.0),
        ("length_constraints:number_sentences", {"num_sentences": 4} | LEAST, "One. Two.", 2 / 4),
        ("length_constraints:number_words", {"num_words": 2} | MOST, "one two three", 2 / 4),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 3}, "one\n***\ntwo", 2 / 4),
        ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "one\n***\ntwo", 1 / 3),
        ("length_constraints:nth_paragraph_first_word",
         {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Owls"}, "A\n\nOwls.\n\nB", (2 / 4 + 1) / 2),
        ("length_constraints:nth_paragraph_first_word",
         {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Owls"}, "Owls.", 1 / 3 / 2),
        ("detectable_content:number_placeholders", {"num_placeholders": 3}, "[name] and [place]", 2 / 3),
        ("detectable_content:postscript", {"postscript_marker": "P.S."}, "PS: no", 0.0),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- a\n- b\n- c", 2 / 4),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* b", 1 / 2),
        ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 3}, "Part 1 Part", 1 / 3),
        ("detectable_format:json_format", {}, '{"a": 1', 1 / 3),
        ("detectable_format:title", {}, "<<A", 1 / 3),
        ("combination:two_responses", {}, "one", 1 / 3),
        ("combination:repeat_prompt", {"prompt_to_repeat": "What is it?"}, "what can I say", 5 / 11),
        ("combination:repeat_prompt", {"prompt_to_repeat": "What is it?"}, "What", 4 / 11),
        # Small, each is two characters.
        ("combination:repeat_prompt", {"prompt_to_repeat": "İİİa"}, "İİİb", 6 / 7),
        ("startend:end_checker", {"end_phrase": "That is all."}, "That is all. Bye.", 1 / 2),
        ("startend:quotation", {}, '"Never.', 1 / 3),
        ("change_case:english_capital", {}, "A fOX!", 3 / 4 / 2),
        ("change_case:english_lowercase", {}, "A fox!", 3 / 4 / 2),
        ("change_case:capital_word_frequency",
         {"capital_frequency": 2, "capital_relation": "at least"}, "NO way", 1 / 2),
        ("punctuation:no_comma", {}, "a, b, c", 1 / 3),
    ],
)  # fmt: skip
def test_by_hand(kind: str, keywords: dict[str, Any], text: str, expected: float) -> None:
    assert strict_verdicts(text, [kind], [keywords]) == [False]
    assert nearness(text, kind, keywords) == pytest.approx(expected)
    assert share_nearly_followed([text], [[kind]], [[keywords]]) == pytest.approx([expected / 2])


@pytest.mark.parametrize("seed", range(8))
def test_what_does_not_follow_is_paid_at_most_half_and_what_follows_one(seed: int) -> None:
    for kind, keywords, *texts in CASES:
        for text in [*texts[0], *texts[1], *(noise(seed * 8 + i, 40) for i in range(8))]:
            (paid,) = share_nearly_followed([text], [[kind]], [[keywords]])
            if strict_verdicts(text, [kind], [keywords]) == [True]:
                assert paid == 1.0
            else:
                assert 0.0 <= paid < 0.5, (kind, text)


def test_a_row_is_paid_the_mean_of_its_instructions_and_nothing_for_an_empty_answer() -> None:
    columns = {
        "instruction_id_list": [["punctuation:no_comma", "detectable_format:title"]] * 2,
        "kwargs": [[{}, {}]] * 2,
    }
    assert share_nearly_followed(["a, <<b>>", " "], **columns) == pytest.approx([(1 / 4 + 1) / 2, 0.0])
