from __future__ import annotations

import os
import signal
import threading

import pytest
from accelerate import Accelerator

from rlhf.runs.stop import Stopped, StopSignals


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_a_question_until_the_loop_asks(accelerator, number, status):
    with StopSignals(accelerator) as signals:
        assert not signals.requested()
        os.kill(os.getpid(), number)
        assert signals.requested()
        with pytest.raises(Stopped) as stopped:
            signals.stop()
    assert stopped.value.status == status


def test_a_second_interrupt_raises_at_once(accelerator):
    with StopSignals(accelerator):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_after_sigterm_is_the_first_one(accelerator):
    with StopSignals(accelerator) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.requested()


def test_handlers_are_put_back(accelerator):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals(accelerator):
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_signals_may_be_entered_outside_the_main_thread(accelerator):
    answers = []

    def work() -> None:
        with StopSignals(accelerator) as signals:
            answers.append(signals.requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False]
