"""Models, chat templates and run folders that mean harm: nothing of theirs is executed, nothing of others is lost."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.attacks import rig

pytestmark = pytest.mark.attack

# What a payload writes if it is executed.
CANARY = Path(f"/tmp/canary-{os.getpid()}")
PAYLOAD = f"open({str(CANARY)!r}, 'a').write('executed by ' + __file__)\n"
NEWEST = "checkpoints/00000004"


class Bomb:
    """Writes the canary when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, (f"open({str(CANARY)!r}, 'a').write('pickle')",))


def bomb() -> bytes:
    return pickle.dumps(Bomb())


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))


def with_code(folder: Path, base: str) -> None:
    """Code of the model's own."""
    (folder / "configuration_x.py").write_text(f"{PAYLOAD}from transformers import {base} as XConfig\n")
    (folder / "modeling_x.py").write_text(f"{PAYLOAD}from transformers import GPT2LMHeadModel as XModel\n")
    edit(
        folder / "config.json",
        model_type="x",
        auto_map={"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XModel"},
    )


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", **changes)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(bomb())


def torch_pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Bomb()}, folder / "pytorch_model.bin")


def pickles_beside(folder: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(bomb())


def index_to_a_pickle(folder: Path) -> None:
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    (folder / "x.bin").write_bytes(bomb())
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "x.bin")})
    )


def own_tokenizer(folder: Path) -> None:
    (folder / "tokenization_x.py").write_text(f"{PAYLOAD}from transformers import PreTrainedTokenizerFast as XTok\n")
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="XTok",
        auto_map={"AutoTokenizer": ["tokenization_x.XTok"] * 2},
    )


def own_generate(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"{PAYLOAD}def generate(*a, **k): pass\n")


def half_the_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(dict(list(weights.items())[::2]), folder / "model.safetensors", {"format": "pt"})


