"""Run by test_windows.py: a run after everything is taken away that Python does not have on Windows."""

from __future__ import annotations

import errno
import fcntl
import importlib
import os
import pkgutil
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

# Other packages know Windows; what they imported by now stays theirs.
import accelerate
import datasets  # noqa: F401
import filelock  # noqa: F401
import gymnasium  # noqa: F401
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import psutil
import torch.utils.tensorboard  # noqa: F401
import transformers
import tyro  # noqa: F401

transformers.AutoModelForCausalLM, accelerate.Accelerator  # noqa: B018 (loads what is behind the names)

MODULES = ("resource", "fcntl", "grp", "pwd", "pty", "syslog", "termios", "tty", "readline", "curses")
OF_OS = ("fork", "getuid", "geteuid", "getgid", "killpg", "getpgid", "setsid", "mkfifo", "sync", "uname")
OF_OS += ("O_DIRECTORY", "O_NOFOLLOW", "sched_getaffinity", "wait", "chown", "lchown", "fchmod", "getpriority", "nice")
OF_SIGNAL = ("SIGHUP", "SIGKILL", "SIGALRM", "SIGUSR1", "SIGQUIT", "SIGSTOP", "SIGPIPE", "setitimer", "alarm", "pause")

control, open_file, flush = fcntl.fcntl, os.open, os.fsync


def open_no_folder(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return open_file(path, flags, *arguments, **options)


def flush_what_may_be_written(descriptor: int) -> None:
    if control(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    flush(descriptor)


def main(output: Path) -> None:
    sys.modules.update(dict.fromkeys(MODULES))
    for module, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    os.open, os.fsync = open_no_folder, flush_what_may_be_written
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    import rlhf

    for module in pkgutil.walk_packages(rlhf.__path__, "rlhf."):
        importlib.import_module(module.name)
    for updates in (1, 2):
        envs = rlhf.Envs("CartPole-v1", num_envs=2, steps=8)
        policy = envs.policy()
        rlhf.train(policy, envs, rlhf.PPO(), updates=updates, out=output / "run", resume=updates > 1)
    from rlhf.runs.log import read_lines

    *_, row = read_lines(output / "run" / "ppo" / "metrics.jsonl")
    assert row["update"] == 2, row
    # There is no peak without `resource` here; Windows has one.
    assert 0.0 < row["memory_gib"] <= 1.5 * psutil.Process().memory_info().rss / 2**30, row


if __name__ == "__main__":
    main(Path(sys.argv[1]))
