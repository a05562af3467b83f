"""JSON against a schema, patterns and lengths as rewards."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any

import pytest

from rlhf.errors import InputError
from rlhf.lm.rewards import Rewards
from rlhf.lm.verifiers import forms
from rlhf.lm.verifiers.forms import fits_schema, length_within, matches
from rlhf.sources import code_sums, held_sums

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
TREE = {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}


@pytest.mark.parametrize(
    ("response", "fits"),
    [
        ('{"name": "Ann", "age": 3}', True),
        ('```json\n{"name": "Ännchen 日本"}\n```', True),
        ('{"age": 3}', False),
        ('{"name": "Ann", "age": -1}', False),
        ('{"name": "Ann", "age": 3.5}', False),
        ('{"name": "Ann", "age": NaN}', False),
        ('{"name": "Ann", "age": 1e999}', False),
        ('{"name": "Ann", "sex": "f"}', False),
        ('["Ann"]', False),
        ('Here: {"name": "Ann"}', False),
        ('{"name": "Ann"} {"name": "Bob"}', False),
        ("", False),
        ("null", False),
    ],
)
def test_json_fits_a_schema_or_not(response: str, fits: bool) -> None:
    assert fits_schema([response] * 2, [PERSON, json.dumps(PERSON)]) == [float(fits)] * 2


def test_json_nested_beyond_reason_fits_nothing() -> None:
    for depth in (20, 900, 100_000):
        assert fits_schema(["[" * depth + "]" * depth], [TREE]) == [float(depth == 20)]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "schema is no JSON schema: 'strin' is not valid"),
        ("{'type': 'string'}", "which is no JSON"),
        ("[]", "must be a JSON schema"),
        (None, "schema is None; it must be a JSON schema"),
    ],
)
def test_what_is_no_schema_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"data: row 1: reward function fits_schema: .*{message}"):
        Rewards([fits_schema]).require_rows("data", [{"schema": PERSON}, {"schema": schema}])


def test_a_schema_elsewhere_is_not_looked_up() -> None:
    with pytest.raises(Exception, match=r"Unresolvable: http://127\.0\.0\.1"):
        fits_schema(["1"], [{"$ref": "http://127.0.0.1:9/schema.json"}])


def test_the_package_for_schemas_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(InputError, match=r"pip install 'rlhf\[schema\]'"):
        fits_schema(["1"], [PERSON])


def test_a_pattern_is_found_or_not() -> None:
    responses = ["Call 555-1234.", "Call me.", "", "Ünï 日本"]
    assert matches(responses, [r"\d{3}-\d{4}"] * 4) == [1.0, 0.0, 0.0, 0.0]
    assert matches(responses, [r"\ACall", r"\.\Z", r"\A\Z", r"\A\p{L}+ \p{Han}+\Z"]) == [1.0] * 4


def test_a_pattern_that_takes_for_ever_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "SECONDS", 0.1)
    begun = time.monotonic()
    assert matches(["ab" * 5000 + "!"], [r"\A(?:(?:ab)+(?:ab)*)+\Z"]) == [0.0]
    assert matches(["x" * 5000 + "y"], [r"\A(x+x+)+\Z"]) == [0.0]
    assert time.monotonic() - begun < 20.0


@pytest.mark.parametrize(("pattern", "message"), [("(", "is no regular expression"), (None, "must be text")])
def test_what_is_no_pattern_is_refused(pattern: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"row 0: reward function matches: pattern is .*{message}"):
        Rewards([matches]).require_rows("data", [{"pattern": pattern}])


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"least": 2, "most": 3}, [0.0, 1.0, 1.0, 0.0]),
        ({"least": 2}, [0.0, 1.0, 1.0, 1.0]),
        ({"most": 2}, [1.0, 1.0, 0.0, 0.0]),
        ({"least": 5, "most": 7, "unit": "characters"}, [0.0, 0.0, 1.0, 1.0]),
        ({"least": 1, "most": 4, "unit": "tokens"}, [0.0, 1.0, 1.0, 0.0]),
    ],
)
def test_a_length_is_within_its_bounds_or_not(bounds: dict[str, Any], expected: list[float]) -> None:
    responses = ["", "a b", "a b c", "a b c d"]
    ids = [[0] * count for count in (0, 1, 4, 5)]
    assert length_within(**bounds)(responses=responses, completion_ids=ids) == expected


def test_lengths_of_two_units_are_two_rewards_by_name() -> None:
    assert list(Rewards([length_within(most=3), length_within(most=9, unit="tokens")]).functions) == [
        *("words_within", "tokens_within")
    ]


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"least": 4, "most": 3}, "least is 4 and most 3"),
        ({"most": 0}, "most is 0; it must be at least 1"),
        ({"most": 3, "unit": "lines"}, "unit is 'lines'; it must be 'words' or 'characters' or 'tokens'"),
    ],
)
def test_bounds_that_hold_nothing_are_refused(bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        length_within(**bounds)


def test_a_run_is_known_by_the_bounds_of_its_reward() -> None:
    """Also of what is installed: those are the user's."""
    one, other = (held_sums("reward", length_within(most=most)) for most in (3, 4))
    assert one.keys() == other.keys() == {"reward: values"}
    assert one != other
    assert code_sums("reward", partial(matches, pattern="a")) != code_sums("reward", partial(matches, pattern="b"))
