"""Run by test_trpo_distributed.py, alone and under torchrun: the same TRPO updates, rows spread unevenly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

from rlhf import optimize
from rlhf.algorithms.trpo import TRPO
from rlhf.rollout import Batch, Rollout
from rlhf.runs.launch import leave
from tests.algorithms.test_trpo import STATE, gaussian_policy, rollout_of
from tests.learners import learner_of
from tests.lm.test_trpo import rollout_of as lm_rollout
from tests.lm.worlds import word_policy
from theory.diagnose import diagnose

UPDATES = 5


def main() -> None:
    output = Path(sys.argv[1])
    torch.set_num_threads(1)
    accelerator = Accelerator()
    policy, other = gaussian_policy(), gaussian_policy(seed=1)
    compute(accelerator, output / "control", policy, rollout_of(policy), other)
    policy, other = word_policy(), word_policy(temperature=2.0)
    compute(accelerator, output / "lm", policy, lm_rollout(policy), other)
    leave(0)


def compute(accelerator: Accelerator, output: Path, policy: nn.Module, whole: Rollout, other: nn.Module) -> None:
    """Writes the change of every weight over some updates and the metrics of the last; and a diagnosis."""
    rows = whole.mask.shape[0]
    bounds = [0, 1, rows] if accelerator.num_processes == 2 else [0, rows]
    rollout = whole.rows(torch.arange(bounds[accelerator.process_index], bounds[accelerator.process_index + 1]))
    knobs = {"gamma": 0.9, "gae_lambda": 0.8, "horizon": 10, "micro_batch_cost": 9}
    diagnosis = diagnose(policy, other, rollout, accelerator=accelerator, **knobs)
    settings = optimize.Optimize(epochs=2, minibatches=2, micro_batch_cost=9, learning_rate=0.01)
    optimizer = optimize.make_optimizer(policy, settings)
    start = {name: x.detach().clone() for name, x in policy.named_parameters()}
    method = TRPO(cg_iterations=4, fisher_shares=2)
    batch, _ = method.estimate(rollout, STATE)
    wrapped, _ = accelerator.prepare(policy, optimizer)
    for update in range(UPDATES):
        learner = learner_of(wrapped, settings, optimizer=optimizer, accelerator=accelerator, update_index=update)
        metrics, _ = method.update(learner, rollout, rescored(policy, batch), STATE)
    change = torch.cat([(x.detach() - start[name]).flatten() for name, x in sorted(policy.named_parameters())])
    if accelerator.is_main_process:
        output.mkdir()
        save_file({"change": change}, output / "change.safetensors")
        facts = {"num_processes": accelerator.num_processes, "wrapped": type(wrapped).__name__}
        (output / "facts.json").write_text(json.dumps({**facts, "metrics": metrics, "diagnosis": diagnosis}))


def rescored(policy: nn.Module, batch: Batch) -> Batch:
    with torch.no_grad():
        return batch._replace(logprobs=policy(batch.inputs).logprobs.masked_fill(~batch.mask, 0.0))


if __name__ == "__main__":
    main()
