"""Reward functions: the keywords they get, what their answers become, and what is refused."""

from __future__ import annotations

import asyncio
import math
import threading
import traceback
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlhf.errors import InputError
from rlhf.lm.rewards import KEYWORDS, Rewards, Samples, checks_rows, load_reward


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


def nested() -> Samples:
    """Chats, of which the first two are one object, as those of a group are in the data."""
    prompt, other = [{"role": "user", "content": "two plus two?"}], [{"role": "user", "content": "three?"}]
    return Samples(
        prompts=[prompt, prompt, other],
        responses=["four", "five", "3"],
        completions=[[{"role": "assistant", "content": text}] for text in ("four", "five", "3")],
        completion_ids=[[5], [6], [7, 8]],
        finished=[True, True, False],
        columns={"tests": [{"cases": [1, 2]}, {"cases": [3]}, {"cases": []}]},
        sample_ids=[0, 1, 2],
    )


def joins(prompts, completions, **_):
    for prompt, completion in zip(prompts, completions, strict=True):
        prompt.extend(completion)
        assert len(prompt) == 2
    return [0.0] * 3


def relabels(completions, **_):
    for (message,) in completions:
        message["content"] = "hacked"
    return [0.0] * 3


def empties(completion_ids, finished, tests, responses):
    finished[0], responses[0] = False, "hacked"
    for ids, test in zip(completion_ids, tests, strict=True):
        ids.clear()
        test["cases"].append(9)
    return [0.0] * 3


def clears(completions):
    completions.clear()
    return [0.0] * 3


@pytest.mark.parametrize("changes", [joins, relabels, empties, clears])
def test_reward_cannot_change_what_the_next_one_or_the_data_sees(changes):
    seen = []

    def looks(**everything):
        seen.append(everything)
        return [[0.0] * len(ids) for ids in everything["completion_ids"]]

    given, rewards = nested(), Rewards([changes, looks])
    for _ in range(2):
        rewards(given)
    assert given == nested()
    untouched = nested()
    assert seen == [{name: untouched.copied(name) for name in untouched.names}] * 2


def test_answer_in_a_list_that_the_next_function_fills_again_keeps_its_numbers():
    buffer = [0.0] * 3

    def ones(completions):
        buffer[:] = [1.0] * 3
        return buffer

    def twos(completions):
        buffer[:] = [2.0] * 3
        return buffer

    assert Rewards([ones, twos])(samples()).parts == {"ones": [1.0] * 3, "twos": [2.0] * 3}


def test_column_that_cannot_be_copied_is_refused_by_name():
    with pytest.raises(InputError, match="column 'lock' holds what cannot be copied"):
        Rewards([lambda lock: [0.0] * 3])(samples(lock=[threading.Lock()] * 3))
    assert Rewards([lambda finished: [0.0] * 3])(samples(lock=[threading.Lock()] * 3)).scores.tolist() == [0.0] * 3


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


NOT_FLOAT32 = [1e200, -1e39, 10**5000, Fraction(10**400), -Fraction(10**50, 3)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor(float("nan")), *NOT_FLOAT32], ids=range(8))
def test_non_finite_score_names_function_and_sample(bad: Any):
    assert "reward function reward returned" in (text := message([1.0, bad, 1.0]))
    assert "for sample 11; return finite numbers" in text
    assert len(text) < 200


def test_what_a_repr_says_to_a_console_is_not_said():
    class Loud:
        def __repr__(self):
            return "a\nerror: b\x1b[2J"

    assert r"Loud a\nerror: b\x1b[2J for sample 10" in message([Loud(), 1.0, 1.0])


@pytest.mark.parametrize(
    "unreadable",
    [torch.ones(3, device="meta"), torch.ones(3).to_sparse(), [torch.ones((), device="meta"), 1.0, 1.0]],
    ids=["meta", "sparse", "an entry"],
)
def test_tensor_that_cannot_be_read_is_refused_by_name(unreadable: Any):
    assert "reward function reward returned a tensor on" in message(unreadable)


def test_list_that_says_another_length_than_it_has_is_counted():
    class Lying(list):
        def __len__(self):
            return 3

    assert "returned 1 scores for 3 samples" in message(Lying([1.0]))
    assert "returned 1 token rewards for sample 12" in message([1.0, 1.0, Lying([1.0])])


def test_none_is_refused_unless_allowed():
    assert "None for sample 12" in message([1.0, 2.0, None])


@pytest.mark.parametrize(
    ("answers", "weights", "totals", "valid"),
    [
        # Each applies to samples of its own, as functions of maths and of code do.
        ([[1.0, None, 2.0], [None, 0.5, None]], None, [1.0, 0.5, 2.0], [True, True, True]),
        ([[1.0, None, 2.0], [5, 5, 5]], [0.5, 2.0], [10.5, 10.0, 11.0], [True, True, True]),
        ([[1.0, None, 2.0], [5, None, None]], None, [6.0, 0.0, 2.0], [True, False, True]),
        ([[[1, 2], None, [4, 5, 6]], [None, None, 7.0]], None, [3.0, 0.0, 22.0], [True, False, True]),
        ([[None, None, None], [1, 2, 3]], None, [1.0, 2.0, 3.0], [True, True, True]),
    ],
)
def test_none_takes_one_function_out_and_a_sample_only_if_all_say_it(answers, weights, totals, valid):
    functions = [constant(answer) for answer in answers]
    for function, name in zip(functions, "ab", strict=True):
        function.__name__ = name
    scores = Rewards(functions, weights, allow_none=True)(samples())
    assert scores.valid.tolist() == valid
    assert scores.scores.tolist() == totals
    assert scores.rewards.sum(dim=1).tolist() == totals
    assert [part is None for part in scores.parts["a"]] == [entry is None for entry in answers[0]]


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


def test_a_function_may_check_every_row_by_what_it_names():
    seen = []

    def even(number):
        seen.append(number)
        if number % 2:
            raise InputError(f"number is {number}; it must be even.")

    @checks_rows(even)
    def reward(responses, number):
        return [float(len(response) == each) for response, each in zip(responses, number, strict=True)]

    rewards = Rewards([reward, len])
    rewards.require_rows("data", [{"prompt": "a", "number": 2}, {"prompt": "b", "number": 4}])
    assert seen == [2, 4]
    with pytest.raises(InputError, match="data: row 1: reward function reward: number is 3; it must be even"):
        rewards.require_rows("data", [{"number": 2}, {"number": 3}])
    with pytest.raises(InputError, match="the check of reward function reward asks for 'number', which data have not"):
        rewards.require_rows("data", [{"prompt": "a"}])


def test_unknown_parameter_is_refused_with_a_suggestion():
    def reward(completions, anwser):
        return []

    with pytest.raises(InputError, match=r"reward function reward asks for 'anwser'.*did you mean 'answer'\?"):
        Rewards([reward]).require_columns(["answer", "id"])


def test_function_that_is_given_nothing_by_keyword_is_refused():
    def reward(*texts):
        return [1.0] * len(texts[0])

    with pytest.raises(InputError, match="takes arguments by position alone; name them"):
        Rewards([reward]).require_columns([])


def test_function_that_takes_positions_beside_names_is_called_by_keyword():
    def reward(completions, *more, **columns):
        return [float(len(text)) for text in completions]

    rewards = Rewards([reward])
    rewards.require_columns([])
    assert rewards(samples()).scores.tolist() == [3, 1, 5]


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
