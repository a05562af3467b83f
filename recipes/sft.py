"""Supervised fine-tuning: a language model learns to write what is shown to it. Needs no reward function.

    python recipes/sft.py --model gpt2 --data chats.jsonl               # all weights
    python recipes/sft.py --model gpt2 --data chats.jsonl --lora        # adapters only
    python recipes/custom_reward.py --model runs/sft/clone/final/policy # and on from there with a reward

The data have a column `text`; or `prompt` and `completion` (strings or chat messages), of which the completion is
learned; or `messages`, of which the assistant's turns are. result.json tells the loss on rows never trained on, nats a
token, before and after; the model is in clone/final/policy/model, for plain transformers or peft.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipes.settings.language import Adapted, Precision, lora_settings
from rlhf.algorithms.checks import require_settings, resolved
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.deferred import deferred
from rlhf.loop import Duration
from rlhf.optimize import Optimize, require_rows
from rlhf.runs.launch import launch
from rlhf.settings import Count, Location, Positive, Seed

with deferred():
    from accelerate import Accelerator

    from rlhf.core.random import derive_seed
    from rlhf.lm.data import load_data
    from rlhf.lm.demonstrations import Demonstrations
    from rlhf.lm.load import context_length, load_policy, load_tokenizer, model_sums
    from rlhf.runs.door import require_new_or_resumed
    from rlhf.runs.log import trackers
    from rlhf.runs.run import Run
    from rlhf.runs.summary import conclude
    from rlhf.training import require, train_phase


@dataclass(frozen=True, kw_only=True)
class Config(Adapted):
    """Supervised fine-tuning."""

    model: Location
    """Hub id or folder of a causal language model or LoRA adapter, or a .gguf file."""
    data: Location
    """A .jsonl, .json, .csv or .parquet file, or a data set of the hub."""
    split: str = "train"
    """Split of a data set of the hub."""
    subset: str | None = None
    """Subset (configuration) of a data set of the hub that has several."""
    held_out: Count = 16
    """Rows that are only evaluated on."""
    rows_per_update: Count = 16
    """Demonstrations of one optimizer step, over all processes."""
    passes: Positive = 3.0
    """Times that each row is learned from."""
    evaluations: Count = 10
    """Measurements of the loss on the way, and as many checkpoints."""
    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/sft")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir; with more passes, a finished one too."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    precision: Precision = Precision()
    optimize: Optimize = Optimize(learning_rate=1e-5, schedule="linear", epochs=1)

    def __post_init__(self) -> None:
        require_settings(BehaviourCloning(), resolved(BehaviourCloning(), self.optimize), group_size=1)
        require_rows(self.rows_per_update, self.optimize.minibatches)
        lora_settings(self)


def main(config: Config) -> dict[str, float]:
    accelerator = Accelerator(
        mixed_precision=config.precision.mixed_precision,
        **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir),
    )
    # Whatever can be wrong with the input shows before the weights load, and all else before the folder is made.
    data = load_data(config.data, split=config.split, subset=config.subset)
    task = Demonstrations(data, rows_per_update=config.rows_per_update, held_out=config.held_out)
    task.read(load_tokenizer(config.model), context=context_length(config.model))
    task.require_size(accelerator)
    require_new_or_resumed(config.output_dir, resume=config.resume)
    updates = max(round(config.passes * (len(data.rows) - config.held_out) / config.rows_per_update), 1)
    policy = load_policy(
        config.model,
        critic="none",
        **lora_settings(config),
        gradient_checkpointing=config.precision.gradient_checkpointing,
        seed=derive_seed(config.seed, "weights"),
    )
    require(policy, task, BehaviourCloning(), config.optimize, accelerator)
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"passes"},
        inputs=lambda: task.inputs() | model_sums(config.model),
        any_processes=True,
        accept_changes=config.accept_changes,
    )
    phase = run.phase("clone")
    every = -(-updates // config.evaluations)
    duration = Duration(updates=updates, eval_every=every, checkpoint_every=every)
    before, after, _ = train_phase(
        policy, task, BehaviourCloning(), config.optimize, duration=duration, phase=phase, seed=config.seed
    )
    result = {"loss_before": before["eval_loss"], "loss_after": after["eval_loss"], "updates": float(updates)}
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config)
