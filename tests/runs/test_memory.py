"""The most memory that a process has had."""

from __future__ import annotations

import sys

import psutil
import pytest

from rlhf.runs import memory
from rlhf.runs.memory import peak_memory


def test_a_peak_holds_what_was_freed_since():
    before, size = psutil.Process().memory_info().rss, 2**26
    held = b"x" * size
    del held
    assert peak_memory() >= before + 0.9 * size


@pytest.mark.skipif(memory.resource is None, reason="the system counts in bytes")
def test_a_peak_is_in_bytes_though_linux_counts_in_kib_and_macos_in_bytes(monkeypatch):
    counted = memory.resource.getrusage(memory.resource.RUSAGE_SELF)
    monkeypatch.setattr(memory.resource, "getrusage", lambda who: counted)
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_memory() == 1024 * counted.ru_maxrss
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory() == counted.ru_maxrss


def test_windows_tells_its_own_peak(monkeypatch):
    monkeypatch.setattr(memory, "resource", None)

    class Told:
        rss, peak_wset = 5, 7

    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: Told)
    assert peak_memory() == 7
