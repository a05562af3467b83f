"""From the command line to a recipe's `main`, and from its errors to an exit status."""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import tyro

from rlhf.deferred import deferred, settle
from rlhf.errors import AnotherEnded, DiskError, EndpointError, InputError, NonFiniteError, memory_ended, no_exit
from rlhf.parallel import require_environment
from rlhf.runs.console import lenient_streams, visible
from rlhf.runs.stop import Stopped

with deferred():
    import torch

    from rlhf.runs.processes import end_at_once
    from rlhf.runs.ranks import left_alone


C = TypeVar("C")
_end = os._exit

SIZES = (
    *("micro_batch_cost", "max_new_tokens", "prompts_per_rollout", "responses_per_prompt", "prompts", "responses"),
    *("rows_per_update", "num_envs", "steps", "episodes", "capacity", "batch_size", "hidden_size", "hidden_sizes"),
    *("vocabulary", "num_seeds"),
)


def launch(
    main: Callable[[C], object],
    config: type[C],
    *,
    default: Callable[..., C] | None = None,
    picks: Mapping[str, str] | None = None,
) -> NoReturn:
    """Parses the command line into `config` and runs `main` with it; the docstring of main's file is the help.

    The exit status is 0; 1 with a traceback if user code raised; 2 for bad input; 3 if a number was not finite;
    4 if the disk under the run's folder refused; 143 or 130 if SIGTERM or Ctrl-C stopped it.

    Args:
        default: Gives the values for what the command line leaves out, if not the defaults of `config`. Its parameters,
            strings with defaults, are options: `method` is `--method NAME`, after which the settings of that method
            are offered. Those that are fields of `config` as well stay so.
        picks: What the help says of these parameters.
    """
    first = os.environ.get("RANK", "0") == "0"
    lines = [f"--{name.replace('_', '-')} NAME: {text}" for name, text in (picks or {}).items()]
    description = "\n\n".join([inspect.getdoc(inspect.getmodule(main)) or "", *lines])

    def parse_and_run() -> None:
        require_environment()
        given, arguments = (None, sys.argv[1:]) if default is None else _picked(default, config)
        parsed = tyro.cli(config, args=arguments, default=given, description=description, console_outputs=first)
        settle()
        try:
            with no_exit("code of the run"), _no_silent_end():
                main(cast(C, parsed))
        except (MemoryError, RuntimeError, ValueError) as error:
            if not memory_ended(error):
                raise
            said = str(error).strip().splitlines()[0] if str(error) else "MemoryError"
            raise InputError(
                f"memory ended in {_place(error)} ({said}). Lower what is held at once: "
                f"{', '.join(_sizes(parsed)) or 'the sizes'}."
            ) from None

    with lenient_streams():
        leave(_run(parse_and_run))


def _picked(default: Callable[..., C], config: type[C]) -> tuple[C, list[str]]:
    """The defaults for what the command line picks, and what else it says."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parameters = inspect.signature(default).parameters.values()
    for parameter in parameters:
        parser.add_argument(f"--{parameter.name.replace('_', '-')}", f"--{parameter.name}", default=parameter.default)
    picked, rest = parser.parse_known_args(sys.argv[1:])
    chosen = vars(picked)
    plain = {field.name for field in dataclasses.fields(config) if field.type in (str, "str")}  # type: ignore[arg-type]
    for name in plain & chosen.keys():
        rest += [f"--{name.replace('_', '-')}", chosen[name]]
    return default(**chosen), rest


def _place(error: Exception) -> str:
    """The file and line that asked for it, which may be a reward's: where code of ours or the user's was last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in Path(frame.filename).parts] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _sizes(config: Any, prefix: str = "") -> list[str]:
    """The options of a configuration that memory grows with; first those that change no result."""
    found = []
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            found += _sizes(value, f"{name}.")
        elif field.name in SIZES:
            found.append(f"--{name.replace('_', '-')}")
    return sorted(found, key=lambda option: SIZES.index(option.lstrip("-").rpartition(".")[2].replace("-", "_")))


def leave(status: int) -> NoReturn:
    """Ends the process with this exit status; one of several does so without taking its Python down.

    A thread of gloo frees what the last collective held a little after that has returned, and needs the interpreter's
    lock to do so; if the interpreter is being taken down by then, the thread aborts the process (status 134). So does
    one that was stopped while threads of user code wait for an endpoint: Python would wait for them.
    """
    if not _one_of_several() and not (status and _threads_of_others()):
        sys.exit(status)
    # Ranks that failed alone must not wait for the others here.
    if status == 0:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    _leave_at_once(status)


def _one_of_several() -> bool:
    return "torch" in sys.modules and torch.distributed.is_initialized()


def _leave_at_once(status: int) -> NoReturn:
    """Ends the process without taking its Python down, and without waiting for others."""
    if _one_of_several():
        end_at_once()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    _end(status)


def _threads_of_others() -> list[threading.Thread]:
    """For which Python waits before it ends: workers of a pool that a reward made, say."""
    own = threading.main_thread()
    return [thread for thread in threading.enumerate() if thread is not own and not thread.daemon]


@contextmanager
def _no_silent_end() -> Iterator[None]:
    """Inside, `os._exit(0)` in user code, which no handler hears of, ends with status 1 and says where it was called.

    Forked processes may end as they like.
    """
    process = os.getpid()

    def end(status: int) -> NoReturn:
        if os.getpid() == process and status == 0:
            traceback.print_stack()
            status = _say("error: code of the run called os._exit(0), which no run does.", 1)
        _end(status)

    os._exit = end
    try:
        yield
    finally:
        os._exit = _end


def _run(main: Callable[[], object]) -> int:
    try:
        main()
    except InputError as error:
        return _say(f"error: {error}", 2)
    except DiskError as error:
        return _say(f"error: {error}", 4)
    except NonFiniteError as error:
        return _say(f"training stopped: {error} The last good checkpoint is kept.", 3)
    except Stopped as stopped:
        _say(str(stopped), stopped.status)
        if not stopped.saved:
            # Who waits for the end has waited for a reward already, and Python takes seconds to take all this down.
            _leave_at_once(stopped.status)
        return stopped.status
    except KeyboardInterrupt as interrupt:
        return _say(str(interrupt) or "interrupted; --resume continues from the last checkpoint.", 130)
    except EndpointError as error:
        return _say(f"error: {error} When it answers again, --resume continues from the last checkpoint.", 1)
    except AnotherEnded:
        return 1
    except Exception as error:
        if left_alone(error):
            return _say("error: another process of this run has ended, which says why; this one ends with it.", 1)
        if not (_threads_of_others() or _one_of_several()):
            raise
        traceback.print_exc()
        return 1
    return 0


def _say(message: str, status: int) -> int:
    """Prints on every rank, since one may fail alone; which one it was is said on all but the first."""
    rank = os.environ.get("RANK", "0")
    message = visible(message if rank == "0" else f"[rank {rank}] {message}")
    print(message, file=sys.stderr, flush=True)
    return status
