"""A response that follows all instructions of a row, built from what they ask for: so one can."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rlhf.lm.verifiers.counting import num_words
from rlhf.lm.verifiers.instructions import strict_verdicts
from rlhf.lm.verifiers.kinds import OPTIONS

# Short, without commas, and of several letters, since a letter may be all but forbidden.
_ENGLISH = (
    "They say that the weather is fine there.",
    "You know how old books look.",
    "My dog runs along a road.",
    "We all go on by boat.",
    "Her son left him here.",
    "What a child sees one finds.",
    "Up high my cow flew.",
    "Go on to do so now.",
    "Each man helps each man.",
)
_OTHERS = {
    "es": "El perro duerme debajo de la mesa porque hace mucho calor en la calle.",
    "fr": "Le chien dort sous la table parce que nous avons beaucoup de soleil dehors.",
    "de": "Der kleine Hund schläft unter dem Tisch weil draußen die Sonne scheint.",
    "it": "Il cane dorme sotto la tavola perché oggi nella strada fa molto caldo.",
    "pt": "Meu cachorro dorme debaixo da mesa porque hoje não há sombra na rua.",
    "nl": "De hond slaapt onder de tafel omdat het vandaag buiten erg warm is.",
}


def witness(row: Mapping[str, Any]) -> str | None:
    """The first that follows; None if there is none."""
    kinds, kwargs = row["instruction_id_list"], row["kwargs"]
    asked = {kind.partition(":")[2]: given for kind, given in zip(kinds, kwargs, strict=True)}
    language = asked.get("response_language", {}).get("language")
    for sentence in [_OTHERS[language]] if language else _ENGLISH:
        # More sentences where letters that must be there leave doubt of the language.
        for more in (0, 1, 5):
            text = _text(asked, sentence, row["request"], more)
            if all(strict_verdicts(text, kinds, kwargs)):
                return text
    return None


def _text(asked: Mapping[str, Any], sentence: str, request: str, more: int) -> str:
    word = sentence.split()[1]
    body = _body(asked, sentence, word) + f" {sentence}" * more
    pieces, divider = _pieces(asked, sentence, body, request)
    text = divider.join(pieces)
    marked = "".join(
        f"\n**{word}**" for _ in range(asked.get("number_highlighted_sections", {}).get("num_highlights", 0))
    )
    text += marked + (f"\n<<{word}>>" if "title" in asked else "")
    if "postscript" in asked:
        text += f"\n{asked['postscript']['postscript_marker']} {sentence}"
    if "end_checker" in asked:
        text += f"\n{asked['end_checker']['end_phrase']}"
    if "json_format" in asked:
        text = json.dumps({word: text}, ensure_ascii=False)
    if "english_capital" in asked:
        text = text.upper()
    if "english_lowercase" in asked:
        text = text.lower()
    # The quotation mark is on no line of the list.
    start = '"\n' if "number_bullet_lists" in asked else '"'
    return f'{start}{text}"' if "quotation" in asked else text


def _body(asked: Mapping[str, Any], sentence: str, word: str) -> str:
    """Enough sentences, the first with every word and letter that has to be there."""
    extra = [*asked.get("existence", {}).get("keywords", [])]
    for kind, what, count, relation in (
        ("frequency", "keyword", "frequency", "relation"),
        ("letter_frequency", "letter", "let_frequency", "let_relation"),
        ("capital_word_frequency", None, "capital_frequency", "capital_relation"),
    ):
        given = asked.get(kind)
        if given and given[relation] == "at least":
            extra += (
                [given[what] if what else word.upper()] * given[count]
                if kind != "letter_frequency"
                else [given[what] * given[count]]
            )
    extra += [f"[{word}]"] * asked.get("number_placeholders", {}).get("num_placeholders", 0)
    least = [1]
    for kind, count, each in (
        ("number_sentences", "num_sentences", 1),
        ("number_words", "num_words", num_words(sentence)),
    ):
        if kind in asked and asked[kind]["relation"] == "at least":
            least.append(math.ceil(asked[kind][count] / each))
    return " ".join([" ".join([sentence.removesuffix("."), *extra]) + ".", *[sentence] * (max(least) - 1)])


def _pieces(asked: Mapping[str, Any], sentence: str, body: str, request: str) -> tuple[list[str], str]:
    if "number_paragraphs" in asked:
        return [body, *[sentence] * (asked["number_paragraphs"]["num_paragraphs"] - 1)], "\n***\n"
    if "nth_paragraph_first_word" in asked:
        given = asked["nth_paragraph_first_word"]
        pieces = [body, *[sentence] * (given["num_paragraphs"] - 1)]
        pieces[given["nth_paragraph"] - 1] = f"{given['first_word']} {pieces[given['nth_paragraph'] - 1]}"
        return pieces, "\n\n"
    if "multiple_sections" in asked:
        given = asked["multiple_sections"]
        heads = [f"{given['section_spliter']} {number + 1}" for number in range(given["num_sections"])]
        return [f"{head}\n{body if head == heads[0] else sentence}" for head in heads], "\n"
    if "number_bullet_lists" in asked:
        points = [body, *[sentence] * (asked["number_bullet_lists"]["num_bullets"] - 1)]
        return [f"* {point}" for point in points], "\n"
    if "two_responses" in asked:
        return [body, f"{body} {sentence}"], "\n******\n"
    if "repeat_prompt" in asked:
        return [request, body], "\n"
    return [OPTIONS[0], body] if "constrained_response" in asked else [body], " "
