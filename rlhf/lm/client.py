"""Asks a server for JSON: politely, within limits of time and size, and nothing over an open line."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import ipaddress
import json
import math
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx2

from rlhf.errors import EndpointError, InputError

# Of answers that say "later": the same request may succeed.
_LATER = (408, 425, 429, 500, 502, 503, 504)
# Seconds before the second try and at most before another; each is drawn from the upper half, so that many who were
# refused together do not come back together.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_SHOWN = 200


class Limits(NamedTuple):
    """What a client bears.

    Args:
        concurrency: Requests under way at a time, of each process.
        timeout: Seconds for one try.
        patience: Seconds for a request with all its tries and pauses.
        max_bytes: Longest answer.
    """

    concurrency: int
    timeout: float
    patience: float
    max_bytes: int


def require_url(url: str) -> None:
    """Refuses an address that prompts and keys would travel to in the clear.

    Raises:
        InputError: It is neither https nor on this machine.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise InputError(f"{url!r:.80} is no address ({error}); give one such as https://host/score.") from error
    if parsed.scheme == "https" and parsed.host:
        return
    if parsed.scheme == "http" and _on_this_machine(parsed.host):
        return
    raise InputError(
        f"{url!r:.80} is neither https nor on this machine (http://127.0.0.1:PORT/...), so prompts and keys would "
        "travel in the clear; use https."
    )


def _on_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Client:
    """Posts JSON to one address; see `Limits`. What fails for good is an EndpointError that says what came."""

    def __init__(self, url: str, *, headers: Mapping[str, str], limits: Limits) -> None:
        require_url(url)
        self.url, self.headers, self.limits = url, dict(headers), limits

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Connection]:
        """Connections that are kept for the requests made meanwhile."""
        local = httpx2.URL(self.url).scheme == "http"
        number = self.limits.concurrency
        async with httpx2.AsyncClient(
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json", **self.headers},
            follow_redirects=False,
            # The whole of a try has a limit, below.
            timeout=None,
            limits=httpx2.Limits(max_connections=number, max_keepalive_connections=number),
            # A proxy is for what lies outside.
            trust_env=not local,
        ) as client:
            yield Connection(self, client)


class Connection:
    """An open client."""

    def __init__(self, client: Client, http: httpx2.AsyncClient) -> None:
        self.client, self._http = client, http
        self._free = asyncio.Semaphore(client.limits.concurrency)

    async def post(self, body: Mapping[str, Any]) -> Any:
        """The JSON that the server answers with, after as many tries as patience allows.

        Raises:
            EndpointError: It does not answer in time, refuses, redirects, says too much, or says what is no JSON.
        """
        limits, pause, tries, deadline = self.client.limits, _FIRST_PAUSE, 0, 0.0
        try:
            content = json.dumps(body, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise InputError(
                f"what {self.client.url} is to be told is no JSON ({error}); leave such columns out."
            ) from error
        while True:
            tries += 1
            async with self._free:
                # From the first try on, and not while others were asked.
                deadline = deadline or time.monotonic() + limits.patience
                answer = await self._tried(content, min(limits.timeout, max(deadline - time.monotonic(), 0.0)))
            if not isinstance(answer, _Later):
                return answer
            wait = max(answer.seconds, random.uniform(0.5, 1.0) * pause)
            pause = min(2.0 * pause, _LONGEST_PAUSE)
            if time.monotonic() + wait >= deadline:
                raise EndpointError(
                    f"{self.client.url} did not answer within {limits.patience:g} s and {tries} tries; the last time: "
                    f"{answer.why}."
                )
            await asyncio.sleep(wait)

    async def _tried(self, content: bytes, timeout: float) -> Any:
        try:
            async with asyncio.timeout(timeout):
                async with self._http.stream("POST", self.client.url, content=content) as response:
                    return await self._read(response)
        except TimeoutError:
            return _Later(0.0, f"no answer within {timeout:.3g} s")
        except httpx2.RequestError as error:
            return _Later(0.0, f"{type(error).__name__} {error}".strip())

    async def _read(self, response: httpx2.Response) -> Any:
        url, status = self.client.url, f"{response.status_code} {response.reason_phrase}".strip()
        if response.status_code in _LATER:
            return _Later(_seconds(response.headers.get("Retry-After", "")), status)
        if response.is_redirect:
            where = response.headers.get("Location", "elsewhere")
            raise EndpointError(
                f"{url} redirects to {where!r:.120}, which is not followed, since it would get the prompts and the key "
                "too; if that is meant, give that address."
            )
        parts, size = [], 0
        async for part in response.aiter_bytes():
            size += len(part)
            if size > self.client.limits.max_bytes:
                raise EndpointError(
                    f"{url} answers with more than {self.client.limits.max_bytes:,} bytes; nothing that long is read."
                )
            parts.append(part)
        text = b"".join(parts).decode("utf-8", errors="replace")
        if response.status_code != 200:
            raise EndpointError(f"{url} answers {status}: {' '.join(text.split())[:_SHOWN]!r}.")
        try:
            return json.loads(text, parse_constant=_not_json)
        except (ValueError, RecursionError) as error:
            raise EndpointError(f"{url} answers with what is no JSON ({error}): {text[:_SHOWN]!r}.") from error


class _Later(NamedTuple):
    """No answer yet: how long to wait at least, and why."""

    seconds: float
    why: str


def _not_json(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _seconds(retry_after: str) -> float:
    """What a header Retry-After asks for: seconds, or a date; 0 without one."""
    with contextlib.suppress(ValueError):
        seconds = float(retry_after)
        return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0
