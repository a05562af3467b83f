"""What the recipes' tests share: a tiny model with its tokenizer, settings that take a moment, launching."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from recipes import custom_reward
from recipes.settings.language import ImproveConfig
from rlhf import optimize
from rlhf.algorithms import ppo
from rlhf.lm import collect
from rlhf.runs.launch import launch
from rlhf.training import Duration
from tests.lm.tiny import save_tiny
from tests.lm.words import BOS, EOS, WORDS, word_tokenizer

REWARDS = Path(__file__).parent / "rewards.py"
# The same settings for the command line and for a config.
ARGUMENTS = (
    *("--max-new-tokens", "6", "--held-out", "4", "--improve.train.updates", "2", "--improve.train.eval-every", "1"),
    *("--improve.train.checkpoint-every", "1", "--improve.collect.prompts-per-rollout", "4"),
    *("--improve.collect.responses-per-prompt", "2", "--improve.optimize.learning-rate", "1e-3"),
)


# A method of a user's own, in a file: it asks for nothing but what every method has.
OWN_METHOD = '''
from dataclasses import dataclass

from rlhf.algorithms.base import Method
from rlhf.core import advantages
from rlhf.rollout import batch_of


@dataclass(frozen=True, kw_only=True)
class MyMethod(Method):
    """Each action is as good as what is left of the rewards."""

    strength: float = 1.0
    """Multiplies the loss."""

    def estimate(self, rollout, state):
        left = advantages.monte_carlo_returns(rollout.rewards, rollout.next_values, rollout.dones, gamma=1.0)
        return batch_of(rollout, advantages=left), {}

    def loss(self, output, batch, state):
        terms = -self.strength * output.logprobs * batch.advantages
        return terms, {"strength": 0.0 * terms.detach() + self.strength}
'''


def save_model(folder: Path, architecture: str = "gpt2") -> Path:
    """A random model over the word tokenizer's vocabulary, and the tokenizer; 64 tokens of context."""
    save_tiny(architecture, folder, vocab_size=len(WORDS), bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS)
    word_tokenizer().save_pretrained(folder)
    return folder


def improve_config(*, updates: int = 2) -> ImproveConfig:
    return ImproveConfig(
        collect=collect.CollectResponses(prompts_per_rollout=4, responses_per_prompt=2),
        method=ppo.PPO(kl_coef=0.05),
        train=Duration(updates=updates, eval_every=1, checkpoint_every=1),
        optimize=optimize.Optimize(learning_rate=1e-3, epochs=2, minibatches=2),
    )


def small_config(
    model: Path, output_dir: Path, *, updates: int = 2, rewards: Sequence[str] = ("count_a",), **changes: Any
) -> custom_reward.Config:
    return custom_reward.Config(
        model=str(model),
        output_dir=output_dir,
        held_out=4,
        max_new_tokens=6,
        reward=tuple(f"{REWARDS}:{name}" for name in rewards),
        improve=improve_config(updates=updates),
        **changes,
    )


def run(main: Callable[[Any], Any], config: Any) -> Any:
    """Calls a recipe as the first in its process would: accelerate remembers its precision for a process's life."""
    _forget()
    try:
        return main(config)
    finally:
        _forget()
        Accelerator(cpu=True)


def outcome(monkeypatch: pytest.MonkeyPatch, recipe: Any, *arguments: str) -> int:
    """The exit status of a recipe's command line, run in this process."""
    monkeypatch.setattr(sys, "argv", [f"{recipe.__name__}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        run(lambda config: launch(recipe.main, config, default=getattr(recipe, "default_config", None)), recipe.Config)
    return ended.value.code


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
