"""Whole training loops in float64, small enough to compare to the last bits; run by test_laws.py.

python tests/whole_loops.py FOLDER control|lm       # alone and under torchrun
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf import optimize
from rlhf.algorithms import ppo
from rlhf.control import collect as control_collect
from rlhf.control import evaluate as control_evaluate
from rlhf.control.envs import make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.lm.engine import Engine
from rlhf.runs.launch import leave
from rlhf.runs.run import Run
from rlhf.training import Duration, train_phase
from tests.given import Given
from tests.lm.worlds import improve, word_policy

KL_COEF, KL_TARGET = 0.2, 0.1


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What may change speed and nothing else."""

    micro_batch_cost: int = 10_000
    token_budget: int = 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run's folder says about it."""

    name: str


def control(folder: Path, *, updates: int, speed: Speed) -> nn.Module:
    """CartPole with everything that is global: minibatches, whitening, running moments, evaluation."""
    accelerator = Accelerator(cpu=True)
    envs = make_envs("CartPole-v1", 4, num_processes=accelerator.num_processes)
    policy = ControlPolicy(spaces_of(envs), PolicyConfig(normalise_observations=True), seed=0).double()
    start(policy)
    config = control_collect.CollectSteps(num_envs=4, steps=30, normalise_rewards=True)
    train_phase(
        policy,
        Given(
            control_collect.EnvCollector(envs, config=config, gamma=0.97, seed=0, accelerator=accelerator),
            control_evaluate.Evaluator(
                "CartPole-v1",
                config=control_evaluate.EvaluateEpisodes(episodes=5, sampled_episodes=3),
                seed=0,
                accelerator=accelerator,
            ),
        ),
        ppo.PPO(gamma=0.97, entropy_coef=0.01),
        optimize.Optimize(
            learning_rate=0.01,
            epochs=2,
            minibatches=3,
            micro_batch_cost=speed.micro_batch_cost,
            whiten="minibatch",
            max_gradient_norm=0.5,
        ),
        duration=Duration(updates=updates, eval_every=5),
        phase=Run(folder, RunConfig(name="control"), resume=False, accelerator=accelerator).phase("ppo"),
        seed=0,
    )
    return policy


def lm(folder: Path, *, updates: int, speed: Speed, engine: Engine | None = None) -> nn.Module:
    """PPO on a random GPT-2 with a reference, an adaptive coefficient, running moments of scores, missing scores."""
    accelerator = Accelerator(cpu=True)
    policy = word_policy(temperature=0.8)
    start(policy)
    improve(
        policy,
        ppo.PPO(kl_coef=KL_COEF, kl_target=KL_TARGET, entropy_coef=0.01),
        optimize.Optimize(learning_rate=0.01, epochs=2, minibatches=2, micro_batch_cost=speed.micro_batch_cost),
        duration=Duration(updates=updates, eval_every=5),
        phase=Run(folder, RunConfig(name="lm"), resume=False, accelerator=accelerator).phase("ppo"),
        engine=engine,
        token_budget=speed.token_budget,
        prompts_per_rollout=2,
        responses_per_prompt=3,
        normalise_scores=True,
        missing_eos_penalty=0.5,
    )
    return policy


def start(policy: nn.Module) -> None:
    """Keeps the weights that training starts from."""
    policy.initial = {name: tensor.detach().clone() for name, tensor in policy.named_parameters()}


def change(policy: nn.Module) -> Tensor:
    """How far training moved every parameter, in one vector."""
    return torch.cat([(tensor.detach() - policy.initial[name]).flatten() for name, tensor in policy.named_parameters()])


LOOPS = {"control": control, "lm": lm}


def main() -> None:
    output, name = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    # Micro-batches so small that the ranks differ in their number.
    policy = LOOPS[name](output / "run", updates=10, speed=Speed(micro_batch_cost=20))
    accelerator = Accelerator(cpu=True)
    if accelerator.is_main_process:
        save_file({"change": change(policy)}, output / "change.safetensors")
        facts = {
            "num_processes": accelerator.num_processes,
            "distributed_type": accelerator.distributed_type.value,
        }
        (output / "facts.json").write_text(json.dumps(facts))
    leave(0)


if __name__ == "__main__":
    main()
