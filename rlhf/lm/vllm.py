"""vLLM as what answers prompts: in this process, on the learner's device, with the learner's weights at every call."""

from __future__ import annotations

import copy
import gc
import os
import random
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from rlhf.errors import InputError
from rlhf.lm.engine import Generation, Sampling
from rlhf.lm.extras import needed
from rlhf.lm.loading import one_line
from rlhf.lm.merged import merged_weights, require_mergeable
from rlhf.lm.model import base_of
from rlhf.lm.policy import CausalLM

# Nats a token, in the mean, by which it and transformers round differently.
_ROUNDING = {torch.float32: 1e-2, torch.bfloat16: 0.1, torch.float16: 0.1}
_OURS = ("model", "tokenizer", "load_format", "logprobs_mode", "enable_sleep_mode", "tensor_parallel_size")


class VLLM:
    """vLLM (extra `rlhf[vllm]`), which decodes many prompts several times as fast as our decoder on a GPU.

    It starts at the first call, in the policy's own process (one on each, each with a whole model; one at a time on a
    GPU). Before it answers it takes over the policy's weights, LoRA adapters merged into them in float32. On a GPU it
    gives its memory back after each answer, so that learning has it.

    Args:
        dtype: What it computes in; policy: what the policy computes in at the first call.
        rounding: Nats a token, in the mean, by which its log-probs may differ from the policy's in the first updates;
            0: 0.01 where both compute in float32, else 0.1.
        options: Of `vllm.LLM`, such as gpu_memory_utilization=0.5 (the share of the GPU that it may fill while it
            answers), max_model_len or max_num_seqs.

    Raises:
        InputError: vLLM is not installed, or an option is the project's own.
    """

    exact = False

    def __init__(
        self,
        *,
        dtype: Literal["policy", "float32", "bfloat16", "float16"] = "policy",
        rounding: float = 0.0,
        **options: Any,
    ) -> None:
        ours = sorted(set(options) & set(_OURS))
        if ours:
            raise InputError(f"{ours[0]} follows from the policy and cannot be an option of VLLM; leave it out.")
        self.dtype, self.options = dtype, options
        self.rounding = rounding or _ROUNDING[torch.float32 if dtype == "policy" else getattr(torch, dtype)]
        self._llm: Any = None
        # The model that it was started for.
        self._base: Any = None
        _module()

    def describe(self) -> dict[str, Any]:
        """What tells it from another, for config.json."""
        return {"dtype": self.dtype, **{name: repr(value) for name, value in self.options.items()}}

    def generate(
        self, policy: CausalLM, prompts: Sequence[Sequence[int]], *, sampling: Sampling, uniforms: Tensor | None
    ) -> Generation:
        """One response to each prompt, as `Engine.generate` says; the first of a row's uniforms is its seed."""
        if not all(len(prompt) > 0 for prompt in prompts):
            raise InputError("A prompt has no tokens; give it at least one (such as the model's BOS token).")
        if sampling.stop_strings and policy.tokenizer is None:
            raise InputError("stop_strings need a tokenizer; set policy.tokenizer.")
        own = _computes_in(policy) if self.dtype == "policy" else getattr(torch, self.dtype)
        # Autocast is for the learner.
        with torch.autocast(policy.device.type, enabled=False), _undisturbed(policy.device):
            try:
                return self._answered(policy, prompts, sampling, uniforms, own)
            except BaseException:
                # It may be in the middle of requests; another call starts anew.
                self._llm = self._base = None
                raise

    def _answered(
        self,
        policy: CausalLM,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        uniforms: Tensor | None,
        dtype: torch.dtype,
    ) -> Generation:
        base, sleeps = base_of(policy.model), policy.device.type == "cuda"
        if self._base is None or self._base() is not base:
            self._llm = None
            gc.collect()
            self._llm, self._base = _started(policy, dtype, self.options), weakref.ref(base)
        elif sleeps:
            self._llm.wake_up(tags=["weights"])
        context = self._llm.model_config.max_model_len
        longest = max(len(prompt) for prompt in prompts)
        if longest + sampling.max_new_tokens > context:
            raise InputError(
                f"The longest prompt has {longest} tokens and max_new_tokens is {sampling.max_new_tokens}: together "
                f"{longest + sampling.max_new_tokens}, but vLLM has room for {context}. Shorten one of them, or give "
                "VLLM a larger max_model_len."
            )
        weights = revert_weight_conversion(base, dict(merged_weights(base, dtype)))
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
        del weights
        if sleeps:
            self._llm.wake_up(tags=["kv_cache"])
        else:
            self._llm.apply_model(_pack_head)
        # What it keeps of prompts was computed with the weights before.
        self._llm.reset_prefix_cache()
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        answers = self._llm.generate(given, _parameters(policy, sampling, uniforms, len(prompts)), use_tqdm=False)
        if sleeps:
            self._llm.sleep(level=2)
        return _generation([answer.outputs[0] for answer in answers], policy.device)


