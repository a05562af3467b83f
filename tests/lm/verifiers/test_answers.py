"""Final answers to mathematics are compared by value, and none holds up the run."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import pytest

from rlhf.errors import InputError
from rlhf.lm.rewards import Rewards
from rlhf.lm.verifiers import answers
from rlhf.lm.verifiers.answers import equal_answers


@pytest.mark.parametrize(
    ("response", "answer", "equal"),
    [
        ("So it is 1/2.", 0.5, True),
        ("It is \\boxed{\\frac{2}{4}}.", "1/2", True),
        ("The answer is $0.5$", "\\frac{1}{2}", True),
        ("First 7, and then 5 more: 12.", 12, True),
        ("First 12, and then 5 less: 7.", 12, False),
        ("That makes 1,000 dollars.", "1000", True),
        ("$x = 3$", "3", True),
        ("$(x+1)^2$", "$x^2 + 2x + 1$", True),
        ("$(x+1)^2$", "x^2 + 1", False),
        ("$\\sqrt{8}$", "2\\sqrt{2}", True),
        ("I do not know.", 3, False),
        ("", 3, False),
        ("三", 3, False),
        ("\\boxed{" * 300, 3, False),
        ("1" * 100_000, 3, False),
    ],
)
def test_answers_are_compared_by_value(response: str, answer: Any, equal: bool) -> None:
    assert equal_answers([response], [answer]) == [float(equal)]


@pytest.mark.parametrize(("answer", "message"), [("", "must be a number or an exp"), (None, "a number or text")])
def test_an_answer_that_is_none_is_refused(answer: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"row 1: reward function equal_answers: answer is {answer!r}; .*{message}"):
        Rewards([equal_answers]).require_rows("data", [{"answer": "3"}, {"answer": answer}])


def test_an_answer_that_takes_for_ever_is_wrong_and_the_next_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own power of powers hears no alarm."""
    answers._worker.cache_clear()
    monkeypatch.setattr(answers, "SECONDS", 1.0)
    begun = time.monotonic()
    assert equal_answers(["$9^{9^{9^9}}$", "$5$"], [3, 5]) == [0.0, 1.0]
    assert time.monotonic() - begun < 60.0
    answers._worker.cache_clear()


def test_the_package_for_mathematics_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers._worker.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'rlhf\[math\]'"):
        equal_answers(["1"], [1])
