"""Rewards from a server: what it may do wrong, within which time, and that nothing is asked twice."""

from __future__ import annotations

import email.utils
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf
from rlhf.errors import DiskError, EndpointError, InputError
from rlhf.lm import client
from rlhf.lm.client import require_url
from rlhf.lm.endpoint import Endpoint, Judge
from rlhf.lm.rewards import Rewards, Samples
from rlhf.lm.settings import Calling
from tests.lm.servers import lengths, says, serving
from tests.lm.words import word_tokenizer
from tests.lm.worlds import ROWS, word_policy


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_PAUSE", 0.02)


def samples_of(*responses: str, **columns: list[Any]) -> Samples:
    count = len(responses)
    return Samples(
        prompts=[f"prompt {i}" for i in range(count)],
        responses=list(responses),
        completions=list(responses),
        completion_ids=[[1] for _ in responses],
        finished=[True] * count,
        columns=columns,
        sample_ids=list(range(count)),
    )


def scored(endpoint: Any, samples: Samples, **options: Any) -> list[float]:
    return Rewards([endpoint], None, **options)(samples).scores.tolist()


def quickly(url: str, **options: Any) -> Endpoint:
    return Endpoint(url, **{"timeout": 1.0, "patience": 3.0, "cache": None, **options})


def test_samples_are_scored_in_their_order_and_in_batches() -> None:
    responses = ["a" * (i % 7 + 1) + str(i) for i in range(25)]
    with serving(lengths) as server:
        assert scored(quickly(server.url, batch_size=4), samples_of(*responses)) == [len(text) for text in responses]
    assert sorted(len(body["responses"]) for body in server.bodies) == [1, 4, 4, 4, 4, 4, 4]
    assert all(set(body) == {"prompts", "responses"} for body in server.bodies)


def test_no_more_requests_are_under_way_than_allowed() -> None:
    def slowly(number: int, body: Any) -> Any:
        time.sleep(0.03)
        return lengths(number, body)

    with serving(slowly) as server:
        scored(quickly(server.url, batch_size=1, concurrency=3), samples_of(*(str(i) for i in range(12))))
    assert 2 <= server.most_at_once <= 3


def test_columns_headers_and_keys_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret\n")
    with serving(lengths) as server:
        endpoint = quickly(server.url, columns=("answer",), headers={"X-Team": "us"}, key_variable="MY_KEY")
        scored(endpoint, samples_of("a", "b", answer=[1, [2]], other=[3, 4]))
    assert server.bodies[0]["answer"] == [1, [2]]
    assert "other" not in server.bodies[0]
    assert server.headers[0]["X-Team"] == "us"
    assert server.headers[0]["Authorization"] == "Bearer secret"
    with pytest.raises(InputError, match="to be told the column 'answer', which the data have not"):
        scored(quickly(server.url, columns=("answer",)), samples_of("a"))


def test_what_a_server_says_beside_scores_becomes_columns() -> None:
    def both(number: int, body: Any) -> Any:
        return says({"scores": [1.5, None], "why": ["good", None], "version": 3, "odd": [1]})

    with serving(both) as server:
        found = Rewards([quickly(server.url)], None, allow_none=True)(samples_of("a", "b"))
    assert found.scores.tolist() == [1.5, 0.0]
    assert found.valid.tolist() == [True, False]
    assert found.extra == {"why": ["good", None]}


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(status: int) -> None:
    def busy(number: int, body: Any) -> Any:
        return says("later", status=status) if number < 2 else lengths(number, body)

    with serving(busy) as server:
        assert scored(quickly(server.url), samples_of("abc")) == [3.0]
    assert len(server.bodies) == 3


def test_connections_that_are_reset_are_made_again() -> None:
    with serving(lambda number, body: None if number < 3 else lengths(number, body)) as server:
        assert scored(quickly(server.url), samples_of("abc")) == [3.0]
    assert len(server.bodies) == 4


def test_a_try_that_takes_too_long_is_given_up_and_made_again() -> None:
    def hangs(number: int, body: Any) -> Any:
        if number == 0:
            time.sleep(3.0)
        return lengths(number, body)

    with serving(hangs) as server:
        started = time.monotonic()
        assert scored(quickly(server.url, timeout=0.3), samples_of("abc")) == [3.0]
        assert time.monotonic() - started < 2.0


@pytest.mark.parametrize("kind", ["seconds", "date"])
def test_a_server_is_not_asked_before_it_says(kind: str) -> None:
    def later(number: int, body: Any) -> Any:
        if number:
            return lengths(number, body)
        # A date has no fractions.
        when = "0.4" if kind == "seconds" else email.utils.formatdate(time.time() + 2.0, usegmt=True)
        return says("", status=429, Retry_After=when)

    with serving(later) as server:
        assert scored(quickly(server.url, patience=10.0), samples_of("abc")) == [3.0]
    assert server.times[1] - server.times[0] >= (0.4 if kind == "seconds" else 0.9)


