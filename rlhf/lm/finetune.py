"""The two phases of fine-tuning a language model, each one call: cloning demonstrations, improving on rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accelerate import Accelerator

from rlhf import optimize, train
from rlhf.algorithms import bc, ppo
from rlhf.algorithms.catalogue import CONTROL_ONLY, Method, algorithm_of, name_of, require_settings
from rlhf.demonstrations import DemonstrationCollector
from rlhf.errors import InputError
from rlhf.lag import LaggedCollector
from rlhf.lm import collect
from rlhf.lm.data import Prompt
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.generate import Sampling
from rlhf.lm.policy import CausalLM
from rlhf.lm.rewards import Rewards
from rlhf.rollout import Rollout
from rlhf.runs.run import Phase


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Numbers that the forward passes compute in; weights, gradients and the optimizer stay in float32."""

    mixed_precision: Literal["no", "bf16"] = "no"
    """bf16: autocast. Log-probabilities are then scored again by the training forward."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True, kw_only=True)
class CloneConfig:
    """Behaviour cloning, which is supervised fine-tuning."""

    rows_per_update: int = 64
    """Demonstrations of one optimizer step, over all processes."""
    train: train.Config = train.Config(updates=1000, eval_every=0, checkpoint_every=100)
    optimize: optimize.Config = optimize.Config(epochs=1, schedule="linear", whiten="none")


@dataclass(frozen=True, kw_only=True)
class ImproveConfig:
    """A policy-gradient method on the scores of reward functions."""

    collect: collect.Config = collect.Config()
    method: Method = ppo.Config()
    train: train.Config = train.Config(updates=100)
    optimize: optimize.Config = optimize.Config()

    def __post_init__(self) -> None:
        name, group_size = name_of(self.method), self.collect.responses_per_prompt
        if name in CONTROL_ONLY:
            raise InputError(f"{name} is for control; for a language model choose another of docs/algorithms.md.")
        if getattr(self.method, "baseline", "") == "least_variance":
            raise InputError(
                "baseline is least_variance, which takes a pass for every token of a language model; choose another, "
                "such as leave_one_out."
            )
        require_settings(self.method, self.optimize, lag=self.collect.lag, group_size=group_size)
        num_shares = max(self.optimize.minibatches, getattr(self.method, "fisher_shares", 1))
        optimize.require_rows(self.collect.prompts_per_rollout * group_size, num_shares)


def clone(
    policy: CausalLM,
    demonstrations: Rollout,
    evaluate: ResponseEvaluator,
    *,
    config: CloneConfig,
    phase: Phase,
    accelerator: Accelerator,
    seed: int,
) -> None:
    """Maximum likelihood at temperature 1; the policy's own temperature is back afterwards and in evaluations."""
    temperature = policy.temperature

    def evaluate_at_own_temperature(cloned: CausalLM) -> Any:
        cloned.temperature = temperature
        evaluation = evaluate(cloned)
        cloned.temperature = 1.0
        return evaluation

    policy.temperature = 1.0
    train.train(
        policy=policy,
        algorithm=bc,
        algorithm_config=bc.Config(),
        optimize_config=config.optimize,
        collector=DemonstrationCollector(
            demonstrations, rows_per_update=config.rows_per_update, seed=seed, accelerator=accelerator
        ),
        evaluate=evaluate_at_own_temperature,
        phase=phase,
        accelerator=accelerator,
        config=config.train,
        seed=seed,
    )
    policy.temperature = temperature


def improve(
    policy: CausalLM,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    rewards: Rewards,
    evaluate: ResponseEvaluator,
    *,
    sampling: Sampling,
    config: ImproveConfig,
    phase: Phase,
    accelerator: Accelerator,
    seed: int,
) -> None:
    """The method from where the policy is; with a KL coefficient, the policy as it is now is the reference."""
    use_reference = config.method.kl_coef > 0
    if use_reference:
        policy.make_reference()
    collector: Any = collect.PromptCollector(
        prompts,
        tokenizer,
        rewards,
        sampling=sampling,
        config=config.collect,
        seed=seed,
        accelerator=accelerator,
        micro_batch_cost=config.optimize.micro_batch_cost,
        use_reference=use_reference,
    )
    if config.collect.lag:
        collector = LaggedCollector(
            collector,
            lag=config.collect.lag,
            accelerator=accelerator,
            micro_batch_cost=config.optimize.micro_batch_cost,
        )
    train.train(
        policy=policy,
        algorithm=algorithm_of(config.method),
        algorithm_config=config.method,
        optimize_config=config.optimize,
        collector=collector,
        evaluate=evaluate,
        phase=phase,
        accelerator=accelerator,
        config=config.train,
        seed=seed,
    )
