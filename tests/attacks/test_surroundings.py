"""The same command in other surroundings: the same bytes; odd consoles, folders and clocks stop nothing."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.attacks import rig

pytestmark = pytest.mark.attack

ROOT = Path(__file__).parents[2]
SECRETS = {
    "HF_TOKEN": "hf_SECRETSECRETSECRET1",
    "WANDB_API_KEY": "wandbSECRET2",
    "AWS_SECRET_ACCESS_KEY": "awsSECRET3",
    "OPENAI_API_KEY": "sk-SECRET4",
    "DATABASE_URL": "postgres://u:SECRET6@h/db",
}
SURROUNDINGS: dict[str, dict[str, Any]] = {
    "PYTHONHASHSEED": {"variables": {"PYTHONHASHSEED": "1"}},
    "zone": {"variables": {"TZ": "Pacific/Apia"}},
    "LC_ALL=C": {"variables": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}},
    "umask 077": {"umask": 0o077},
    "python -O": {"flags": ["-O"]},
    "HOME not writable": {"variables": {"HOME": "/proc/1", "XDG_CACHE_HOME": "/proc/1", "HF_HOME": "/proc/1/x"}},
    "TMPDIR missing": {"variables": {"TMPDIR": "/nonexistent"}},
    "a narrow terminal": {"variables": {"TERM": "dumb", "COLUMNS": "10"}},
    "colours": {"variables": {"FORCE_COLOR": "1", "TERM": "xterm-256color"}},
    "secrets": {"variables": SECRETS},
}


@pytest.fixture(scope="module")
def whole(jobs: dict[str, rig.Job], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert real(jobs["cartpole"], folder) == 0
    return folder


def real(
    job: rig.Job,
    folder: Path,
    *,
    variables: Mapping[str, str] | None = None,
    flags: list[str] | None = None,
    umask: int = -1,
    stdout: Any = None,
    stderr: Any = None,
) -> int:
    """A process of its own, as a user would start it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | dict(variables or {})
    command = [sys.executable, *(flags or []), str(rig.RECIPES / job.recipe), *job.arguments, "--output-dir", "run"]
    with (folder / "log").open("ab") as log:
        done = subprocess.run(
            command, cwd=folder, env=environment, umask=umask, stdin=subprocess.DEVNULL, stdout=stdout or log,
            stderr=stderr or log, timeout=200, check=False,
        )  # fmt: skip
    return done.returncode


def tell(tally: rig.Tally, name: str, status: int, folder: Path, whole: Path) -> None:
    changed = rig.differences(folder / "run", whole / "run") if status == 0 else ["did not end"]
    log = (folder / "log").read_text(errors="replace")
    report = (folder / "run" / "report.html").exists()
    good = not changed and report and "Traceback" not in log
    tally.add("the same" if good else "other", good=good, what=(name, status, changed[:4], report, log[-300:]))


def test_surroundings_change_nothing(jobs: dict[str, rig.Job], whole: Path, tmp_path: Path) -> None:
    tally = rig.Tally("surroundings of a process")
    for name, options in SURROUNDINGS.items():
        here = rig.fresh(tmp_path / "here")
        tell(tally, name, real(jobs["cartpole"], here, **options), here, whole)
        for path in (here / "run").rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            asked = (0o777 if path.is_dir() else 0o666) & ~options.get("umask", 0o022)
            tally.add(
                "mode of the umask" if mode == asked else "other mode", good=mode == asked, what=(path, oct(mode))
            )
            held = path.is_file() and any(secret.encode() in path.read_bytes() for secret in SECRETS.values())
            assert not held, f"{path} holds a secret"
    tally.require_all_good()


def test_consoles_stop_nothing(jobs: dict[str, rig.Job], whole: Path, tmp_path: Path) -> None:
    tally = rig.Tally("consoles")
    cartpole = jobs["cartpole"]
    with open("/dev/full", "w") as full:
        for name, options in (
            ("full stdout", {"stdout": full}),
            ("full stderr", {"stderr": full}),
            ("ascii", {"variables": {"PYTHONIOENCODING": "ascii"}}),
            ("cp1252", {"variables": {"PYTHONIOENCODING": "cp1252"}}),
        ):
            here = rig.fresh(tmp_path / "here")
            tell(tally, name, real(cartpole, here, **options), here, whole)  # type: ignore[arg-type]
    command = " ".join([sys.executable, str(rig.RECIPES / cartpole.recipe), *cartpole.arguments, "--output-dir", "run"])
    for name, line in (
        ("| head -1", f"{command} 2>log | head -1 > head; exit ${{PIPESTATUS[0]}}"),
        ("stdout and stdin closed", f"{command} >&- 2>log <&-"),
        ("stderr closed", f"{command} >log 2>&-"),
    ):
        here = rig.fresh(tmp_path / "here")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", line], cwd=here, env=environment, check=False)
        tell(tally, name, done.returncode, here, whole)
    tally.require_all_good()


def test_odd_texts_do_not_reach_the_console(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    tally = rig.Tally("control characters and markup in prompts and names")
    odd = (
        "a \x1b]0;PWNED\x07 \x1b[31m \x1b[2J [bold]x[/bold] [/nonsense]",
        "a привет 中文",
        "a <script>alert(1)</script>",
    )
    name = "r[bold]\\x1b[2J[/nonsense]<script>"
    for text in odd:
        here = rig.fresh(tmp_path / "here")
        (here / "p.jsonl").write_text("".join(json.dumps({"prompt": f"{text} {i}"}) + "\n" for i in range(16)))
        body = f"def f(completions, **_):\n    return [float(len(c)) for c in completions]\nf.__name__ = '{name}'\n"
        (here / "mine.py").write_text(body)
        job = jobs["lm"].with_options("--data", "p.jsonl", "--reward", "mine.py:f")
        done = rig.attempt(job, here, resume=False, report=True)
        page = (here / "run" / "report.html").read_text() if done.status == 0 else "<script"
        good = done.status in (0, 2) and "\x1b" not in done.log and "\x07" not in done.log and not done.traceback
        shown = done.status == 2 or "<script>alert" not in page
        tally.add("harmless" if good and shown else "not", good=good and shown, what=(text, done.status, done.last))
    tally.require_all_good()


@pytest.mark.parametrize("name", ["with space", "ünï cödé 日本", "a'b\"c", "per%cent", "{brace}", "[bold]", "x" * 200])
def test_odd_folders_change_nothing(name: str, jobs: dict[str, rig.Job], whole: Path, tmp_path: Path) -> None:
    done = rig.attempt(jobs["cartpole"].with_options(), rig.fresh(tmp_path / name), report=True)
    assert done.status == 0, done.log
    assert not rig.differences(tmp_path / name / "run", whole / "run")
