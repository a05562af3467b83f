"""Run by test_pulse.py as each of two processes, of which one comes to harm: HARM RANK."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

import torch
from accelerate import Accelerator

from rlhf.errors import AnotherEnded
from rlhf.runs.pulse import AFTER_WORD, BEAT, pulse
from rlhf.runs.ranks import leave_word, on_main


def harm(kind: str) -> None:
    if kind == "raises":
        raise LookupError("no such thing")
    if kind == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stands still":
        time.sleep(60)


def main() -> None:
    kind, rank = sys.argv[1], int(sys.argv[2])
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    try:
        if kind == "has failed before":
            with suppress(ValueError), pulse(accelerator, saved=True):
                leave_word(signal.SIGTERM)
                raise ValueError("of an earlier run")
            time.sleep(AFTER_WORD)
        with pulse(accelerator, saved=True) as life:
            life.at("the middle")
            # Until both have heard of each other.
            time.sleep(3 * BEAT)
            if accelerator.process_index == rank:
                harm(kind)
            accelerator.gather(torch.ones(1))
            if kind == "hangs in what it does for all":
                on_main(accelerator, lambda: time.sleep(60))
            if kind == "has failed before":
                time.sleep(AFTER_WORD + 2 * BEAT)
        print("came to the end", flush=True)
    except AnotherEnded:
        print("ended with the other", flush=True)
        os._exit(1)
    except LookupError:
        print("raised", flush=True)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
