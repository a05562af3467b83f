"""Responses with the verdict that the definition of an instruction asks for, written by hand: kind, keywords, texts."""

from __future__ import annotations

from typing import Any

ENGLISH = "The quick brown fox jumps over the lazy dog while the children watch it from the window of the old house."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, während die Kinder aus dem Fenster im Haus zusehen."

# Of every kind: keywords, texts that follow, texts that do not.
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence",
        {"keywords": ["river", "Moon"]},
        ["The moon over the river.", "RIVER\nMOON", "Riverbanks and moonlight.", "```\nriver = moon\n```"],
        ["The river.", "", "rive r and moon", "The sun, the sea."],
    ),
    (
        "keywords:existence",
        {"keywords": ["C++", "café"]},
        ["I learned C++ in a CAFÉ."],
        ["I learned C and Cpp in a café.", "C++ in a cafe."],
    ),
    (
        "keywords:frequency",
        {"keyword": "star", "frequency": 2, "relation": "at least"},
        ["A star and a star.", "Star, STAR, star.", "Stars start here.", "star*star"],
        ["One star.", "", "s t a r, star", "The sun."],
    ),
    (
        "keywords:frequency",
        {"keyword": "very", "frequency": 2, "relation": "less than"},
        ["It is very good.", "It is good."],
        ["Very, very good.", "Every man is very old."],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat", "don't"]},
        ["The category is open.", "A dog.", "concatenate", "I do not know."],
        ["The cat sat.", "CAT!", "a cat-like dog", "I don't know.", "", "*cat*", "dog,cat"],
    ),
    ("keywords:forbidden_words", {"forbidden_words": ["naïve"]}, ["A naive idea."], ["A NAÏVE idea."]),
    (
        "keywords:letter_frequency",
        {"letter": "Z", "let_frequency": 3, "let_relation": "at least"},
        ["zzz", "Zoo zone, Zen.", "puzzle zip"],
        ["puzzle", "", "zz", "2 2 2"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 2, "let_relation": "less than"},
        ["A story of an old man.", "One.", "éé is not it: aé"],
        ["Eve.", "The sea."],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "!", "let_frequency": 2, "let_relation": "at least"},
        ["Yes!!", "Hi! Yes!"],
        ["Yes!"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        [GERMAN, GERMAN.upper(), f"**{GERMAN}**", f"1. {GERMAN}\n2. {GERMAN}"],
        [ENGLISH, "", "123 456", f"{ENGLISH} {ENGLISH} {ENGLISH} Der Hund.", "!!!"],
    ),
    (
        "language:response_language",
        {"language": "ko"},
        ["아이들이 오래된 집의 창문에서 개를 보고 있습니다."],
        ["子供たちは古い家の窓から犬を見ています。"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 3},
        ["One is here. Two is here. Three is here.", "Is it? Yes! Good.", "It is 3.5 m. It is big. It is mine. Ours."],
        ["Mr. Smith went to Washington, D.C. yesterday.", "One. Two.", "", "no end\nno end\nno end", "Wait... what"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 2},
        ["Dr. Lee paid $3.50 for it.", "no end"],
        ["It is so. It is not.", "Why? Why not?"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One.\n***\nTwo.", "One. *** Two.", "***\nOne.\n***\nTwo.\n***", "One.\n\nStill one.\n***\nTwo."],
        ["One.\n\nTwo.", "One.\n***\nTwo.\n***\nThree.", "One.\n***", "", "One.\n***\n***\nTwo.", "***"],
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 5},
        ["one two three four five", "a-b-c-d-e", "It's one two three", "один два три четыре пять", "1 2 3 4 5"],
        ["one two three four", "", "one, two; three... four!", "- - - - - -"],
    ),
    (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 3},
        ["one two", "snake_case word"],
        ["one two three", "don't go"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Winter"},
        ["Summer.\n\nWinter is cold.", "Summer.\n\n'winter' is cold.", "Summer.\n\nWINTER, now.", "A\nb\n\nwinter"],
        ["Summer.\n\nIn winter.", "Winter.\n\nSummer.", "Summer.\nWinter.", "", "a\n\nWinter\n\nb", "a\n\nwinters go"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "yes"},
        ["Yes.", '"Yes," he said.\n\n'],
        ["No. Yes."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] at [address]", "[a][b]", "x = [1], y = []", "[name] [name] [name]"],
        ["[name]", "", "[name at address]", "(name) (address)", "[na\nme] [address]", "[[a]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\n\nP.S. Write soon.", "Bye. P.S. Write.", "p.s. write", "P. S. Write."],
        ["Bye.\nPS: Write soon.", "", "P.S", "postscript"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S. Write.", "P. P. S write"],
        ["Bye.\nP.S. Write.", "PPS"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* one\n* two", "- one\n- two", "Two:\n\n  * one\n  - two\nEnd.", "* **bold** one\n* two", "\n* a\n\n* b\n"],
        ["* one", "* one\n* two\n* three", "", "1. one\n2. two", "**one**\n**two**", "one * two * three", "• a\n• b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "My answer is no.", " My answer is maybe. ", "Well. My answer is yes. I am sure."],
        ["Yes.", "My answer is yes", "", "my answer is no.", "My answer is perhaps.", "MY ANSWER IS YES."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** and **two**", "*one*\n*two*", "* **a** * x", "*日本* *語*"],
        ["*one*", "", "**", "* one\n* two", "*one\ntwo*", "_one_ _two_", "****"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb", "SECTION 1: a\nSECTION 2: b\nSECTION 3: c", "*SECTION1* *SECTION 2*"],
        ["SECTION 1\na", "", "Section 1\na\nSection 2\nb", "SECTION A\nSECTION B", "SECTION  1\nSECTION  2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "[1, 2]", '```json\n{"a": [true, null]}\n```', '```\n{"a": "ü"}\n```', '"text"', ' {"a":\n1} '],
        ["{'a': 1}", '{"a": 1,}', "", 'Here: {"a": 1}', '{"a": 1} {"b": 2}', "[" * 100_000, "```json\n```"],
    ),
    (
        "detectable_format:title",
        {},
        ["<<A day>>\nText.", "Text <<end>>", "<<<deep>>>", "<<日本>>"],
        ["<A day>", "<<>>", "", "<<  >>", "<<two\nlines>>", "A day\nText.", "«A day»", ">>a<<"],
    ),
    (
        "combination:two_responses",
        {},
        ["One.\n******\nTwo.", "One. ****** Two.", "******\nOne.\n******\nTwo.\n******", "a******A"],
        ["One.", "One.\n******\nOne.", "", "One.\n***\nTwo.", "a******b******c", "a******", "a ****** ****** b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Describe a cat. "},
        ["Describe a cat.\n\nIt purrs.", "describe a cat. It purrs.", "\nDescribe a cat.", "DESCRIBE A CAT. IT PURRS."],
        ["It purrs.", '"Describe a cat." It purrs.', "", "Describe a cat", "Sure! Describe a cat. It purrs."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        ["It rains. That is all.", "THAT IS ALL.", '"It rains. That is all."', "It rains.\nthat is all.\n\n"],
        ["That is all. Bye.", "That is all", "", "That is all.*", "It rains. That's all."],
    ),
    (
        "startend:quotation",
        {},
        ['"Yes."', '""', '"He said "no" to me."', ' "a"\n', '"a" and "b"'],
        ["Yes.", '"', "", '"Yes.', "'Yes.'", "“Yes.”", '"Yes." Bye.', '```"a"```'],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and ESA fly.", "I know I can.", "A WELL-KNOWN man.", "DON'T.", "[NAME] (AGE)", "ÜBER ÖL"],
        ["NASA flies.", "", "Nasa and Esa", "WELL-KNOWN", "12 34", "NASAs ESAs"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["We know NASA.", "we know."],
        ["I know NASA.", "GO, GO"],
    ),
    (
        "change_case:english_capital",
        {},
        [ENGLISH.upper(), f"{ENGLISH}\n\n1. {ENGLISH}".upper(), f"**{ENGLISH}** 2 > 1".upper()],
        [ENGLISH, GERMAN.upper(), "", ENGLISH.upper() + " ok", "1234", "日本語"],
    ),
    (
        "change_case:english_lowercase",
        {},
        [ENGLISH.lower(), f"* {ENGLISH}\n* {ENGLISH}".lower(), f"{ENGLISH} 1 < 2!".lower()],
        [ENGLISH, GERMAN.lower(), "", ENGLISH.lower() + " I", "1234", "日本語"],
    ),
    (
        "punctuation:no_comma",
        {},
        ["No commas here.", "a; b: c", "一，二", "'quotes'"],
        ["Yes, one.", "1,000", "", "```\nf(a, b)\n```", ","],
    ),
]  # fmt: skip

# Texts that follow loosely and not strictly, and texts that do neither way.
LOOSE: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Describe a cat."},
        ["Sure!\nDescribe a cat. It purrs."],
        ["Sure!\n\nSo:\nDescribe a cat."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        ["That is all.\nBye.", "**That is all.**", "Hi.\n*That is all.*\nBye."],
        ["That is all.\nBye.\nBye."],
    ),
    ("startend:quotation", {}, ['Here it is:\n"Yes."', 'Here:\n"Yes."\nBye.', '*"Yes."*'], ['a\nb\n"Yes."']),
    ("punctuation:no_comma", {}, ["Sure, here:\nNone.", "None.\nBye, you."], ["Sure, yes.\nA, b.\nBye."]),
    ("detectable_format:json_format", {}, ['Here:\n{"a": 1}'], ["Here:\nthere"]),
]
