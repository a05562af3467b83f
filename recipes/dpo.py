"""A language model learns what was preferred, from pairs or labels: DPO, IPO or KTO, without a reward model.

    python recipes/dpo.py --model gpt2 --data pairs.jsonl                    # all weights
    python recipes/dpo.py --model gpt2 --data pairs.jsonl --lora --optimize.learning-rate 1e-4
    python recipes/dpo.py --model gpt2 --data labels.jsonl --method kto
    python recipes/dpo.py --model gpt2 --data prompts.jsonl --reward my_rewards.py:polite
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/dpo.py --model gpt2 --data pairs.jsonl

Pairs have columns `chosen` and `rejected`: strings or lists of messages, with a `prompt` or with what both begin with.
Labels have `prompt`, `completion` and `label` (true or false). With --reward the data are prompts, which the model
itself answers several times; the best and the worst answer to each are a pair. result.json tells the accuracy on rows
never trained on, before and after, and with --reward the mean score of answers to prompts never trained on; the model
is in dpo/final/policy/model, for plain transformers or peft.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tyro import MISSING

from recipes.settings.preferences import Compared, train_on_preferences
from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import fitting
from rlhf.algorithms.choices import make_method, method_help
from rlhf.algorithms.dpo import DPO
from rlhf.deferred import deferred
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch

with deferred():
    from rlhf.runs.summary import conclude


@dataclass(frozen=True, kw_only=True)
class Config(Compared):
    """Learning from preferences without a reward model."""

    output_dir: Path = Path("runs/dpo")
    """Folder for what the run leaves behind."""
    method: Method = DPO()
    optimize: Optimize = Optimize(learning_rate=1e-6, schedule="linear", epochs=1)


def default_config(method: str = "dpo") -> Config:
    config = Config(model=MISSING, data=MISSING)
    chosen = make_method(method)
    return replace(config, method=chosen, optimize=fitting(chosen, config.optimize))


def main(config: Config) -> dict[str, float]:
    run, _, (before, after, _) = train_on_preferences(config, critic="none")
    names = ("accuracy", "margin", "preference_loss", "score_mean", "greedy_score_mean", "length_mean")
    result: dict[str, float] = {}
    for name in names:
        if f"eval_{name}" in after:
            result |= {f"{name}_before": before[f"eval_{name}"], f"{name}_after": after[f"eval_{name}"]}
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config, default=default_config, picks={"method": method_help(("dpo", "kto"))})
