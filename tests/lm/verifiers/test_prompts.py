"""Generated prompts: what they ask for can be followed, follows from the seed, and is not IFEval's."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

import rlhf
from rlhf.errors import InputError
from rlhf.lm.verifiers.instructions import all_followed, require_instructions, share_followed
from rlhf.lm.verifiers.kinds import CHECKERS, OPTIONS
from rlhf.lm.verifiers.prompts import KINDS, _topics, instruction_prompts
from rlhf.lm.verifiers.topics import FORMS, TOPICS, YES_OR_NO
from rlhf.lm.verifiers.wordings import WORDINGS
from tests.documented import ROOT, python_in
from tests.lm.verifiers.agreement import IFEVAL, ifeval_rows, table
from tests.lm.verifiers.witness import witness

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    return instruction_prompts(num_rows=1500, seed=0)


@pytest.fixture(scope="module")
def held_out() -> Rows:
    return instruction_prompts(num_rows=300, seed=0, held_out=True)


def text(row: dict[str, Any]) -> str:
    (message,) = row["prompt"]
    assert message["role"] == "user"
    return message["content"]


def test_every_row_can_be_followed(rows: Rows, held_out: Rows) -> None:
    """By a response that is built from what it asks for."""
    for row in [*rows[:200], *held_out[:80]]:
        require_instructions(row["instruction_id_list"], row["kwargs"])
        response = witness(row)
        assert response is not None, row
        columns = {name: [row[name]] for name in ("instruction_id_list", "kwargs")}
        assert all_followed([response], **columns) == share_followed([response], **columns) == [1.0]


def test_a_row_follows_from_the_seed_and_its_number(rows: Rows) -> None:
    assert instruction_prompts(num_rows=40, seed=0) == rows[:40]
    others = instruction_prompts(num_rows=40, seed=1), instruction_prompts(num_rows=40, seed=0, held_out=True)
    assert all(sum(map(dict.__eq__, other, rows)) == 0 for other in others)


def test_a_row_has_at_most_so_many_instructions(rows: Rows) -> None:
    """Its first ones, whatever the number."""
    for most in (1, 2, 3):
        fewer = instruction_prompts(num_rows=200, seed=0, most=most)
        assert max(len(row["instruction_id_list"]) for row in fewer) == most
        for row, whole in zip(fewer, rows, strict=False):
            assert row["instruction_id_list"] == whole["instruction_id_list"][:most]
            assert row["kwargs"] == whole["kwargs"][:most]


def test_topics_that_are_held_out_are_in_no_training_row(rows: Rows, held_out: Rows) -> None:
    training, apart = ({topic for _, topic in _topics(held_out=which)} for which in (False, True))
    assert training & apart == set()
    assert training | apart == {topic for topics in TOPICS.values() for topic in topics}
    assert 0.1 < len(apart) / len(training) < 0.2
    of_training, of_apart = (
        {form.format(topic=topic) for sort, topic in _topics(held_out=which) for form in FORMS[sort] + YES_OR_NO[sort]}
        for which in (False, True)
    )
    assert of_training & of_apart == set()
    assert {row["request"] for row in rows + instruction_prompts(num_rows=100, seed=7)} <= of_training
    assert {row["request"] for row in held_out} <= of_apart


def test_there_are_hundreds_of_topics_and_thousands_of_requests(rows: Rows) -> None:
    for topics in TOPICS.values():
        assert len(set(topics)) == len(topics) >= 30
    assert sum(map(len, TOPICS.values())) >= 350
    requests = {form.format(topic=topic) for sort, topic in _topics(held_out=False) for form in FORMS[sort]}
    assert len(requests) > 3000
    assert len({row["request"] for row in rows}) > 1000
    assert len({text(row) for row in rows}) > 1490


def test_every_kind_is_drawn_alone_and_beside_others(rows: Rows) -> None:
    drawn = Counter(kind for row in rows for kind in row["instruction_id_list"])
    alone = Counter(row["instruction_id_list"][0] for row in rows if len(row["kwargs"]) == 1)
    assert min(drawn[kind] for kind in CHECKERS) > 50
    assert min(alone[kind] for kind in CHECKERS) > 10
    numbers = Counter(len(row["instruction_id_list"]) for row in rows)
    assert set(numbers) == {1, 2, 3}
    assert min(numbers.values()) > 200
    assert all(len(set(row["instruction_id_list"])) == len(row["kwargs"]) for row in rows)


def test_kinds_are_left_out_or_alone() -> None:
    apart = ("startend:quotation", "detectable_format:constrained_response", "combination:repeat_prompt")
    rest = [kind for kind in KINDS if kind not in apart]
    for kinds in (apart, rest, apart[1:2]):
        rows = instruction_prompts(num_rows=200, seed=0, kinds=kinds)
        assert {kind for row in rows for kind in row["instruction_id_list"]} == set(kinds)


def test_what_is_asked_stands_in_the_prompt(rows: Rows) -> None:
    """The request as it is, and every word, number and phrase that a checker is given."""
    for row in rows:
        prompt = text(row)
        assert row["request"] in prompt
        assert "," not in row["request"]
        assert "{" not in prompt
        if "combination:repeat_prompt" in row["instruction_id_list"]:
            assert prompt.split("\n\n")[0] == row["request"]
        for kind, given in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            for value in given.values():
                if kind != "language:response_language" and value not in ("at least", "less than"):
                    assert all(str(each) in prompt for each in (value if isinstance(value, list) else [value]))


def test_every_kind_has_several_wordings_and_all_are_used(rows: Rows) -> None:
    assert {name.split()[0] for name in WORDINGS} == set(CHECKERS)
    assert min(map(len, WORDINGS.values())) >= 3
    prompts = "\n".join(map(text, rows))
    for name, wordings in WORDINGS.items():
        for wording in wordings:
            pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(wording))
            assert re.search(pattern, prompts), (name, wording)


def runs_of(text: str, length: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


@pytest.mark.skipif(not IFEVAL.is_file(), reason="needs IFEval's prompts, beside the checkout in ../shared/data")
def test_no_ten_words_of_ifeval_are_in_a_generated_prompt(rows: Rows, held_out: Rows) -> None:
    """But for the three answers of which one has to be given."""
    options = runs_of(" ".join(OPTIONS * 2), 4) | runs_of("My answer is no or my answer is maybe", 4)
    theirs = set[tuple[str, ...]]().union(*(runs_of(row["prompt"], 10) for row in ifeval_rows()))
    ours = set[tuple[str, ...]]().union(*(runs_of(text(row), 10) for row in rows + held_out))
    assert {run for run in ours & theirs if not any(run[at : at + 4] in options for at in range(7))} == set()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_rows": 0, "seed": 0}, "num_rows is 0; it must be at least 1"),
        ({"num_rows": 3, "seed": -1}, "seed is -1"),
        ({"num_rows": 3, "seed": 0, "kinds": []}, r"kinds is \[\]; take at least one of keywords:existence"),
        ({"num_rows": 3, "seed": 0, "kinds": ["title"]}, r"kinds is \['title'\], and 'title' is none; take at least"),
    ],
)
def test_what_cannot_be_drawn_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        instruction_prompts(**given)


PAGE = ROOT / "docs" / "verifiers.md"


def test_the_code_of_the_page_makes_a_task() -> None:
    names: dict[str, Any] = {}
    for code in python_in(PAGE):
        assert "num_rows=4_000" in code
        exec(code.replace("4_000", "40"), names)
    assert isinstance(names["task"], rlhf.Prompts)


@pytest.mark.skipif(not IFEVAL.is_file(), reason="needs IFEval's prompts, beside the checkout in ../shared/data")
def test_the_table_of_the_page_is_what_is_found() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")
