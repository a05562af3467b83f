"""SIGTERM reaches what waits, and leaves alone what comes back by itself."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import threading
import time

import pytest
from accelerate import Accelerator

from rlhf.runs import waiting
from rlhf.runs.stop import Stopped, StopSignals
from rlhf.runs.waiting import Waiting


def sleeps() -> None:
    time.sleep(30)


def asks_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.recv(1)


def catches_every_exception_and_tries_again() -> None:
    while True:
        try:
            time.sleep(30)
        except Exception:
            continue


def waits_for_a_pool() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 0.9).result()


def makes_another_error_of_it() -> None:
    try:
        time.sleep(30)
    finally:
        raise ValueError("mine")


@pytest.fixture
def patient(monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE", 0.1)
    # In this process nothing may end from outside.
    monkeypatch.setattr(waiting, "END", 60.0)


def sigterm_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM)).start()


@pytest.mark.parametrize(
    "work",
    [
        sleeps,
        asks_a_server_that_does_not_answer,
        catches_every_exception_and_tries_again,
        waits_for_a_pool,
        makes_another_error_of_it,
    ],
)
def test_sigterm_reaches_what_waits(work, patient):
    with StopSignals(Accelerator(cpu=True)):
        sigterm_after(0.05)
        start = time.monotonic()
        with pytest.raises(Stopped, match="--resume continues from the last checkpoint") as stopped, Waiting():
            work()
        # On a machine that is not busy, 0.3.
        assert time.monotonic() - start < 0.85
        assert stopped.value.status == 143


def test_sigterm_before_the_wait_reaches_it_too(patient):
    with StopSignals(Accelerator(cpu=True)):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped), Waiting():
            sleeps()


def test_what_comes_back_in_time_is_not_interrupted():
    with StopSignals(Accelerator(cpu=True)) as signals:
        with Waiting():
            sigterm_after(0.02)
            time.sleep(0.1)
        assert signals.requested()


def test_signals_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGURG), signal.set_wakeup_fd(-1)
    with Waiting() as wait, wait.limit(5.0, "nothing"):
        pass
    assert (signal.getsignal(signal.SIGURG), signal.set_wakeup_fd(-1)) == before
