"""Words, parts and languages as the authors of IFEval count them, in time linear in the text."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from rlhf.errors import InputError
from rlhf.lm.extras import needed

# Where Penn Treebank tokens end within a word, as far as it bears on their case. Full stops and hyphens stay.
_CUTS = re.compile(r"""[][(){}<>"`“”‘’«»„?!;@#$%&*\u2012-\u2015]|''|\.\.+|--|[:,](?!\d)""")
_CLITIC = re.compile(r"(?<=[^'])(?=(?:'[sSmMdD]|'ll|'LL|'re|'RE|'ve|'VE|n't|N'T)\.?$)")
_TWO_IN_ONE = re.compile(r"\b(?:CANNOT|GIMME|LEMME|GONNA|GOTTA|WANNA)\b")


def num_words(text: str) -> int:
    """Runs of letters, digits and underscores: don't is two."""
    return sum(1 for _ in re.finditer(r"\w+", text))


def num_capital_words(text: str) -> int:
    """Penn Treebank tokens without a lowercase letter: U.S. and WELL-KNOWN are one each, DON'T and CANNOT two."""
    words = _CUTS.sub(" ", text).split()
    return sum(part.isupper() for word in words for part in _CLITIC.split(word)) + len(_TWO_IN_ONE.findall(text))


def num_sentences(text: str) -> int:
    """By the English model of Punkt (Kiss and Strunk, 2006, https://doi.org/10.1162/coli.2006.32.4.485)."""
    return len(_punkt()(text))


def occurrences(word: str, text: str) -> int:
    """Also within longer words, without regard to case."""
    return sum(1 for _ in re.finditer(re.escape(word), text, re.IGNORECASE))


def stands_alone(word: str, text: str) -> bool:
    """Somewhere, not within a longer word; without regard to case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def between(divider: str, text: str) -> list[str]:
    """What stands between dividers, of which one may come first and one last."""
    parts = [part.strip() for part in text.split(divider)]
    parts = parts[not parts[0] :]
    return parts[: len(parts) - (not parts[-1])] if parts else parts


def num_placeholders(text: str) -> int:
    """How often something stands in square brackets on one line."""
    # Not \[.*?\]: of many that open and never close, each would be followed to the end of its line.
    found, place = 0, 0
    for line in text.split("\n"):
        place = line.find("[")
        while place >= 0 and (end := line.find("]", place)) >= 0:
            found, place = found + 1, line.find("[", end)
    return found


def num_bullets(text: str) -> int:
    """Lines that begin with - or with one *."""
    lines = [line.lstrip() for line in text.split("\n")]
    stars = sum(line.startswith("*") and line[1:2] not in ("", "*") for line in lines)
    return stars + sum(line.startswith("-") for line in lines)


def num_highlights(text: str) -> int:
    """How often something stands between stars on one line; what stands between two counts by itself."""
    single = sum(bool(inside.strip()) for inside in re.findall(r"\*([^\n*]*)\*", text))
    double = sum(bool(inside.strip()) for inside in re.findall(r"\*\*([^\n*]*)\*\*", text))
    return single + double


def num_sections(section_spliter: str, text: str) -> int:
    """How often the word that begins a section is followed by a number."""
    return sum(1 for _ in re.finditer(rf"{re.escape(section_spliter.strip())}\s?\d+", text))


def language(text: str) -> str | None:
    """The ISO 639-1 code that langdetect gives (zh-cn and zh-tw for Chinese); None where there are no words.

    It samples; seeded, a text has one answer.
    """
    detector = _languages().create()
    detector.append(text)
    try:
        code: str = detector.detect()
    except needed("langdetect", extra="ifeval").LangDetectException:
        return None
    return code


def require_language(code: str) -> None:
    """Refuses what no text will be found to be in."""
    known = _languages().get_lang_list()
    if code not in known:
        raise InputError(f"language is {code!r}; it must be one of {', '.join(known)}.")


@cache
def _punkt() -> Callable[[str], list[str]]:
    split: Callable[[str], list[str]] = needed("punkt", extra="ifeval").tokenizer_for("english").tokenize
    return split


@cache
def _languages() -> Any:
    """A factory of our own, whose seed is nobody else's, of profiles in an order that no file system chooses."""
    langdetect = needed("langdetect", extra="ifeval")
    factory = langdetect.DetectorFactory()
    profiles = sorted(Path(langdetect.detector_factory.PROFILES_DIRECTORY).iterdir())
    factory.load_json_profile([profile.read_text(encoding="utf-8") for profile in profiles])
    factory.set_seed(0)
    return factory
