"""Reward functions that are async, wait, fail or exit."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from typing import Any

import pytest
import torch

from rlhf.errors import InputError, UserExit
from rlhf.lm import reward_calls
from rlhf.lm.rewards import Rewards
from rlhf.lm.settings import Calling
from tests.lm.test_rewards import samples

AT_ONCE = asyncio.Semaphore(2)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(reward_calls, "PAUSES", (0.01, 0.02, 0.03))


async def limited(completions: list[str]) -> list[float]:
    """Asks at most two at a time, by a semaphore of its file, as judges do."""

    async def ask(text: str) -> float:
        async with AT_ONCE:
            await asyncio.sleep(0.001)
            return float(len(text))

    return await asyncio.gather(*map(ask, completions))


def flaky(*, failures: int, error: BaseException | None = None, asynchronous: bool = False) -> Any:
    """Fails so many times, then answers."""
    left = [failures]

    def answer() -> list[float]:
        left[0] -= 1
        if left[0] >= 0:
            raise error or ConnectionError("no answer")
        return [1.0, 2.0, 3.0]

    def plain(completions):
        return answer()

    async def coroutine(completions):
        return answer()

    function = coroutine if asynchronous else plain
    function.__name__ = "flaky"
    return function


def test_semaphore_of_a_file_serves_every_call_and_every_task():
    for _ in range(3):
        # Two tasks, such as of training and of an evaluation.
        assert (
            Rewards([limited])(samples()).scores.tolist() == Rewards([limited])(samples()).scores.tolist() == [3, 1, 5]
        )


def test_all_calls_run_in_one_loop_also_beside_a_running_one():
    loops = set()

    async def reward(completions):
        loops.add(asyncio.get_running_loop())
        return [1.0, 2.0, 3.0]

    async def notebook():
        return Rewards([reward])(samples())

    for scores in (Rewards([reward])(samples()), asyncio.run(notebook()), Rewards([reward])(samples())):
        assert scores.scores.tolist() == [1, 2, 3]
    assert len(loops) == 1


def test_async_functions_compute_without_gradients_as_plain_ones_do():
    async def reward(completions):
        return (torch.ones(3, requires_grad=True) * 2.0).requires_grad, torch.is_grad_enabled(), 1.0

    with torch.no_grad():
        assert Rewards([reward])(samples()).scores.tolist() == [0, 0, 1]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_error_keeps_the_users_own_lines(asynchronous):
    with pytest.raises(ConnectionError, match="no answer") as error:
        Rewards([flaky(failures=1, asynchronous=asynchronous)])(samples())
    assert traceback.extract_tb(error.tb)[-1].name == "answer"


def exits(completions):
    sys.exit(0)


def evaluates(completions):
    exec("exit()")


async def exits_async(completions):
    sys.exit()


async def exits_in_a_task(completions):
    async def ask(text):
        raise SystemExit(3)

    return await asyncio.gather(*map(ask, completions))


@pytest.mark.parametrize("function", [exits, evaluates, exits_async, exits_in_a_task])
@pytest.mark.parametrize("on_error", ["stop", "retry", "skip"])
def test_exit_in_a_reward_is_an_error_that_says_where_and_the_loop_goes_on(function, on_error):
    rewards = Rewards([function], calling=Calling(on_error=on_error))
    with pytest.raises(UserExit, match=rf"reward function {function.__name__} called exit\(") as error:
        rewards(samples())
    frames = traceback.extract_tb(error.value.__cause__.__traceback__)
    assert any(frame.filename == __file__ for frame in frames)
    assert Rewards([limited])(samples()).scores.tolist() == [3, 1, 5]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_retry_asks_again_a_bounded_number_of_times(asynchronous):
    retrying = Calling(on_error="retry")
    tries = 1 + len(reward_calls.PAUSES)
    ready = flaky(failures=tries - 1, asynchronous=asynchronous)
    assert Rewards([limited, ready], calling=retrying)(samples()).scores.tolist() == [4, 3, 8]
    with pytest.raises(ConnectionError, match="no answer"):
        Rewards([limited, flaky(failures=tries, asynchronous=asynchronous)], calling=retrying)(samples())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_skip_leaves_a_function_out_of_these_samples_and_says_so(asynchronous, capsys):
    rewards = Rewards([flaky(failures=1, asynchronous=asynchronous), limited], calling=Calling(on_error="skip"))
    scores = rewards(samples())
    said = "reward function flaky failed (ConnectionError: no answer); it is left out for these samples.\n"
    assert capsys.readouterr().out == said
    assert scores.skipped == ("flaky",)
    assert scores.parts == {"flaky": [None] * 3, "limited": [3.0, 1.0, 5.0]}
    assert scores.valid.all()
    assert rewards(samples()).scores.tolist() == [4, 3, 8]


def test_evaluation_is_not_skipped_but_tried_again():
    rewards = Rewards([flaky(failures=2), limited], calling=Calling(on_error="skip"))
    scores = rewards(samples(), evaluating=True)
    assert (scores.skipped, scores.scores.tolist()) == ((), [4, 3, 8])


@pytest.mark.parametrize("on_error", ["retry", "skip"])
def test_wrong_answer_is_no_failure_of_an_endpoint(on_error):
    with pytest.raises(InputError, match="returned 1 scores for 3 samples"):
        Rewards([lambda completions: [1.0]], calling=Calling(on_error=on_error))(samples())


def sleeps(completions):
    time.sleep(30)


def tries_for_ever(completions):
    while True:
        try:
            time.sleep(30)
        except Exception:
            continue


def computes(completions):
    while True:
        pass


async def sleeps_async(completions):
    await asyncio.sleep(30)


async def holds_the_loop_up(completions):
    time.sleep(0.3)
    return [0.0] * 3


def pool(completions):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as workers:
        return list(workers.map(lambda text: time.sleep(0.8), completions))


@pytest.mark.parametrize("function", [sleeps, tries_for_ever, computes, sleeps_async, pool, holds_the_loop_up])
def test_time_limit_reaches_a_reward_wherever_it_waits(function):
    rewards, start = Rewards([function], calling=Calling(timeout=0.1)), time.monotonic()
    with pytest.raises(TimeoutError, match=rf"reward function {function.__name__} took more than 0.1 seconds"):
        rewards(samples())
    assert time.monotonic() - start < 1.0
    # A recipe that ends while they live ends at once, and so would these tests.
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join()


def test_time_limit_counts_each_call_and_is_retried_or_skipped_like_an_error(capsys):
    calls = []

    def slow_at_first(completions):
        calls.append(1)
        time.sleep(30 if len(calls) == 1 else 0)
        return [1.0, 2.0, 3.0]

    rewards = Rewards([slow_at_first, limited], calling=Calling(timeout=0.2, on_error="retry"))
    assert rewards(samples()).scores.tolist() == [4, 3, 8]
    assert "TimeoutError: reward function slow_at_first took more than 0.2 seconds" in capsys.readouterr().out


def test_time_limit_outside_the_main_thread_is_refused():
    refused = []

    def work() -> None:
        try:
            Rewards([sleeps], calling=Calling(timeout=1.0))(samples())
        except InputError as error:
            refused.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "needs the main thread" in refused[0]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"timeout": -1.0}, "timeout is -1.0"),
        ({"timeout": float("inf")}, "timeout is inf"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"on_error": "never"}, "on_error is"),
    ],
)
def test_settings_are_refused_at_the_door(settings, text):
    with pytest.raises(InputError, match=text):
        Calling(**settings)
