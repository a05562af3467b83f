"""Chat templates: what they are told besides the messages, and what is refused of programs that come with a model."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

from rlhf.errors import InputError

Message = dict[str, Any]

LIMIT_SECONDS = 10
"""Longest that a template may take for one conversation."""
LIMIT_BYTES = 1 << 30
"""Most memory that it may take."""
LIMIT_CHARACTERS = 10_000_000
"""Most that it may write."""

_RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters} - {"documents"} | {
    "messages",
    "strftime_now",
}


def template_arguments(columns: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a row tells the chat template besides its messages: its columns `tools` and `chat_template_kwargs`.

    Either may be JSON text, which is how tables store what differs from row to row. None inside is left out: tables
    fill with it what other rows have.

    Raises:
        InputError: `tools` is no list of dicts, or `chat_template_kwargs` no dict of names that templates may read.
    """
    tools, told = _parsed(columns.get("tools")), _parsed(columns.get("chat_template_kwargs"))
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise InputError(f"{where}: tools is {tools!r:.60}; it must be a list of JSON schemas, or be called otherwise.")
    if told and not isinstance(told, dict):
        raise InputError(f"{where}: chat_template_kwargs is {told!r:.60}; it must be a dict.")
    arguments: dict[str, Any] = _without_none(told or {})
    reserved = sorted(_RESERVED & arguments.keys())
    if reserved:
        raise InputError(f"{where}: chat_template_kwargs has {reserved[0]!r}, which is not the data's to say; drop it.")
    return arguments | ({"tools": _without_none(tools)} if tools else {})


def rendered(
    tokenizer: Any,
    messages: list[Message],
    where: str,
    *,
    add_generation_prompt: bool,
    arguments: Mapping[str, Any],
    today: bool,
) -> str:
    """The conversation as the tokenizer's chat template writes it.

    Args:
        today: It may write the date of today, as in no run that may be resumed tomorrow.

    Raises:
        InputError: There is no template, or none chosen of several; it fails, writes today's date, or too much.
    """
    template = _template(tokenizer, arguments, where)
    for name in arguments:
        if not _reads(template, name):
            raise InputError(
                f"{where}: the chat template reads nothing called {name!r}; drop it from the data, or take a "
                "model whose template does."
            )
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=add_generation_prompt,
            chat_template=template,
            tokenize=False,
            # Text in the place of the clock, so that a template that asks it fails.
            **({} if today else {"strftime_now": ""}),
            **arguments,
        )
    # The template is a program of the model's author: it may fail in any way.
    except Exception as error:
        if "strftime_now" in template and isinstance(error, TypeError) and "not callable" in str(error):
            raise InputError(
                f"{where}: the chat template writes today's date, so a run resumed tomorrow would read other prompts; "
                "give the date by a column chat_template_kwargs (such as {'date_string': '26 Jul 2024'}, if the "
                "template reads that), or write it into tokenizer.chat_template."
            ) from error
        raise InputError(f"{where}: the chat template refuses the conversation: {error}.") from error
    if len(text) > LIMIT_CHARACTERS:
        raise InputError(f"{where}: the chat template writes {len(text)} characters, more than {LIMIT_CHARACTERS}.")
    return text


def understood(tokenizer: Any, arguments: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Those arguments that the template reads."""
    template = _template(tokenizer, arguments, where)
    return {name: value for name, value in arguments.items() if _reads(template, name)}


def _reads(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def _template(tokenizer: Any, arguments: Mapping[str, Any], where: str) -> str:
    given = tokenizer.chat_template
    if given is None:
        raise InputError(
            f"{where}: messages need a chat template, and the tokenizer of {tokenizer.name_or_path or 'the model'} has "
            "none; set tokenizer.chat_template, or write the data as prompt and completion strings."
        )
    try:
        template: str = tokenizer.get_chat_template(tools=arguments.get("tools"))
    except ValueError as error:
        raise InputError(
            f"{where}: the tokenizer has several chat templates ({', '.join(given)}) and no default; set "
            "tokenizer.chat_template to one of them."
        ) from error
    return template


def rendered_apart(jobs: Mapping[str, Callable[[], list[str]]]) -> list[list[str]]:
    """What jobs that render templates return, up to the first that raises: that is left for the caller to meet.

    They run in a process of their own, since nothing in this one could stop a template for certain. Where there is no
    `os.fork` (on Windows) none is run.

    Args:
        jobs: By what error messages call them.

    Raises:
        InputError: A job takes longer than LIMIT_SECONDS or more than LIMIT_BYTES.
    """
    if not jobs or not hasattr(os, "fork"):
        return []
    reading, writing = os.pipe()
    with _quiet_fork():
        child = os.fork()
    if child == 0:
        _render_and_exit(list(jobs.values()), writing)
    os.close(writing)
    try:
        with open(reading, "rb") as results:
            done = [json.loads(line) for line in results if line.endswith(b"\n")]
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return done
    why = f"takes more than {LIMIT_BYTES >> 20} MiB of memory" if status == 1 else f"broke down (signal {-status})"
    if status == -signal.SIGALRM:
        why = f"does not end within {LIMIT_SECONDS} s"
    raise InputError(f"{list(jobs)[len(done)]}: the chat template {why}; use another one.")


def _render_and_exit(jobs: list[Callable[[], list[str]]], results: int) -> NoReturn:
    """Writes one line for each job; the process ends itself by a signal if one takes too long."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        _limit_memory()
        for job in jobs:
            signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
            line = json.dumps(job()).encode() + b"\n"
            signal.setitimer(signal.ITIMER_REAL, 0)
            while line:
                line = line[os.write(results, line) :]
        status = 0
    except BaseException as error:
        status = int(isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError))
    finally:
        os._exit(status)


def _limit_memory() -> None:
    """Only where the system says what is in use (Linux); elsewhere the time has to do."""
    with contextlib.suppress(OSError, ImportError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as sizes:
            used = int(sizes.read().split()[0]) * resource.getpagesize()
        before, most = resource.getrlimit(resource.RLIMIT_AS)
        if before in (resource.RLIM_INFINITY, -1) or used + LIMIT_BYTES < before:
            resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, most))


@contextlib.contextmanager
def _quiet_fork() -> Iterator[None]:
    """The child neither tokenizes nor waits for a thread, so two well-meant warnings do not apply."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ.setdefault(name, "true")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        if before is None:
            os.environ.pop(name, None)


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    with contextlib.suppress(ValueError):
        return json.loads(value)
    return value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
