"""Reward functions called: plain ones one after the other, async ones together, and what if one fails or waits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from rlhf.errors import InputError, UserExit, no_exit
from rlhf.files import users_code
from rlhf.lm.settings import Calling, OnError
from rlhf.runs.console import say
from rlhf.runs.waiting import Waiting

T = TypeVar("T")
# Seconds between one try and the next; after the last the error is raised.
PAUSES = (1.0, 2.0, 4.0)


def call_all(
    calls: Mapping[str, Callable[[], Any]], check: Callable[[str, Any], T], how: Calling
) -> dict[str, T | None]:
    """What `check` makes of every function's answer, in their order; None for one that was skipped.

    Args:
        calls: By name; each asks the function once.
        check: Is given an answer at once, before the next function could change it.

    Raises:
        Stopped: SIGTERM came while a function waited.
    """
    answers: dict[str, T | None] = {}
    unfinished: dict[str, Any] = {}

    def ask(name: str) -> T | None:
        with waiting.limit(how.timeout, f"reward function {name}"), no_exit(f"reward function {name}"):
            answer = calls[name]()
        if inspect.isawaitable(answer):
            unfinished[name] = answer
            return None
        return check(name, answer)

    def hear(name: str) -> T:
        if name not in unfinished:
            answer = ask(name)
            if answer is not None:
                return answer
        if not isinstance(unfinished[name], concurrent.futures.Future):
            unfinished[name] = _started(unfinished[name])
        return check(name, _heard(name, unfinished.pop(name), how.timeout))

    with Waiting() as waiting, users_code():
        try:
            for name in calls:
                answers[name] = _tried(name, functools.partial(ask, name), how.on_error)
            for name in unfinished:
                unfinished[name] = _started(unfinished[name])
            for name in list(unfinished):
                answers[name] = _tried(name, functools.partial(hear, name), how.on_error)
        finally:
            for left in unfinished.values():
                left.close() if inspect.iscoroutine(left) else left.cancel()
    return answers


def _tried(name: str, ask: Callable[[], T], on_error: OnError) -> T | None:
    """What `ask` returns, after as many tries as `on_error` allows; None where it is skipped."""
    for pause in (*PAUSES, 0.0):
        try:
            return ask()
        except (InputError, UserExit):
            # No endpoint's fault: the same would come again.
            raise
        except Exception as error:
            if on_error == "stop" or (on_error == "retry" and not pause):
                raise
            said = f"reward function {name} failed ({type(error).__name__}: {error})"
        if on_error == "skip":
            say(f"{said}; it is left out for these samples.")
            return None
        say(f"{said}; trying again in {pause:g} s.")
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _started(answer: Any) -> concurrent.futures.Future[Any]:
    return asyncio.run_coroutine_threadsafe(_outcome(answer), _loop(os.getpid()))


def _heard(name: str, future: concurrent.futures.Future[Any], timeout: float) -> Any:
    """What a function answers in the loop; what it raises there is raised here."""
    concurrent.futures.wait([future], timeout=min(timeout, threading.TIMEOUT_MAX) or None)
    if not future.done():
        future.cancel()
        raise TimeoutError(f"reward function {name} took more than {timeout:g} seconds.")
    answer, error = future.result()
    if error is not None:
        with no_exit(f"reward function {name}"):
            raise error
    return answer


async def _outcome(answer: Any) -> tuple[Any, BaseException | None]:
    try:
        return await answer, None
    except BaseException as error:
        # `sys.exit` and Ctrl-C would end the loop instead of reaching who waits.
        return None, error


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The one loop of this process, in a thread of its own: semaphores and clients that a function keeps belong to the
    loop of its first call.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=_run, args=(loop,), daemon=True, name="async rewards").start()
    return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    # As where plain functions are called; which is a matter of each thread.
    torch.set_grad_enabled(False)
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            # Of a task that the function started: it hears of it from that task.
            continue
