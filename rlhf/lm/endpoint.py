"""Rewards from elsewhere: a server that scores responses, and a language model that judges them."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import EndpointError, InputError
from rlhf.lm.asked import Asked, cache_folder, key_of
from rlhf.lm.client import Client, Connection, Limits
from rlhf.settings import Count, Positive, Total, checked

Log = Callable[[str, list[Any]], None]


class Endpoint:
    """A server's scores as a reward: it gets prompts and responses, and answers with a number for each.

    Posted is `{"prompts": [...], "responses": [...]}` with the columns asked for, at most `batch_size` samples at a
    time; the answer is a list of numbers, or `{"scores": [...]}`, in which other lists of that length are logged as
    columns of the samples. null is no say (`allow_none`). A server that is busy, down or slow is asked again, with
    growing pauses and not before it says (Retry-After), for `patience` seconds; what fails for good is one message.
    What was answered is kept on disk and never asked for again.

    Args:
        url: https, or http on this machine. Redirects are refused.
        columns: Of the data, which the server is told.
        headers: Sent with each request.
        key_variable: An environment variable whose value is sent as a bearer token.
        concurrency: Requests under way at a time, of each process.
        timeout: Seconds for one try.
        patience: Seconds for a request with all its tries.
        max_bytes: Longest answer.
        cache: The file that answers are kept in; "": one in the user's cache folder, for this address, and none for one
            on this machine, where another server may answer tomorrow; None: none.

    Raises:
        InputError: The address is no such address, or the environment lacks the key.
        EndpointError: The server fails for good.
    """

    @checked
    def __init__(
        self,
        url: str,
        *,
        columns: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        key_variable: str = "",
        batch_size: Count = 16,
        concurrency: Count = 8,
        timeout: Positive = 60.0,
        patience: Positive = 300.0,
        max_bytes: Total = 10_000_000,
        cache: str | Path | None = "",
    ) -> None:
        limits = Limits(concurrency, timeout, patience, max_bytes)
        self.client = Client(url, headers=_headers(headers, key_variable), limits=limits)
        self.columns, self.batch_size = tuple(columns), batch_size
        self.asked = _asked(cache, url)

    def inputs(self) -> dict[str, str]:
        """What a resumed run must find the same."""
        return {"endpoint": key_of(self.client.url, self.columns)}

    async def __call__(
        self, prompts: list[Any], responses: list[str], log_extra: Log | None = None, **columns: list[Any]
    ) -> list[float | None]:
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise InputError(f"the endpoint is to be told the column {missing[0]!r}, which the data have not.")
        names = ("prompts", "responses", *self.columns)
        told = [columns[name] for name in self.columns]
        samples = list(zip(prompts, responses, *told, strict=True))
        keys = [key_of(self.client.url, names, sample) for sample in samples]
        known = {} if self.asked is None else self.asked.known(keys)
        new = [(key, sample) for key, sample in dict(zip(keys, samples, strict=True)).items() if key not in known]
        parts = [new[start : start + self.batch_size] for start in range(0, len(new), self.batch_size)]

        async def ask(connection: Connection, part: list[tuple[str, tuple[Any, ...]]]) -> dict[str, Any]:
            body = {name: [sample[i] for _, sample in part] for i, name in enumerate(names)}
            found = _scores(await connection.post(body), len(part), self.client.url)
            kept = {key: answer for (key, _), answer in zip(part, found, strict=True)}
            if self.asked is not None:
                # At once, so that a run which ends here need not ask for them again; but for those without a score.
                self.asked.keep({key: answer for key, answer in kept.items() if answer["score"] is not None})
            return kept

        known |= await _all_of(self.client, [(ask, part) for part in parts])
        answers = [known[key] for key in keys]
        for name in dict.fromkeys(name for answer in answers for name in answer["extra"]):
            if log_extra is not None:
                log_extra(name, [answer["extra"].get(name) for answer in answers])
        return [answer["score"] for answer in answers]


class Judge:
    """A language model behind an OpenAI-compatible address as a reward: it reads a question about each response, and
    the last number that `pattern` finds in its answer is the score; none is no say (`allow_none`).

    Args:
        url: Of chat completions, such as https://host/v1/chat/completions or http://127.0.0.1:8000/v1/chat/completions.
        model: As the server calls it.
        template: The question, with `{prompt}`, `{response}` and columns of the data in braces.
        pattern: A regular expression with one group, the number.
        options: More of the request, such as temperature (0 unless given) or max_tokens.
        key_variable: An environment variable whose value is sent as a bearer token.
        concurrency, timeout, patience, max_bytes, cache: As of Endpoint.
    """

    @checked
    def __init__(
        self,
        url: str,
        *,
        model: str,
        template: str,
        pattern: str = r"(-?\d+(?:\.\d+)?)",
        options: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        key_variable: str = "",
        concurrency: Count = 8,
        timeout: Positive = 60.0,
        patience: Positive = 300.0,
        max_bytes: Total = 10_000_000,
        cache: str | Path | None = "",
    ) -> None:
        limits = Limits(concurrency, timeout, patience, max_bytes)
        self.client = Client(url, headers=_headers(headers, key_variable), limits=limits)
        self.model, self.template = model, template
        self.options = {"temperature": 0, **(options or {})}
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise InputError(f"pattern {pattern!r:.80} is no regular expression: {error}.") from error
        if self.pattern.groups != 1:
            raise InputError(f"pattern {pattern!r:.80} has {self.pattern.groups} groups; give it one, the number.")
        self.asked = _asked(cache, url)

    def inputs(self) -> dict[str, str]:
        """What a resumed run must find the same."""
        told = (self.client.url, self.model, self.template, self.pattern.pattern, self.options)
        return {"judge": key_of(*told)}

    async def __call__(
        self, prompts: list[Any], responses: list[str], log_extra: Log | None = None, **columns: list[Any]
    ) -> list[float | None]:
        questions = [
            self._question(prompt, response, {name: values[i] for name, values in columns.items()})
            for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True))
        ]
        keys = [key_of(self.client.url, self.model, self.options, question) for question in questions]
        known = {} if self.asked is None else self.asked.known(keys)
        new = {key: question for key, question in zip(keys, questions, strict=True) if key not in known}

        async def ask(connection: Connection, question: tuple[str, str]) -> dict[str, Any]:
            key, text = question
            body = {"model": self.model, "messages": [{"role": "user", "content": text}], **self.options}
            kept = {key: _said(await connection.post(body), self.client.url)}
            if self.asked is not None and self._score(kept[key]) is not None:
                self.asked.keep(kept)
            return kept

        known |= await _all_of(self.client, [(ask, question) for question in new.items()])
        said = [known[key] for key in keys]
        if log_extra is not None:
            log_extra("judge_says", said)
        return [self._score(text) for text in said]

    def _question(self, prompt: Any, response: str, columns: Mapping[str, Any]) -> str:
        try:
            return self.template.format(**{**columns, "prompt": _readable(prompt), "response": response})
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(
                f"the judge's template cannot be filled in ({type(error).__name__}: {error}); it may name {{prompt}}, "
                f"{{response}} and the columns {', '.join(columns) or '(there are none)'}; other braces are doubled."
            ) from error

    def _score(self, text: str) -> float | None:
        found = self.pattern.findall(text)
        try:
            number = float(found[-1]) if found else math.nan
        except ValueError:
            number = math.nan
        return number if math.isfinite(number) else None


async def _all_of(client: Client, jobs: Sequence[tuple[Callable[..., Any], Any]]) -> dict[str, Any]:
    """What all jobs return, together; the first that fails ends the others."""
    if not jobs:
        return {}
    async with client.open() as connection:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(job(connection, what)) for job, what in jobs]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return {key: answer for task in tasks for key, answer in task.result().items()}


def _headers(headers: Mapping[str, str] | None, key_variable: str) -> dict[str, str]:
    if not key_variable:
        return dict(headers or {})
    key = os.environ.get(key_variable, "").strip()
    if not key:
        raise InputError(f"the environment variable {key_variable} is not set; it is to hold the endpoint's key.")
    return {**(headers or {}), "Authorization": f"Bearer {key}"}


def _asked(cache: str | Path | None, url: str) -> Asked | None:
    if cache is None or (not cache and url.startswith("http://")):
        return None
    return Asked(Path(cache).expanduser() if cache else cache_folder() / f"{key_of(url)[:16]}.sqlite")


def _scores(answer: Any, count: int, url: str) -> list[dict[str, Any]]:
    """For each sample its score, and what else the server says of it."""
    scores = answer.get("scores") if isinstance(answer, dict) else answer
    if not isinstance(scores, list):
        raise EndpointError(
            f"{url} answers {str(answer)[:120]!r}; it must answer with a list of numbers, or with one under 'scores'."
        )
    if len(scores) != count:
        raise EndpointError(f"{url} answers with {len(scores)} scores for {count} samples; one for each is needed.")
    for number, score in enumerate(scores):
        if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
            raise EndpointError(f"{url} answers {score!r:.60} for sample {number} of {count}; scores must be numbers.")
        if score is not None and not math.isfinite(score):
            raise EndpointError(f"{url} answers {score!r:.60} for sample {number} of {count}; it must be finite.")
    others = {} if not isinstance(answer, dict) else {name: x for name, x in answer.items() if name != "scores"}
    extra = {name: values for name, values in others.items() if isinstance(values, list) and len(values) == count}
    return [
        {"score": None if score is None else float(score), "extra": {name: values[i] for name, values in extra.items()}}
        for i, score in enumerate(scores)
    ]


def _said(answer: Any, url: str) -> str:
    """The text of a chat completion."""
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise EndpointError(f"{url} answers {str(answer)[:120]!r}, which is no chat completion with a text.")
    return text


def _readable(prompt: Any) -> str:
    """A prompt as text; of a conversation each turn behind its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in prompt)
