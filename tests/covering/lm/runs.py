"""Tiny runs of the package's front door, each with its own combination of mechanisms.

torchrun tests/covering/lm/runs.py FOLDER CASES MODELS    # the cases of a file by several processes, one by one
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import rlhf
from rlhf.lm.model import trunk_of
from rlhf.runs.launch import leave
from rlhf.runs.log import read_lines
from tests.covering.cases import Case
from tests.covering.laws import Interruptible, copied, optimize_of, quickly
from tests.covering.lm.mechanisms import METHODS
from tests.lm.engines import Cacheless
from tests.lm.words import TEMPLATE, WORDS, word_tokenizer

UPDATES = 2
MAX_NEW_TOKENS = 5
# Of what is decoded at a time, where the case asks for it.
TOKEN_BUDGET = 30
# Some are much longer than others, so that padding counts.
TEXTS = ["a", "a b c d e f g a", "c d", "b", "e f g a b c d e f g", "c"]
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "packed": ("llama", {**_SIZES, "intermediate_size": 24, "tie_word_embeddings": True}),
    "padded": ("opt", {**_SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16, "do_layer_norm_before": True}),
    "capped head": ("gemma2", {**_SIZES, "intermediate_size": 24, "head_dim": 8, "num_key_value_heads": 1,
                               "final_logit_softcapping": 3.0, "sliding_window": 6}),
    "experts": ("mixtral", {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "num_local_experts": 3}),
}  # fmt: skip
# Some to be scored: their places in rows of tokens.
ACTIONS = {
    "tokens": torch.tensor([[5, 6, 7, 8, 9], [6, 5, 9, 0, 0]]),
    "lengths": torch.tensor([5, 3]),
    "actions": torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]]),
}
BUDGETS = {"all": 100_000, "some": 40, "one row": 1}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bf16": torch.float32}
COLLECTING: dict[str, dict[str, Any]] = {
    "normalised": {"normalise_scores": True},
    "clipped": {"score_clip": 3.0},
    "penalised": {"missing_eos_penalty": 0.5},
    "some missing": {"allow_none": True},
    "drawn again": {"draw_again": 1, "overlong_tokens": 3},
}


class Outcome(NamedTuple):
    """What a run came to."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    frozen: tuple[list[Tensor], list[Tensor]]
    """What must not learn, before and after: weights that are not trained, and the reference's."""
    said: tuple[Tensor, Tensor | None]
    """What the policy said of some actions before, and what its reference says of them afterwards."""
    rows: list[dict[str, Any]]
    """Metrics of the updates and evaluations."""
    passes: list[tuple[int, int, bool]]
    """Of each forward pass of the trunk: rows, tokens of each, whether it decodes."""


class Questions(Interruptible, rlhf.Prompts):
    pass


class Talks(Interruptible, rlhf.Conversations):
    pass


class Listener:
    """Has something to say to every turn, and pays for it."""

    def reset(self, prompt: Any) -> Any:
        return prompt

    def step(self, message: Any) -> Any:
        words = message["content"].split()
        return [{"role": "user", "content": " ".join(words[::-1]) or "a"}], 0.1 * len(words), False


def sum_of_tokens(completion_ids: list[list[int]]) -> list[float]:
    return [0.1 * sum(ids) for ids in completion_ids]


def each_token(completion_ids: list[list[int]]) -> list[list[float]]:
    return [[0.1 * token for token in ids] for ids in completion_ids]


def none_for_some(completion_ids: list[list[int]], number: list[int]) -> list[float | None]:
    return [None if each == 1 else 0.1 * sum(ids) for ids, each in zip(completion_ids, number, strict=True)]


def alike(completion_ids: list[list[int]]) -> list[float]:
    return [1.0 for _ in completion_ids]


REWARDS = {"one a token": each_token, "some missing": none_for_some}


def model_folder(models: Path, model: str, vocabulary: str, adapter: str) -> Path:
    """Writes a random model, or a random adapter on one, unless it is there."""
    folder = models / " ".join([model, vocabulary, *([] if adapter in ("none", "lora") else [adapter])])
    if folder.is_dir():
        return folder
    if adapter in ("none", "lora"):
        return _write_model(folder, *_MODELS[model], len(WORDS) + 3 * (vocabulary == "padded"))
    base = model_folder(models, model, vocabulary, "none")
    kinds: dict[str, dict[str, Any]] = {
        "trained lora": {"init_lora_weights": False},
        "dora": {"use_dora": True},
        "lora with biases": {"bias": "all"},
        "lora with a module": {"modules_to_save": ["embed_tokens"]},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"], **kinds[adapter])
        )
        made.save_pretrained(str(folder))
    return folder


def _write_model(folder: Path, architecture: str, sizes: dict[str, Any], vocabulary: int) -> Path:
    config = AutoConfig.for_model(
        architecture, **sizes, vocab_size=vocabulary, bos_token_id=1, eos_token_id=0, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder)
    return folder