def test_a_server_that_asks_for_more_time_than_there_is_ends_it_at_once() -> None:
    with serving(lambda number, body: says("", status=503, Retry_After="3600")) as server:
        started = time.monotonic()
        with pytest.raises(EndpointError, match=r"did not answer within 3 s and 1 tries; the last time: 503"):
            scored(quickly(server.url), samples_of("a"))
        assert time.monotonic() - started < 1.0


def test_a_server_that_never_answers_ends_within_its_time() -> None:
    def hangs(number: int, body: Any) -> Any:
        time.sleep(5.0)
        return lengths(number, body)

    with serving(hangs) as server:
        started = time.monotonic()
        with pytest.raises(EndpointError, match=r"did not answer within 1 s and \d tries; .* no answer within"):
            scored(quickly(server.url, timeout=0.4, patience=1.0), samples_of("a"))
        assert time.monotonic() - started < 2.0


def test_a_server_that_is_not_there_ends_within_its_time() -> None:
    with serving(lengths) as server:
        pass
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"did not answer within 1 s and \d+ tries; the last time: ConnectError"):
        scored(quickly(server.url, patience=1.0), samples_of("a"))
    assert time.monotonic() - started < 2.0


def test_an_answer_that_drips_ends_within_its_time() -> None:
    """A byte now and then, so that no single wait is long."""
    import socket
    import threading

    listening = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listening.accept()
        with connection, listening:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                for _ in range(100):
                    connection.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                return

    threading.Thread(target=drip, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"did not answer within 0\.8 s"):
        scored(quickly(f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout=0.5, patience=0.8), samples_of("a"))
    assert time.monotonic() - started < 2.0


WRONG: dict[str, tuple[Any, str]] = {
    "a redirect": (says("", status=302, Location="https://elsewhere.org/x"), "redirects to 'https://elsewhere.org/x'"),
    "forbidden": (says({"error": "no key"}, status=401), r"answers 401 Unauthorized: '\{\"error\": \"no key\"\}'"),
    "not found": ((404, {}, b"<html>nothing\nhere</html>"), "answers 404 Not Found: '<html>nothing here</html>'"),
    "no JSON": ((200, {}, b"<html>"), "answers with what is no JSON .*: '<html>'"),
    "half a JSON": ((200, {}, b"[1.0, "), "answers with what is no JSON"),
    "nested JSON": ((200, {}, b"[" * 200_000), "answers with what is no JSON"),
    "NaN": ((200, {}, b"[NaN]"), "answers with what is no JSON .it holds NaN"),
    "infinity": ((200, {}, b"[1e999]"), "answers inf for sample 0 of 1; it must be finite"),
    "too few": (says([]), "answers with 0 scores for 1 samples"),
    "too many": (says([1, 2]), "answers with 2 scores for 1 samples"),
    "text": (says(["1.0"]), "answers '1.0' for sample 0 of 1; scores must be numbers"),
    "true": (says([True]), "answers True for sample 0 of 1; scores must be numbers"),
    "no list": (says({"score": 1}), "must answer with a list of numbers, or with one under 'scores'"),
    "too much": ((200, {}, b" " * 2_000_000), "answers with more than 1,000,000 bytes"),
}