def weights_of_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: w * float("nan") for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def linked_to_zeros(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")


def _claiming(shape: list[int], size: int) -> bytes:
    header = json.dumps(
        {"transformer.wte.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header


MODELS: dict[str, Callable[[Path], None]] = {
    "code of its own": lambda folder: with_code(folder, "PretrainedConfig"),
    "code in place of ours": lambda folder: with_code(folder, "GPT2Config"),
    "trust_remote_code in its config": configured(trust_remote_code=True, auto_map={"AutoConfig": "evil/repo--x.X"}),
    "tokenizer with code": own_tokenizer,
    "tokenizer class os.system": lambda folder: edit(folder / "tokenizer_config.json", tokenizer_class="os.system"),
    "generate of its own": own_generate,
    "pickled weights": pickled,
    "pickled weights of torch": torch_pickled,
    "pickles beside safetensors": pickles_beside,
    "safetensors that is a pickle": replaced("model.safetensors", bomb()),
    "safetensors with a header of 2**60": replaced("model.safetensors", struct.pack("<Q", 2**60) + b"{}"),
    "safetensors of 10**18 numbers": replaced("model.safetensors", _claiming([10**9, 10**9], 4 * 10**18)),
    "index that points to a pickle": index_to_a_pickle,
    "attention from elsewhere": configured(_attn_implementation="evil/kernel"),
    "dtype os.system": configured(dtype="os.system"),
    "quantised": configured(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "quantised by nobody": configured(quantization_config={"quant_method": "evil", "modules": ["os"]}),
    "10**9 wide": configured(n_embd=10**9),
    "10**7 layers": configured(n_layer=10**7),
    "negative context": configured(n_positions=-5),
    "context a text": configured(n_positions="64"),
    "end out of the vocabulary": configured(eos_token_id=10**6),
    "config deep": replaced("config.json", b"[" * 100_000),
    "config a list": replaced("config.json", b"[1]"),
    "config cut": replaced("config.json", b"{"),
    "config of noise": replaced("config.json", bytes(range(256)) * 2),
    "config linked to /dev/zero": linked_to_zeros,
    "tokenizer of noise": replaced("tokenizer.json", bytes(range(256)) * 2),
    "tokenizer deep": replaced("tokenizer.json", b"[" * 100_000),
    "weights of another shape": configured(n_embd=64),
    "half the weights": half_the_weights,
    "weights NaN": weights_of_nan,
}
_LOOP = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
TEMPLATES = {
    "good": _LOOP + "{% if add_generation_prompt %}assistant: {% endif %}",
    "syntax error": "{% for m in %}",
    "undefined": "{{ nothing.at.all }}",
    "raises": "{{ raise_exception('no') }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch " + str(CANARY) + "').read() }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('touch " + str(CANARY) + "').read() }}",
    "attribute filter": "{{ ''|attr('__class__') }}",
    "10**9 turns": "{% for i in range(10**9) %}a{% endfor %}",
    "10**10 turns, nested": "{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}",
    "10**10 letters": "{{ 'a' * 10**10 }}",
    "a tower of powers": "{{ 9 ** 9 ** 9 }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "include": "{% include '/etc/passwd' %}",
    "empty": "{{ '' }}",
    "division by zero": "{{ 1 / 0 }}",
    "type error": "{{ messages + 1 }}",
}


@pytest.fixture(autouse=True)
def _canary() -> Iterator[None]:
    CANARY.unlink(missing_ok=True)
    yield
    assert not CANARY.exists(), CANARY.read_text()


def _limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))


def judge(done: rig.Attempt, folder: Path, tally: rig.Tally, *, what: str, lost: bool = False) -> None:
    refused = done.status == 2 and not done.traceback
    good = (refused or done.status == 0) and not lost and not CANARY.exists()
    outcome = "executed" if CANARY.exists() else "lost" if lost else "refused" if refused else f"status {done.status}"
    tally.add("ran harmlessly" if done.status == 0 else outcome, good=good, what=(what, done.status, done.last[:200]))


def test_a_malicious_model_does_nothing(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, tally = jobs["lm"].with_options("--improve.train.updates", "1"), rig.Tally("malicious models")
    good = Path(job.arguments[1])
    for name, change in MODELS.items():
        model = tmp_path / "model"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(good, model)
        change(model)
        here = rig.fresh(tmp_path / "here")
        done = rig.attempt(job.with_options("--model", str(model)), here, resume=False, seconds=40, before=_limited)
        judge(done, here, tally, what=name)
        assert done.status == 0 or not (here / "run").exists(), f"{name} was refused and left a folder"
    tally.require_all_good()


def test_a_malicious_template_does_nothing(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, tally = jobs["lm"].with_options("--improve.train.updates", "1"), rig.Tally("malicious templates")
    rows = [{"prompt": [{"role": "user", "content": word}]} for word in "abcdefgabcdefg"]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, template in TEMPLATES.items():
        model = tmp_path / "model"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(Path(job.arguments[1]), model)
        (model / "chat_template.jinja").unlink(missing_ok=True)
        edit(model / "tokenizer_config.json", chat_template=template)
        changed = job.with_options("--model", str(model), "--data", str(tmp_path / "chat.jsonl"))
        here = rig.fresh(tmp_path / "here")
        judge(rig.attempt(changed, here, resume=False, seconds=20, before=_limited), here, tally, what=name)
    tally.require_all_good()


def vouched(folder: Path, **more: dict[str, Any]) -> None:
    """A manifest for what is there now, as an attacker would write it."""
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": files | more}))


def in_checkpoint(name: str, content: bytes) -> Callable[[Path, Path], None]:
    def change(phase: Path, secret: Path) -> None:
        (phase / NEWEST / name).write_bytes(content)
        vouched(phase / NEWEST)

    return change


def model_in_checkpoint(change: Callable[[Path], None]) -> Callable[[Path, Path], None]:
    def changed(phase: Path, secret: Path) -> None:
        change(phase / NEWEST / "policy" / "model")
        vouched(phase / NEWEST)

    return changed


def vouching(**more: dict[str, Any]) -> Callable[[Path, Path], None]:
    return lambda phase, secret: vouched(phase / NEWEST, **more)


def linked(name: str, to: str) -> Callable[[Path, Path], None]:
    """A link in place of what is there; `to` is in the folder of others' things, or absolute."""

    def change(phase: Path, secret: Path) -> None:
        path = phase / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(to if to.startswith("/") else secret / to)

    return change


def piped(phase: Path, secret: Path) -> None:
    (phase / NEWEST / "state.json").unlink()
    os.mkfifo(phase / NEWEST / "state.json")


def folder_among(name: str) -> Callable[[Path, Path], None]:
    return lambda phase, secret: (phase / "checkpoints" / name).mkdir()


CHECKPOINTS: dict[str, Callable[[Path, Path], None]] = {
    "pickled weights": model_in_checkpoint(pickled),
    "pickled weights of torch": model_in_checkpoint(torch_pickled),
    "code of its own": model_in_checkpoint(lambda folder: with_code(folder, "GPT2Config")),
    "manifest names a file above": vouching(**{"../../../../../../etc/passwd": {"size": 3, "sha256": "0" * 64}}),
    "manifest names a file elsewhere": vouching(**{"/etc/hostname": {"size": 3, "sha256": "0" * 64}}),
    "state linked to /dev/zero": linked(f"{NEWEST}/state.json", "/dev/zero"),
    "state a pipe": piped,
    "state deep": in_checkpoint("state.json", b"[" * 100_000 + b"]" * 100_000),
    "state a list": in_checkpoint("state.json", b"[1, 2]"),
    "state of an unknown kind": in_checkpoint("state.json", b'{"evil": 1}'),
    "state an array of objects": in_checkpoint("state.json", b'{"array": ["0 x", "|O", [1]]}'),
    "state empty": in_checkpoint("state.json", b""),
    "tensors of 10**18 numbers": in_checkpoint("state.safetensors", _claiming([10**9, 10**9], 4 * 10**18)),
    "tensors that are a pickle": in_checkpoint("state.safetensors", bomb()),
    "offsets negative": in_checkpoint("run/offsets.json", b'{"metrics.jsonl": -5, "samples.jsonl": -5}'),
    "offsets a text": in_checkpoint("run/offsets.json", b'{"metrics.jsonl": "x"}'),
    "a leftover linked to others' things": linked("checkpoints/.tmp-x", "."),
    "an old checkpoint linked to others' things": linked("checkpoints/00000003", "."),
    "metrics linked to others' things": linked("metrics.jsonl", "thesis.txt"),
    "final linked to others' things": linked("final", "."),
    "a folder 99999999": folder_among("99999999"),
    "a folder named by an Arabic digit": folder_among("٣"),
    "a folder named by a superscript": folder_among("²"),
    "a folder named by 200 nines": folder_among("9" * 200),
}


def test_a_malicious_run_folder_does_nothing(jobs: dict[str, rig.Job], tmp_path: Path) -> None:
    job, tally, secret = jobs["lm"], rig.Tally("malicious run folders"), tmp_path / "others"
    source = tmp_path / "killed"
    pid = rig.start(job, source)
    rig.wait_for(source / "run" / "ppo" / NEWEST, pid)
    rig.kill(pid)
    rig.wait(pid, rig.SECONDS)
    for name, change in CHECKPOINTS.items():
        here = rig.fresh(tmp_path / "here")
        rig.fresh(secret)
        (secret / "thesis.txt").write_text("all my work")
        shutil.copytree(source / "run", here / "run", symlinks=True)
        change(here / "run" / "ppo", secret)
        done = rig.attempt(job, here, resume=True, seconds=40, before=_limited)
        lost = not (secret / "thesis.txt").exists() or (secret / "thesis.txt").read_text() != "all my work"
        judge(done, here, tally, what=name, lost=lost)
    tally.require_all_good()
