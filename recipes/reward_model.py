"""A reward model learns from pairs what people prefer, and is saved for plain transformers.

    python recipes/reward_model.py --model gpt2 --data pairs.jsonl               # all weights
    python recipes/reward_model.py --model gpt2 --data pairs.jsonl --lora --optimize.learning-rate 1e-4
    python recipes/reward_model.py --model gpt2 --data prompts.jsonl --reward my_rewards.py:polite
    python recipes/custom_reward.py --model gpt2 --data prompts.jsonl --reward runs/reward_model/model

Pairs have columns `chosen` and `rejected`: strings or lists of messages, with a `prompt` or with what both begin with.
With --reward the data are prompts, which the model itself answers several times; the best and the worst answer to each
are a pair. result.json tells on pairs never trained on how often the chosen answer scores more, and how far the
probabilities that follow from the scores can be trusted (calibration error), before and after. The reward model is in
model/, a sequence classifier with one output.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recipes.settings.preferences import Compared, train_on_preferences
from rlhf.algorithms.bradley_terry import BradleyTerry
from rlhf.deferred import deferred
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch

with deferred():
    from rlhf.lm.classifier import save_reward_model
    from rlhf.runs.summary import conclude


@dataclass(frozen=True, kw_only=True)
class Config(Compared):
    """A reward model from preferences."""

    output_dir: Path = Path("runs/reward_model")
    """Folder for what the run leaves behind."""
    method: BradleyTerry = BradleyTerry(centring_coef=0.01)
    optimize: Optimize = Optimize(learning_rate=1e-5, schedule="linear", epochs=1)


def main(config: Config) -> dict[str, float]:
    run, policy, (before, after, _) = train_on_preferences(config, critic="shared")
    if run.accelerator.is_main_process:
        save_reward_model(policy, config.output_dir / "model")
    names = ("accuracy", "margin", "preference_loss", "calibration_error")
    rows = {"before": before, "after": after}
    result = {f"{name}_{when}": row[f"eval_{name}"] for name in names for when, row in rows.items()}
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config)