@pytest.mark.parametrize(("given", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_for_good_is_one_message_and_asked_once(given: Any, words: str) -> None:
    with serving(lambda number, body: given) as server, pytest.raises(EndpointError, match=words) as raised:
        scored(quickly(server.url, max_bytes=1_000_000), samples_of("a"))
    assert str(raised.value).startswith(server.url)
    assert len(server.bodies) == 1


def test_a_gigabyte_is_not_read() -> None:
    import socket
    import threading

    listening, sent = socket.create_server(("127.0.0.1", 0)), [0]

    def pour() -> None:
        connection, _ = listening.accept()
        with connection, listening:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
                while sent[0] < 2**30:
                    connection.sendall(b" " * 2**20)
                    sent[0] += 2**20
            except OSError:
                return

    threading.Thread(target=pour, daemon=True).start()
    with pytest.raises(EndpointError, match="more than 10,000,000 bytes"):
        scored(quickly(f"http://127.0.0.1:{listening.getsockname()[1]}/", timeout=20.0), samples_of("a"))
    assert sent[0] < 2**28


def test_one_in_twenty_that_is_refused_costs_nothing_but_time() -> None:
    def mostly(number: int, body: Any) -> Any:
        return says("", status=503) if number % 20 == 7 else lengths(number, body)

    responses = [f"{'b' * (i % 5)}{i}" for i in range(120)]
    with serving(mostly) as server:
        assert scored(quickly(server.url, batch_size=1), samples_of(*responses)) == [len(text) for text in responses]
    assert len(server.bodies) > 120


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_an_endpoint_that_fails_for_good_stops_or_is_skipped(on_error: Any, capsys: pytest.CaptureFixture) -> None:
    calling = Calling(on_error=on_error)
    with serving(lambda number, body: says("", status=404)) as server:
        endpoint = quickly(server.url)
        if on_error == "stop":
            with pytest.raises(EndpointError):
                scored(endpoint, samples_of("a"), calling=calling)
        else:
            found = Rewards([endpoint, len_of], None, calling=calling)(samples_of("abc"))
            assert found.scores.tolist() == [3.0]
            assert found.skipped == ("Endpoint",)


def len_of(responses: list[str]) -> list[float]:
    return [float(len(text)) for text in responses]


# --- what was asked before


def test_nothing_is_asked_twice_also_by_another_process(tmp_path: Path) -> None:
    cache = tmp_path / "kept" / "answers.sqlite"
    with serving(lengths) as server:
        first = quickly(server.url, cache=cache)
        assert scored(first, samples_of("ab", "c", "ab")) == [2, 1, 2]
        again = quickly(server.url, cache=cache)
        assert scored(again, samples_of("ab", "c", "ab")) == [2, 1, 2]
        assert scored(again, samples_of("ab", "dddd", "ab")) == [2, 4, 2]
    asked = [text for body in server.bodies for text in body["responses"]]
    # Another prompt stands before the third response.
    assert sorted(asked) == ["ab", "ab", "c", "dddd"]


def test_what_was_answered_before_an_error_is_kept(tmp_path: Path) -> None:
    def soon_down(number: int, body: Any) -> Any:
        return lengths(number, body) if number < 3 else says("", status=404)

    responses = [str(i) * (i + 1) for i in range(6)]
    with serving(soon_down) as server:
        endpoint = quickly(server.url, cache=tmp_path / "c", batch_size=1, concurrency=1)
        with pytest.raises(EndpointError):
            scored(endpoint, samples_of(*responses))
    with serving(lengths) as other:
        endpoint.client.url, before = other.url, endpoint.client.url
        # Answers belong to an address.
        assert scored(endpoint, samples_of(*responses)) == [len(text) for text in responses]
        assert len(other.bodies) == 6
    assert before != other.url


def test_the_users_cache_folder_is_the_default_but_for_servers_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whose address another may answer tomorrow."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one, other = (Endpoint(f"https://host.org/{name}").asked for name in "ab")
    assert one is not None
    assert other is not None
    assert one.path.parent == other.path.parent == tmp_path / "rlhf" / "asked"
    assert one.path != other.path
    assert Endpoint("http://127.0.0.1:8000/").asked is None


def test_answers_without_a_score_are_asked_for_again(tmp_path: Path) -> None:
    def soon(number: int, body: Any) -> Any:
        return says([None] if number == 0 else [2.0])

    with serving(soon) as server:
        endpoint = quickly(server.url, cache=tmp_path / "c")
        for expected in (0.0, 2.0, 2.0):
            assert scored(endpoint, samples_of("a"), allow_none=True) == [expected]
    assert len(server.bodies) == 2


def test_patience_does_not_run_out_while_others_are_asked() -> None:
    def slowly(number: int, body: Any) -> Any:
        time.sleep(0.15)
        return lengths(number, body)

    with serving(slowly) as server:
        endpoint = quickly(server.url, batch_size=1, concurrency=1, patience=0.6)
        assert scored(endpoint, samples_of(*(str(i) for i in range(8)))) == [1.0] * 8


def test_what_is_no_json_is_not_sent() -> None:
    with (
        serving(lengths) as server,
        pytest.raises(InputError, match=r"is to be told is no JSON .* leave such columns out"),
    ):
        scored(quickly(server.url, columns=("when",)), samples_of("a", when=[float("nan")]))
    assert not server.bodies


def test_a_resumed_run_must_find_the_same_judge() -> None:
    def sums(**changes: Any) -> Any:
        judge = Judge("https://host.org", model="m", template="{response}", **changes)
        return rlhf.Prompts(ROWS, judge, max_new_tokens=4).inputs()

    assert sums() == sums()
    assert sums() != sums(pattern=r"Score: (\d)")
    assert sums() != sums(options={"max_tokens": 3})


def test_a_broken_cache_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("no database, and more than a hundred letters" * 10)
    with serving(lengths) as server, pytest.raises(DiskError, match=r"cannot be read .* remove the file"):
        scored(quickly(server.url, cache=tmp_path / "c"), samples_of("a"))


def test_a_run_that_is_resumed_asks_nothing_twice(tmp_path: Path) -> None:
    def train(url: str, updates: int, *, resume: bool = False) -> Any:
        policy = word_policy(dtype=torch.float32)
        policy.tokenizer = word_tokenizer()
        endpoint = Endpoint(url, cache=tmp_path / "answers")
        task = rlhf.Prompts(ROWS, endpoint, max_new_tokens=6, held_out=ROWS, prompts_per_rollout=4)
        rlhf.train(
            policy, task, rlhf.PPO(), rlhf.Optimize(learning_rate=1e-2, epochs=1), updates=updates, evaluations=2,
            checkpoints=2, out=tmp_path / "run", resume=resume,
        )  # fmt: skip

    def samples(body: Any) -> list[str]:
        return [json.dumps(pair) for pair in zip(body["prompts"], body["responses"], strict=True)]

    with serving(lengths) as server:
        train(server.url, 2)
        train(server.url, 4, resume=True)
        asked = [sample for body in server.bodies for sample in samples(body)]
    assert len(asked) == len(set(asked))


# --- addresses


@pytest.mark.parametrize(
    "url", ["https://host.org/score", "http://127.0.0.1:80/x", "http://localhost:8000", "http://[::1]:8000/"]
)
def test_addresses_that_are_safe(url: str) -> None:
    require_url(url)


@pytest.mark.parametrize(
    "url", ["http://host.org/score", "http://10.0.0.3/", "ftp://127.0.0.1/", "host.org", "", "https://", "file:///etc"]
)
def test_addresses_that_would_tell_everybody_are_refused(url: str) -> None:
    with pytest.raises(InputError, match=r"neither https nor on this machine|is no address"):
        Endpoint(url)


def test_a_key_that_is_not_there_is_missed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(InputError, match="the environment variable NO_KEY is not set"):
        Endpoint("https://host.org", key_variable="NO_KEY")


# --- judges


def says_text(text: str) -> Any:
    return says({"choices": [{"message": {"role": "assistant", "content": text}}]})


def judge_of(url: str, **options: Any) -> Judge:
    given = {"template": "Rate {response} to {prompt} ({level}).", "timeout": 1.0, "patience": 2.0, "cache": None}
    return Judge(url, model="m", **{**given, **options})


def test_a_judge_reads_the_question_and_its_last_number_counts() -> None:
    def judge(number: int, body: Any) -> Any:
        question = body["messages"][0]["content"]
        return says_text(f"Of 10 points I give {len(question.split()[1])}.")

    with serving(judge) as server:
        found = Rewards([judge_of(server.url, options={"max_tokens": 5})], None)(
            samples_of("abc", "de", level=["easy", "hard"])
        )
    assert found.scores.tolist() == [3.0, 2.0]
    assert found.extra == {"judge_says": ["Of 10 points I give 3.", "Of 10 points I give 2."]}
    bodies = sorted(server.bodies, key=lambda body: body["messages"][0]["content"])
    assert bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "Rate abc to prompt 0 (easy)."}],
        "temperature": 0,
        "max_tokens": 5,
    }


