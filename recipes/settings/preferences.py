"""What the recipes that learn from preferences share: their options, and where their pairs come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.settings.language import Adapted, Precision, lora_settings
from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import require_learns_from, require_settings, resolved
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.loop import Duration
from rlhf.optimize import Optimize, require_rows
from rlhf.settings import Count, Location, Positive, Seed

with deferred():
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list

    from rlhf.core.random import derive_seed
    from rlhf.lm.data import load_data
    from rlhf.lm.load import context_length, load_policy, load_tokenizer, model_sums
    from rlhf.lm.preferences import Preferences
    from rlhf.lm.prompts import Prompts
    from rlhf.lm.sampled_pairs import sample_pairs
    from rlhf.runs.checkpoint import replace_file
    from rlhf.runs.door import require_new_or_resumed
    from rlhf.runs.log import trackers
    from rlhf.runs.run import Run
    from rlhf.sources import code_sums
    from rlhf.training import Result, require, train_phase


@dataclass(frozen=True, kw_only=True)
class Compared(Adapted):
    """The options of a recipe that learns from preferences."""

    model: Location
    """Hub id or folder of a causal language model or LoRA adapter, or a .gguf file."""
    data: Location
    """Pairs or labels: a .jsonl, .json, .csv or .parquet file, a data set of the hub, or path/to/file.py:function that
    returns the rows; with a reward, prompts."""
    split: str = "train"
    """Split of a data set of the hub."""
    subset: str | None = None
    """Subset (configuration) of a data set of the hub that has several."""
    reward: Location = ""
    """path/to/file.py:function that compares the model's own answers to the prompts, the best with the worst; empty:
    the data are pairs or labels."""
    pairs_of: Count = 1000
    """Of so many prompts, with a reward; fewer if there are not as many."""
    responses_per_prompt: Count = 8
    """Answers to each of them."""
    max_new_tokens: Count = 64
    """Longest of these answers, in tokens."""
    temperature: Positive = 1.0
    """That they are sampled at; everything is scored at 1."""
    held_out: Count = 16
    """Rows that are only evaluated on."""
    rows_per_update: Count = 16
    """Pairs, or labelled rows, of one update, over all processes."""
    passes: Positive = 1.0
    """Times that each row is learned from."""
    evaluations: Count = 10
    """Measurements on the way, and as many checkpoints."""
    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: Path
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir; with more passes, a finished one too."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    precision: Precision = Precision()
    method: Method
    optimize: Optimize

    def __post_init__(self) -> None:
        require_learns_from(self.method, "pairs", "labels")
        require_settings(self.method, resolved(self.method, self.optimize), group_size=2)
        require_rows(self.rows_per_update, self.optimize.minibatches)
        lora_settings(self)
        if self.reward and self.responses_per_prompt < 2:
            raise InputError("responses_per_prompt is 1, and one answer has none to be compared with; take several.")


def train_on_preferences(config: Compared, *, critic: str) -> tuple[Run, Any, Result]:
    """The run, the policy as it is afterwards, and what was measured."""
    accelerator = Accelerator(
        mixed_precision=config.precision.mixed_precision,
        **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir),
    )
    # Whatever can be wrong with the input shows before the weights load, and all else before the folder is made.
    data, method = load_data(config.data, split=config.split, subset=config.subset), config.method
    tokenizer, context = load_tokenizer(config.model), context_length(config.model)
    if config.reward:
        prompts = Prompts(
            data,
            config.reward,
            max_new_tokens=config.max_new_tokens,
            held_out=config.held_out,
            prompts_per_rollout=accelerator.num_processes,
        )
        prompts.read(tokenizer, context=context)
    else:
        task = Preferences(data, rows_per_update=config.rows_per_update, held_out=config.held_out)
        task.read(tokenizer, context=context, method=method)
        task.require_size(accelerator)
    require_new_or_resumed(config.output_dir, resume=config.resume)
    policy = load_policy(
        config.model,
        critic=critic,
        **lora_settings(config),
        gradient_checkpointing=config.precision.gradient_checkpointing,
        temperature=config.temperature,
        seed=derive_seed(config.seed, "weights"),
    )
    if not config.reward:
        require(policy, task, method, config.optimize, accelerator)
    given = prompts if config.reward else task
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"passes"},
        inputs=lambda: given.inputs() | code_sums("method", method) | model_sums(config.model),
        any_processes=True,
        accept_changes=config.accept_changes,
    )
    if config.reward:
        task = compared_by_reward(config, run, policy.to(accelerator.device), prompts)
    phase = run.phase(method.name)
    found = train_phase(
        policy, task, method, config.optimize, duration=_duration(config, task), phase=phase, seed=config.seed
    )
    return run, policy, found


def _duration(config: Compared, task: Preferences) -> Duration:
    rows = len(task.data.rows) - (task.held_out if isinstance(task.held_out, int) else 0)
    updates = max(round(config.passes * rows / config.rows_per_update), 1)
    every = -(-updates // config.evaluations)
    return Duration(updates=updates, eval_every=every, checkpoint_every=every)


def kept_rows(run: Run, name: str, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows that are made once, by one process, and stay in the run's folder: a resumed run goes on with the very same,
    whatever made them."""
    accelerator, path = run.accelerator, run.folder / name
    rows: list[Any] = [None]
    if accelerator.is_main_process:
        if not path.exists():
            replace_file(path, "".join(json.dumps(row) + "\n" for row in make()).encode())
        rows = [load_data(path).rows]
    if accelerator.num_processes > 1:
        broadcast_object_list(rows)
    return list(rows[0])


def compared_by_reward(config: Compared, run: Run, policy: Any, prompts: Prompts) -> Preferences:
    """Pairs of the model's own answers; what is learned is measured on held-out pairs, and, where the model itself
    learns, on its answers to held-out prompts."""
    parts = [[prompts.data.rows[prompt.row] for prompt in part] for part in prompts.split(config.seed)]

    def pairs(rows: Sequence[Mapping[str, Any]], purpose: str) -> list[dict[str, Any]]:
        return sample_pairs(
            policy,
            rows,
            config.reward,
            max_new_tokens=config.max_new_tokens,
            responses_per_prompt=config.responses_per_prompt,
            seed=derive_seed(config.seed, purpose),
            token_budget=config.optimize.micro_batch_cost,
        )

    return Preferences(
        kept_rows(run, "pairs.jsonl", lambda: pairs(parts[0][: config.pairs_of], "pairs")),
        rows_per_update=config.rows_per_update,
        held_out=kept_rows(run, "held_out_pairs.jsonl", lambda: pairs(parts[1], "held-out pairs")),
        also=None if config.method.reads_ends else prompts,
    )
