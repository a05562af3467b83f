"""From the command line to a recipe's `main`, and from its errors to an exit status."""

from __future__ import annotations

import atexit
import inspect
import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar, cast

import torch
import tyro

from rlhf.errors import InputError
from rlhf.rollout import NonFiniteError
from rlhf.runs.stop import Stopped

C = TypeVar("C")


def launch(main: Callable[[C], object], config: type[C], *, default: Callable[[], C] | None = None) -> NoReturn:
    """Parses the command line into `config` and runs `main` with it; the docstring of main's file is the help.

    The exit status is 0; 1 with a traceback if user code raised; 2 for bad input; 3 if a number was not finite;
    143 or 130 if SIGTERM or Ctrl-C stopped it.

    Args:
        default: Gives the values for what the command line leaves out, if not the defaults of `config`.
    """
    first = os.environ.get("RANK", "0") == "0"
    description = inspect.getdoc(inspect.getmodule(main))

    def parse_and_run() -> None:
        given = None if default is None else default()
        main(cast(C, tyro.cli(config, default=given, description=description, console_outputs=first)))

    leave(_run(parse_and_run))


def leave(status: int) -> NoReturn:
    """Ends the process with this exit status; one of several does so without taking its Python down.

    A thread of gloo frees what the last collective held a little after that has returned, and needs the interpreter's
    lock to do so; if the interpreter is being taken down by then, the thread aborts the process (status 134).
    """
    if not torch.distributed.is_initialized():
        sys.exit(status)
    # Ranks that failed alone must not wait for the others here.
    if status == 0:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(main: Callable[[], object]) -> int:
    try:
        main()
    except InputError as error:
        return _say(f"error: {error}", 2)
    except NonFiniteError as error:
        return _say(f"training stopped: {error} The last good checkpoint is kept.", 3)
    except Stopped as stopped:
        return _say(f"{stopped}; --resume continues from here.", stopped.status)
    except KeyboardInterrupt:
        return _say("interrupted; --resume continues from the last checkpoint.", 130)
    return 0


def _say(message: str, status: int) -> int:
    """Prints on every rank, since one may fail alone; which one it was is said on all but the first."""
    rank = os.environ.get("RANK", "0")
    print(message if rank == "0" else f"[rank {rank}] {message}", file=sys.stderr, flush=True)
    return status