def test_a_judge_without_a_number_has_no_say() -> None:
    with serving(lambda number, body: says_text("I cannot tell.")) as server:
        judge, samples = judge_of(server.url), samples_of("a", level=[1])
        with pytest.raises(InputError, match="Judge returned None for sample 0"):
            scored(judge, samples)
        assert not Rewards([judge], None, allow_none=True)(samples).valid.any()


def test_a_judge_shows_conversations_as_text() -> None:
    samples = samples_of("yes", level=[1])
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "May I?"}]
    samples.prompts[0] = turns
    with serving(lambda number, body: says_text("7")) as server:
        scored(judge_of(server.url), samples)
    assert "system: Be kind.\n\nuser: May I?" in server.bodies[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"template": "{reply}"}, r"template cannot be filled in \(KeyError: 'reply'\); it may name"),
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": r"\d+"}, "has 0 groups"),
    ],
)
def test_judges_that_cannot_judge_are_refused(options: Any, words: str) -> None:
    with serving(lambda number, body: says_text("7")) as server, pytest.raises(InputError, match=words):
        scored(judge_of(server.url, **options), samples_of("a", level=[1]))


def test_what_is_no_chat_completion_is_one_message() -> None:
    nothing = says({"choices": []})
    with serving(lambda number, body: nothing) as server, pytest.raises(EndpointError, match="no chat completion with"):
        scored(judge_of(server.url), samples_of("a", level=[1]))
