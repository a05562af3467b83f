"""Reward functions: the keywords they get, what their answers become, and what is refused."""

from __future__ import annotations

import asyncio
import math
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.errors import InputError
from rlhf.lm.rewards import KEYWORDS, Rewards, Samples, load_reward


def samples(**columns: list[Any]) -> Samples:
    """Three samples of 2, 1 and 3 tokens."""
    return Samples(
        prompts=["p0", "p1", "p2"],
        responses=["a b", "c", "d e f"],
        completions=["a b", "c", "d e f"],
        completion_ids=[[5, 6], [7], [8, 9, 2]],
        finished=[False, False, True],
        columns=columns,
        sample_ids=[10, 11, 12],
    )


def constant(answer: Any) -> Any:
    def reward(completions: list[str]) -> Any:
        return answer

    return reward


def message(answer: Any, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        Rewards([constant(answer)], **options)(samples())
    return str(error.value)


def test_reward_gets_only_the_keywords_it_names():
    def reward(completion_ids, finished, answer):
        assert completion_ids == [[5, 6], [7], [8, 9, 2]]
        assert finished == [False, False, True]
        return answer

    scores = Rewards([reward])(samples(answer=[1, 2, 3], other=["x", "y", "z"]))
    assert scores.scores.tolist() == [1, 2, 3]


def test_reward_with_double_star_gets_everything():
    def reward(**keywords):
        assert set(keywords) == {"prompts", "responses", "completions", "completion_ids", "finished", "answer"}
        return [0.0] * len(keywords["prompts"])

    Rewards([reward])(samples(answer=[1, 2, 3]))


def test_reward_keeps_its_default_for_a_column_the_data_lack():
    def reward(completions, scale=7.0):
        return [scale for _ in completions]

    rewards = Rewards([reward])
    rewards.require_columns(["answer"])
    assert rewards(samples(answer=[1, 2, 3])).scores.tolist() == [7.0] * 3


def test_reward_cannot_change_what_the_next_one_sees():
    def first(completions):
        completions.clear()
        return [0.0] * 3

    def second(completions):
        return [float(len(text)) for text in completions]

    assert Rewards([first, second])(samples()).scores.tolist() == [3, 1, 5]


def test_sequence_score_is_paid_on_the_last_real_token_even_when_cut():
    scores = Rewards([constant([1.0, 2.0, 4.0])])(samples())
    assert scores.rewards.tolist() == [[0, 1, 0], [2, 0, 0], [0, 0, 4]]


def test_token_rewards_are_paid_on_their_tokens():
    scores = Rewards([constant([[1, 2], [3], [4, 5, 6]])])(samples())
    assert scores.rewards.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    assert scores.scores.tolist() == [3, 3, 15]
    assert scores.parts == {"reward": [3.0, 3.0, 15.0]}


def test_weights_multiply_the_score_and_not_the_logged_part():
    def tokens(completion_ids):
        return [[1.0] * len(ids) for ids in completion_ids]

    def whole(completions):
        return [10.0, 20.0, 30.0]

    scores = Rewards([tokens, whole], weights=[2.0, 0.1])(samples())
    torch.testing.assert_close(scores.rewards[0], torch.tensor([2.0, 3.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(scores.scores, torch.tensor([5.0, 4.0, 9.0], dtype=torch.float64))
    assert scores.parts == {"tokens": [2.0, 1.0, 3.0], "whole": [10.0, 20.0, 30.0]}


@pytest.mark.parametrize(
    "answer",
    [
        [True, 2, 0.5],
        (1, 2, 0.5),
        np.array([1, 2, 0.5], dtype=np.float32),
        [np.float64(1), np.int64(2), np.float32(0.5)],
        torch.tensor([1, 2, 0.5], dtype=torch.bfloat16),
        [torch.tensor(1), torch.tensor(2.0, requires_grad=True), 0.5],
    ],
)
def test_numbers_of_any_kind_are_numbers(answer: Any):
    assert Rewards([constant(answer)])(samples()).scores.tolist() == [1, 2, 0.5]


def test_list_of_one_is_never_broadcast():
    """Bug 16 of the peers."""
    assert message([1.0]) == "reward function reward returned 1 scores for 3 samples; return one per sample."


def test_scalar_answer_is_refused():
    assert "float 1.0" in message(1.0)


def test_wrong_number_of_token_rewards_names_sample_and_counts():
    assert "returned 2 token rewards for sample 11, whose response has 1 tokens" in message([[1, 2], [3, 4], [5, 6, 7]])


@pytest.mark.parametrize("bad", ["high", [1.0, "x"], {"score": 1}])
def test_other_types_are_refused(bad: Any):
    assert "for sample 10; return a number" in message([bad, 1.0, 1.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor(float("nan"))])
def test_non_finite_score_names_function_and_sample(bad: Any):
    assert "reward function reward returned" in (text := message([1.0, bad, 1.0]))
    assert "for sample 11; return finite numbers" in text


def test_none_is_refused_unless_allowed():
    assert "None for sample 12" in message([1.0, 2.0, None])


def test_none_takes_the_sample_out():
    scores = Rewards([constant([1.0, None, 2.0]), lambda completions: [5, 5, 5]], allow_none=True)(samples())
    assert scores.valid.tolist() == [True, False, True]
    assert scores.scores.tolist() == [6, 0, 7]
    assert scores.rewards[1].tolist() == [0, 0, 0]
    assert scores.parts["reward"] == [1.0, None, 2.0]


def test_async_functions_run_together():
    started: list[str] = []

    async def one(completions):
        started.append("one")
        while "two" not in started:
            await asyncio.sleep(0)
        return [1.0, 1.0, 1.0]

    async def two(completions):
        started.append("two")
        return [2.0, 2.0, 2.0]

    assert Rewards([one, lambda completions: [3, 3, 3], two])(samples()).scores.tolist() == [6, 6, 6]


def test_async_functions_run_inside_a_running_loop():
    async def reward(completions):
        return [1.0, 2.0, 3.0]

    async def notebook():
        return Rewards([reward])(samples())

    assert asyncio.run(notebook()).scores.tolist() == [1, 2, 3]


def test_error_of_a_reward_keeps_the_users_traceback():
    async def slow(completions):
        return [0.0] * 3

    def mine(completions):
        raise KeyError("my own bug")

    with pytest.raises(KeyError, match="my own bug") as error:
        Rewards([slow, mine])(samples())
    assert traceback.extract_tb(error.tb)[-1].name == "mine"


def test_unknown_parameter_is_refused_with_a_suggestion():
    def reward(completions, anwser):
        return []

    with pytest.raises(InputError, match=r"reward function reward asks for 'anwser'.*did you mean 'answer'\?"):
        Rewards([reward]).require_columns(["answer", "id"])


@pytest.mark.parametrize("column", KEYWORDS)
def test_column_named_like_a_known_parameter_is_refused(column: str):
    with pytest.raises(InputError, match=f"a column '{column}', which reward functions know otherwise; rename it"):
        Rewards([constant([])]).require_columns([column])


def test_singular_of_a_known_parameter_is_refused_with_a_suggestion():
    def reward(response):
        return []

    with pytest.raises(InputError, match=r"did you mean 'responses'\?"):
        Rewards([reward]).require_columns([])


def test_partial_and_callable_objects_are_functions_with_names():
    class Length:
        def __call__(self, completions):
            return [len(text) for text in completions]

    def scaled(completions, by):
        return [by] * len(completions)

    scores = Rewards([Length(), partial(scaled, by=2)])(samples())
    assert scores.parts == {"Length": [3.0, 1.0, 5.0], "scaled": [2.0, 2.0, 2.0]}


def test_value_that_a_partial_fixes_is_not_replaced_by_a_column():
    def scaled(responses, by, **_):
        return [by] * len(responses)

    scores = Rewards([partial(scaled, by=2)])(samples(by=[7, 8, 9]))
    assert scores.parts == {"scaled": [2.0, 2.0, 2.0]}


def test_object_with_an_attribute_func_is_named_by_its_own_class():
    class Judge:
        func = staticmethod(len)

        def __call__(self, responses):
            return [1.0] * len(responses)

    assert list(Rewards([Judge()]).functions) == ["Judge"]


def test_lambda_is_a_reward_under_a_name_without_brackets():
    scores = Rewards([lambda responses: [len(response) for response in responses]])(samples())
    assert scores.parts == {"lambda": [3.0, 1.0, 5.0]}


def test_name_that_the_user_sets_is_the_one_that_is_logged():
    class Length:
        def __call__(self, responses):
            return [len(response) for response in responses]

    def scaled(responses, by):
        return [by] * len(responses)

    functions: list[Any] = [lambda responses: [0] * 3, partial(scaled, by=2), partial(scaled, by=3), Length(), Length()]
    for function, name in zip(functions, "abcde", strict=True):
        function.__name__ = name
    assert list(Rewards(functions)(samples()).parts) == list("abcde")


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(InputError, match="named reward"):
        Rewards([constant([]), constant([])])


def test_two_lambdas_are_refused_by_what_they_are():
    with pytest.raises(InputError, match=r"Two reward functions are lambdas.*write them with def, or set __name__"):
        Rewards([lambda responses: [1] * 3, lambda responses: [2] * 3])


def test_two_partials_of_one_function_are_refused_with_a_way_out():
    def scaled(responses, by):
        return [by] * len(responses)

    with pytest.raises(InputError, match=r"Two reward functions are named scaled.*set __name__"):
        Rewards([partial(scaled, by=2), partial(scaled, by=3)])


def test_weights_must_match_the_functions():
    with pytest.raises(InputError, match="2 reward weights for 1 functions"):
        Rewards([constant([])], weights=[1, 2])


@pytest.fixture
def file(tmp_path: Path) -> SimpleNamespace:
    (tmp_path / "neighbour_of_rewards.py").write_text("SCALE = 2.0\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from neighbour_of_rewards import SCALE\n\n"
        "def brevity(responses):\n    return [-SCALE * len(text) for text in responses]\n\n"
        "limit = 3\n"
        "short = lambda responses: [0.0 for _ in responses]\n"
        "long = lambda responses: [1.0 for _ in responses]\n"
    )
    return SimpleNamespace(path=path, folder=tmp_path)


def test_load_reward_finds_the_function_and_its_neighbours(file: SimpleNamespace):
    assert load_reward(f"{file.path}:brevity")(responses=["ab"]) == [-4.0]


def test_load_reward_names_a_lambda_as_its_file_does(file: SimpleNamespace):
    rewards = Rewards([load_reward(f"{file.path}:{name}") for name in ("short", "long", "brevity")])
    assert list(rewards.functions) == ["short", "long", "brevity"]


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("{folder}/none.py:brevity", "there is no file"),
        ("{folder}/mine.py", "path/to/file.py:function"),
        ("{folder}/mine.py:brevty", "did you mean 'brevity'?"),
        ("{folder}/mine.py:limit", "limit in mine.py is int 3, not a function"),
    ],
)
def test_load_reward_says_what_is_missing(file: SimpleNamespace, location: str, text: str):
    with pytest.raises(InputError) as error:
        load_reward(location.format(folder=file.folder))
    assert text in str(error.value)


def test_load_reward_lets_errors_of_the_file_through(tmp_path: Path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_reward(f"{tmp_path}/broken.py:reward")