def _started(policy: CausalLM, dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """vLLM with a model of these sizes, whose weights are yet to come."""
    require_mergeable(policy.model, "vLLM takes whole models", "take our decoder")
    on_gpu = policy.device.type == "cuda"
    several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    settings: dict[str, Any] = {
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": -1 if on_gpu else policy.context,
        "enforce_eager": not on_gpu,
        "seed": 0,
        **({"gpu_memory_utilization": 0.4} if on_gpu else {"kv_cache_memory_bytes": 2**30}),
        # One engine a process, none of which waits for another.
        **({"distributed_executor_backend": "external_launcher"} if several else {}),
        **options,
    }
    base = base_of(policy.model)
    config = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        if policy.tokenizer is not None:
            policy.tokenizer.save_pretrained(folder)
        try:
            llm = _module().LLM(
                model=folder,
                skip_tokenizer_init=policy.tokenizer is None,
                generation_config="vllm",
                load_format="dummy",
                logprobs_mode="processed_logprobs",
                enable_sleep_mode=on_gpu,
                logits_processors=_masks(policy.unknown_tokens),
                **settings,
            )
        except Exception as error:
            raise InputError(
                f"vLLM cannot hold {type(base).__name__} with {settings}: {one_line(error)}. Its log says more "
                "with VLLM_LOGGING_LEVEL=INFO."
            ) from error
    # Its own end would be that of this process's group too.
    llm.llm_engine.engine_core._finalizer.detach()
    weakref.finalize(llm, _end, llm.llm_engine.engine_core.engine_core).atexit = False
    return llm


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """vLLM runs in this process, whose weights it reads, and leaves its threads and generators as they were."""
    fixed = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The other runner takes masks of another form.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
    }
    os.environ.update(fixed)
    # Unless it is asked for; or it would log much, bind the learner's threads, and report its use to its authors.
    for name, value in (
        ("VLLM_LOGGING_LEVEL", "ERROR"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("VLLM_NO_USAGE_STATS", "1"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch.set_num_threads = set_threads
            torch.set_num_threads(threads)
            random.setstate(states[0])
            np.random.set_state(states[1])


def _end(core: Any) -> None:
    """Gives its memory back."""
    core.model_executor.shutdown()
    core.scheduler.shutdown()
    gc.unfreeze()


def _module() -> Any:
    return needed("vllm", extra="vllm")


def _computes_in(policy: CausalLM) -> torch.dtype:
    device = policy.device.type
    if policy.frozen_dtype is not None:
        return policy.frozen_dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else policy.dtype


def _pack_head(model: nn.Module) -> None:
    """On a CPU vLLM multiplies by a packed copy of the head's weight; that of a head tied to the embedding is not made
    anew where weights are reloaded (0.32)."""
    kind = needed("vllm.model_executor.layers.vocab_parallel_embedding", extra="vllm").ParallelLMHead
    for module in model.modules():
        if isinstance(module, kind):
            cast(Any, module).quant_method.process_weights_after_loading(module)


def _masks(unknown: Tensor | None) -> list[type]:
    """What gives tokens that the tokenizer does not know probability 0, as the policy does."""
    if unknown is None:
        return []
    mask: Tensor = unknown
    processor = needed("vllm.v1.sample.logits_processor", extra="vllm").LogitsProcessor

    class KnownOnly(processor):  # type: ignore[misc, valid-type]
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            self.unknown = mask.to(device)

        def apply(self, logits: Tensor) -> Tensor:
            return logits.masked_fill_(self.unknown, -torch.inf)

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            """It is the same for all requests."""

    return [KnownOnly]


def _parameters(policy: CausalLM, sampling: Sampling, uniforms: Tensor | None, rows: int) -> list[Any]:
    """One a row; the seed is all that tells them apart."""
    seeds = [None] * rows if uniforms is None else (uniforms[:, 0].double() * 2**53).long().tolist()
    return [
        _module().SamplingParams(
            temperature=0.0 if uniforms is None else policy.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=list(sampling.stop_tokens),
            stop=list(sampling.stop_strings),
            ignore_eos=True,
            detokenize=bool(sampling.stop_strings),
            skip_special_tokens=False,
            logprobs=0,
            seed=seed,
        )
        for seed in seeds
    ]


def _generation(answers: list[Any], device: torch.device) -> Generation:
    tokens = [torch.tensor(list(answer.token_ids)) for answer in answers]
    logprobs = [
        torch.tensor([step[token].logprob for step, token in zip(answer.logprobs, answer.token_ids, strict=True)])
        for answer in answers
    ]
    return Generation(
        tokens=nn.utils.rnn.pad_sequence(tokens, batch_first=True).to(device),
        lengths=torch.tensor([len(each) for each in tokens], device=device),
        finished=torch.tensor([answer.finish_reason == "stop" for answer in answers], device=device),
        logprobs=nn.utils.rnn.pad_sequence(logprobs, batch_first=True).to(device),
        values=None,
    )
