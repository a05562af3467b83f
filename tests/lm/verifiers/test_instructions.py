"""Instructions as reward functions: paid by the share that is followed, refused by name before a run begins."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

import rlhf
from rlhf.errors import InputError
from rlhf.lm.rewards import Rewards, load_reward
from rlhf.lm.verifiers import counting, instructions
from rlhf.lm.verifiers.instructions import all_followed, loose_verdicts, require_instructions, share_followed
from tests.recipes.small import save_model

TITLE, NO_COMMA, WORDS = "detectable_format:title", "punctuation:no_comma", "length_constraints:number_words"
FEW: dict[str, Any] = {"num_words": 3, "relation": "less than"}


def test_the_reward_is_the_share_of_instructions_that_are_followed() -> None:
    """Of three: a title, no comma, fewer than three words."""
    responses = ["<<a b>>", "a, b, c, d", "<<a>> b, c", ""]
    columns = {"instruction_id_list": [[TITLE, NO_COMMA, WORDS]] * 4, "kwargs": [[{}, {}, FEW]] * 4}
    assert share_followed(responses, **columns) == pytest.approx([1.0, 0.0, 1 / 3, 0.0])
    assert all_followed(responses, **columns) == [1.0, 0.0, 0.0, 0.0]


def test_each_row_has_instructions_of_its_own() -> None:
    columns = {"instruction_id_list": [[TITLE], [NO_COMMA, WORDS]], "kwargs": [[{}], [{}, FEW]]}
    assert share_followed(["<<a, b>> c", "<<a, b>> c"], **columns) == [1.0, 0.0]


def test_keywords_that_are_none_count_as_not_given() -> None:
    """A table has every keyword in every row."""
    given = {"num_words": 3, "relation": "less than", "keywords": None, "language": None}
    assert share_followed(["a b"], [[WORDS]], [[given]]) == [1.0]


def test_the_first_line_alone_is_no_variant_of_an_empty_rest() -> None:
    assert loose_verdicts("a, b", [NO_COMMA], [{}]) == [False]


@pytest.mark.parametrize(
    ("kinds", "kwargs", "message"),
    [
        (
            ["punctuation:no_coma"],
            [{}],
            r"there is no instruction 'punctuation:no_coma'; there are keywords:existence,",
        ),
        ([7], [{}], "there is no instruction 7"),
        ([], [], "there are 0 instructions and 0 kwargs; give one each"),
        ([TITLE, NO_COMMA], [{}], "there are 2 instructions and 1 kwargs"),
        (TITLE, [{}], "instruction_id_list is 'detectable_format:title'; it must be a list"),
        ([TITLE], {}, "kwargs is {}; it must be a list"),
        ([TITLE], ["{}"], "detectable_format:title: kwargs are '{}'; they must be a dict"),
        ([WORDS], [{"num_words": 3}], f"{WORDS}: kwargs hold num_words; it needs num_words and relation"),
        ([TITLE], [{"num_words": 3}], f"{TITLE}: kwargs hold num_words; it needs none"),
        ([WORDS], [{**FEW, "num_words": "3"}], f"{WORDS}: num_words is '3'; it must be a whole number"),
        ([WORDS], [{**FEW, "num_words": 0}], "num_words is 0; it must be at least 1"),
        ([WORDS], [{**FEW, "num_words": True}], "num_words is True"),
        ([WORDS], [{**FEW, "relation": "at most"}], "relation is 'at most'; it must be 'at least' or 'less than'"),
        (["keywords:existence"], [{"keywords": "cat"}], "keywords is 'cat'; it must be a list"),
        (["keywords:existence"], [{"keywords": []}], "keywords is \\[\\]; it must be a list of words, at least one"),
        (["keywords:forbidden_words"], [{"forbidden_words": ["a", " "]}], "forbidden_words is"),
        (["keywords:frequency"], [{"keyword": "", "frequency": 1, "relation": "at least"}], "keyword is ''"),
        (
            ["keywords:letter_frequency"],
            [{"letter": "ab", "let_frequency": 1, "let_relation": "at least"}],
            "letter is 'ab'; it must be one character",
        ),
        (["language:response_language"], [{"language": "English"}], "language is 'English'; it must be one of af, ar,"),
        (
            ["length_constraints:nth_paragraph_first_word"],
            [{"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"}],
            "nth_paragraph is 3; it must be at most num_paragraphs, 2",
        ),
        (["detectable_content:postscript"], [{"postscript_marker": " "}], "postscript_marker is ' '"),
        (
            ["detectable_format:multiple_sections"],
            [{"section_spliter": "", "num_sections": 1}],
            "section_spliter is ''",
        ),
        (["combination:repeat_prompt"], [{"prompt_to_repeat": "\n"}], "prompt_to_repeat is"),
        (["startend:end_checker"], [{"end_phrase": ""}], "end_phrase is ''"),
    ],
)
def test_instructions_that_cannot_be_checked_are_refused_by_name(kinds: Any, kwargs: Any, message: str) -> None:
    for refuse in (
        lambda: require_instructions(kinds, kwargs),
        lambda: share_followed(["a"], [kinds], [kwargs]),
        lambda: all_followed(["A"], [kinds], [kwargs]),
    ):
        with pytest.raises(InputError, match=message):
            refuse()


def test_many_rows_are_checked_in_a_moment() -> None:
    """Letters whose language is doubtful take langdetect 20 ms."""
    kinds = ["language:response_language", "change_case:english_capital", "change_case:english_lowercase"]
    begun = time.monotonic()
    for _ in range(200):
        require_instructions(kinds, [{"language": "de"}, {}, {}])
    assert time.monotonic() - begun < 10.0


@pytest.mark.parametrize(
    ("package", "kind", "keywords"),
    [
        ("punkt", "length_constraints:number_sentences", {"num_sentences": 1, "relation": "at least"}),
        ("langdetect", "language:response_language", {"language": "de"}),
        ("langdetect", "change_case:english_capital", {}),
        ("langdetect", "change_case:english_lowercase", {}),
    ],
)
def test_a_package_that_is_not_there_is_asked_for_at_the_door(
    package: str, kind: str, keywords: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting._punkt.cache_clear()
    counting._languages.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{kind}: {package} is needed.*pip install 'rlhf\[ifeval\]'"):
        require_instructions([kind], [keywords])


def test_the_command_line_takes_the_reward_by_its_file() -> None:
    rewards = Rewards([load_reward(f"{instructions.__file__}:share_followed")])
    rewards.require_rows("data", rows())
    with pytest.raises(InputError, match="data: row 20: reward function share_followed: instruction punctuation"):
        rewards.require_rows("data", rows(kwargs=[{"a": 1}, FEW]))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return rlhf.load_policy(str(save_model(tmp_path_factory.mktemp("model") / "gpt2")))


def rows(**last: Any) -> list[dict[str, Any]]:
    good = {"prompt": "a b", "instruction_id_list": [NO_COMMA, WORDS], "kwargs": [{}, FEW]}
    return [*([good] * 20), good | last]


def test_prompts_train_on_instructions(policy: Any) -> None:
    task = rlhf.Prompts(rows(), share_followed, max_new_tokens=4, held_out=4, prompts_per_rollout=8)
    result = rlhf.train(policy, task, rlhf.PPO(), rlhf.Optimize(), updates=1)
    assert 0.0 <= result.after["eval_score_mean"] <= 1.0


@pytest.mark.parametrize("place", ["data", "held out"])
@pytest.mark.parametrize(
    ("last", "message"),
    [
        ({"kwargs": [{}, {"num_words": 3}]}, "row 20: reward function share_followed: instruction length_constraints"),
        ({"instruction_id_list": [NO_COMMA, "x:y"]}, "row 20: reward function share_followed: there is no instruction"),
    ],
)
def test_a_row_far_down_is_refused_before_the_run(policy: Any, place: str, last: dict[str, Any], message: str) -> None:
    wrong = rows(**last)
    data, held_out = (wrong, 4) if place == "data" else (rows(), wrong)
    task = rlhf.Prompts(data, share_followed, max_new_tokens=4, held_out=held_out)
    with pytest.raises(InputError, match=message):
        task.read(policy.tokenizer, context=policy.context)


def test_held_out_data_without_a_column_of_the_reward_are_refused(policy: Any) -> None:
    task = rlhf.Prompts(rows(), share_followed, max_new_tokens=4, held_out=[{"prompt": "a b"}])
    with pytest.raises(InputError, match="asks for 'instruction_id_list', which is neither"):
        task.read(policy.tokenizer, context=policy.context)
