"""Compares answers line by line: reads [answer, response] as JSON, says true or false, until its input ends or one
takes longer than it may (see answers.py)."""

from __future__ import annotations

import faulthandler
import json
import os
import sys

from math_verify import parse, verify

# A response ends with its answer.
CHARACTERS = 2_000


def judged(answer: str, response: str | None) -> bool:
    found = parse(answer, parsing_timeout=None, fallback_mode="no_fallback")
    if response is None or not found:
        return bool(found)
    given = parse(response[-CHARACTERS:], parsing_timeout=None, fallback_mode="no_fallback")
    return bool(verify(found, given, timeout_seconds=None))


if __name__ == "__main__":
    seconds = float(sys.argv[1])
    print("ready", flush=True)
    with open(os.devnull, "w") as nowhere:
        for line in sys.stdin:
            # Ends this process from without Python, which a power of powers does not return to.
            faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            said = judged(*json.loads(line))
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(said), flush=True)