def policy_of(case: Case, models: Path) -> Any:
    policy = rlhf.load_policy(
        str(model_folder(models, case["model"], case["vocabulary"], case["adapter"])),
        temperature=float(case["temperature"]),
        critic=case["critic"],
        lora_rank=2 if case["adapter"] == "lora" else 0,
        gradient_checkpointing=case["checkpointing"] == "on",
        reference_dtype="bfloat16" if case["reference"] == "bfloat16" else "float32",
    )
    return policy.to(DTYPES[case["precision"]])


def task_of(case: Case, reward: Any = None) -> Any:
    rows = [
        {"prompt": text if case["prompts"] == "text" else [{"role": "user", "content": text}], "number": number}
        for number, text in enumerate(TEXTS)
    ]
    paid = reward or REWARDS.get(case["scores"], sum_of_tokens)
    several = case["turns"] == "several"
    task: Any = (partial(Talks, environment=Listener, max_turns=2) if several else Questions)(
        rows,
        reward=paid,
        max_new_tokens=MAX_NEW_TOKENS,
        held_out=2,
        prompts_per_rollout=4,
        responses_per_prompt=int(case["group"]),
        lag=int(case["lag"]),
        engine=Cacheless() if case["responses"] == "another engine" else None,
        **COLLECTING.get(case["scores"], {}),
    )
    if case["responses"] == "chunked":
        task.sampling = replace(task.sampling, token_budget=TOKEN_BUDGET)
    return task


def method_of(case: Case) -> rlhf.Method:
    method = METHODS[case["method"]](0.0 if case["reference"] == "none" else 0.1)
    return method if case["entropy"] == "0" else replace(method, entropy_coef=float(case["entropy"]))  # type: ignore[call-arg]


def settings_of(case: Case) -> rlhf.Optimize:
    # In cloning there is no method to choose.
    critic = "method" in case and case.get("critic") != "none" and method_of(case).critic_of != "none"
    return optimize_of(case, budget=BUDGETS[case["budget"]], critic=critic)


def run(
    case: Case,
    models: Path,
    out: Path,
    *,
    updates: int = UPDATES,
    reward: Any = None,
    interrupted_at: int | None = None,
    resume: bool = False,
) -> Outcome:
    """Trains by the front door, on a policy that is loaded anew."""
    policy, task, method = policy_of(case, models), task_of(case, reward), method_of(case)
    task.interrupted_at = interrupted_at
    before, still = weights_of(policy), _frozen(policy)
    half = torch.autocast("cpu", torch.bfloat16, enabled=case["precision"] == "bf16")
    with torch.no_grad(), half:
        said = policy(ACTIONS).logprobs
    with watched(policy) as passes, quickly():
        rlhf.train(
            policy,
            task,
            method,
            settings_of(case),
            updates=updates,
            evaluations=1,
            checkpoints=updates,
            out=out,
            resume=resume,
            mixed_precision="bf16" if case["precision"] == "bf16" else "no",
        )
    # A reference is a copy of the model, hooks included.
    passes = [*passes]
    with half:
        reference = policy.reference_logprobs(ACTIONS) if method.needs_reference else None
    rows = read_lines(out / method.name / "metrics.jsonl")
    return Outcome(before, weights_of(policy), (still, _frozen(policy)), (said, reference), rows, passes)


def weights_at(update: int, case: Case, models: Path, out: Path) -> dict[str, Tensor]:
    """Those of a checkpoint."""
    policy = policy_of(case, models)
    policy.load(out / method_of(case).name / "checkpoints" / f"{update:08d}" / "policy")
    return weights_of(policy)


def weights_of(policy: Any) -> dict[str, Tensor]:
    return copied({name: tensor for name, tensor in policy.named_parameters() if tensor.requires_grad})


def _frozen(policy: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in policy.parameters() if not tensor.requires_grad]


@contextmanager
def watched(policy: Any) -> Iterator[list[tuple[int, int, bool]]]:
    """What the forward passes of the policy's trunks get to read meanwhile."""
    passes: list[tuple[int, int, bool]] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        tokens = kwargs["input_ids"]
        passes.append((*tokens.shape, bool(kwargs.get("use_cache"))))

    trunks = [trunk_of(policy.model), *([] if policy.critic_trunk is None else [policy.critic_trunk])]
    hooks = [trunk.register_forward_pre_hook(note, with_kwargs=True) for trunk in trunks]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    output, cases, models = (Path(argument) for argument in sys.argv[1:])
    torch.set_num_threads(1)
    for number, case in enumerate(json.loads(cases.read_text())):
        outcome = run(case, models, output / f"run {number}")
        if torch.distributed.get_rank() == 0:
            save_file(outcome.after, output / f"{number}.safetensors")
    leave(0)


if __name__ == "__main__":
    main()
