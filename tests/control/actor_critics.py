"""Short runs of the actor-critic methods on CartPole; run by test_actor_critics.py, there and under torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms import a2c, impala, ppo, ppo_kl, q_actor_critic, td_lambda, trpo
from rlhf.algorithms.actor_critic import Critic
from rlhf.control.evaluate import EvaluateEpisodes
from rlhf.control.tasks import Envs
from rlhf.loop import Duration
from rlhf.runs.launch import leave
from rlhf.runs.log import read_lines
from rlhf.runs.run import Run
from rlhf.training import train_phase
from tests.whole_loops import RunConfig

# Method, steps in each environment between updates, epochs, lag.
METHODS: dict[str, tuple[Any, int, int, int]] = {
    "a2c": (a2c.A2C(gamma=0.97, entropy_coef=0.01), 6, 1, 0),
    "a2c_fitted": (a2c.A2C(gamma=0.97, critic=Critic(target="td0", epochs=2, renew_labels=True)), 6, 1, 0),
    "td": (a2c.A2C(gamma=0.97, gae_lambda=0.0, critic=Critic(target="td0")), 6, 1, 0),
    "q": (q_actor_critic.QActorCritic(gamma=0.97, critic=Critic(target="td_lambda", td_lambda=0.9, epochs=2)), 6, 1, 0),
    "traces": (td_lambda.TDLambda(gamma=0.97), 1, 1, 0),
    "impala": (impala.Impala(gamma=0.97), 6, 1, 2),
    # The loop weighs what was done by actors that lag.
    "ppo_lag": (ppo.PPO(gamma=0.97), 6, 2, 2),
    "traces_lag": (td_lambda.TDLambda(gamma=0.97), 1, 1, 2),
    # At the old policy, where the first epoch is, the gradient of the penalty is 0.
    "ppo_kl": (ppo_kl.PPOKL(gamma=0.97), 6, 3, 0),
    "trpo": (trpo.TRPO(gamma=0.97), 6, 1, 0),
}


def trained(
    folder: Path, name: str, *, updates: int, accelerator: Accelerator, resume: bool = False
) -> tuple[Tensor, list[dict[str, Any]]]:
    """All weights, and the metrics of each update but those of the clock and of evaluations."""
    method, steps, epochs, lag = METHODS[name]
    evaluate = EvaluateEpisodes(episodes=2, sampled_episodes=0)
    task = Envs("CartPole-v1", evaluate=evaluate, num_envs=4, steps=steps, lag=lag)
    policy = task.policy(hidden_sizes=(8,), critic="action" if name == "q" else "state").double()
    train_phase(
        policy,
        task,
        method,
        optimize.Optimize(learning_rate=0.01, epochs=epochs, whiten="none"),
        duration=Duration(updates=updates, eval_every=0, checkpoint_every=0),
        phase=Run(folder, RunConfig(name=name), resume=resume, accelerator=accelerator).phase("learn"),
        seed=0,
    )
    other = ("seconds", "steps_per_second", "memory", "eval")
    rows = [
        {name: value for name, value in row.items() if not name.startswith(other)}
        for row in read_lines(folder / "learn" / "metrics.jsonl")
        if "policy_loss" in row
    ]
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]), rows


def main() -> None:
    output, accelerator = Path(sys.argv[1]), Accelerator()
    facts: dict[str, Any] = {"num_processes": accelerator.num_processes}
    for name in METHODS:
        weights, rows = trained(output / name, name, updates=4, accelerator=accelerator)
        facts[name] = {"weights": weights.tolist(), "rows": rows}
    if accelerator.is_main_process:
        (output / "facts.json").write_text(json.dumps(facts))
    leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
