"""Run by test_two_processes.py, alone and under torchrun: updates by REINFORCE, of what lagging actors did, and of
demonstrations, episodes dealt unevenly over ranks."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms import bc, off_policy, reinforce
from rlhf.algorithms.catalogue import algorithm_of
from rlhf.reduce import MetricSums, global_sum
from rlhf.rollout import Rollout, single_steps
from rlhf.runs.launch import leave
from tests.batches import make_rollout
from tests.learners import learner_of
from tests.tabular import TabularPolicy

CELLS = ("behaviour_logprobs", "logprobs", "values", "next_values", "rewards", "dones", "mask")
BASELINES = get_args(get_type_hints(reinforce.Config)["baseline"])
UPDATES: dict[str, Any] = {
    **{baseline: reinforce.Config(baseline=baseline, critic_epochs=3) for baseline in BASELINES},
    "of another, by action": off_policy.Config(ratios="action"),
    "of another, by action, self-normalised": off_policy.Config(ratios="action", self_normalised=True),
    "of another, by trajectory": off_policy.Config(ratios="trajectory", units="episode"),
    "of another, by trajectory, self-normalised": off_policy.Config(
        ratios="trajectory", units="episode", self_normalised=True
    ),
    "of another, by decision": off_policy.Config(ratios="decision", baseline="none"),
    "cloned": bc.Config(),
}


def dealt(whole: Rollout, accelerator: Accelerator) -> Rollout:
    """Of two ranks the first has the two shortest episodes, and no column beyond them."""
    order = whole.mask.sum(1).argsort(stable=True)
    mine = order if accelerator.num_processes == 1 else (order[:2], order[2:])[accelerator.process_index]
    rows = whole.rows(mine)
    width = int(rows.mask.sum(1).max())
    assert accelerator.num_processes == 1 or (width < whole.mask.shape[1]) == accelerator.is_main_process
    cut = {name: getattr(rows, name)[:, :width] for name in CELLS}
    return replace(rows, inputs={name: x[:, :width] for name, x in rows.inputs.items()}, **cut)


def of_another(policy: TabularPolicy, accelerator: Accelerator) -> Rollout:
    """What was done with other probabilities than the policy's own."""
    rollout = dealt(make_rollout(policy, rows=7, steps=5), accelerator)
    return replace(rollout, behaviour_logprobs=rollout.logprobs + 0.1 * rollout.rewards)


def change(name: str, accelerator: Accelerator) -> Tensor:
    """What one update does to every weight, in one vector: REINFORCE's of one step, the other's of two."""
    config, policy = UPDATES[name], TabularPolicy(4, 3)
    own = isinstance(config, reinforce.Config)
    # Behaviour cloning is no choice of method, so it is not in the catalogue.
    algorithm = bc if isinstance(config, bc.Config) else algorithm_of(config)
    rollout = dealt(make_rollout(policy, rows=7, steps=5), accelerator) if own else of_another(policy, accelerator)
    plain = optimize.Config(learning_rate=0.5, epochs=1 if own else 2, whiten="none", max_gradient_norm=0.0)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    start = torch.cat([parameter.detach().clone().flatten() for parameter in policy.parameters()])
    wrapped, _ = accelerator.prepare(policy, optimizer)
    batch = single_steps(algorithm.estimate(rollout, {}, config)[0])
    learner = learner_of(wrapped, plain, optimizer=optimizer, accelerator=accelerator)
    if own:
        reinforce.update(learner, rollout, batch, {}, config)
    else:
        optimize.update(learner, batch, partial(algorithm.loss, state={}, config=config))
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]) - start


def effective_samples(ratios: str, accelerator: Accelerator) -> Tensor:
    rollout, config = of_another(TabularPolicy(4, 3), accelerator), off_policy.Config(ratios=ratios)
    _, cells = off_policy.estimate(rollout, {}, config)
    sums = MetricSums()
    sums.add(cells, rollout.mask, rollout.dones)
    metrics = sums.reduce(accelerator) | {"steps": float(global_sum(accelerator, rollout.mask.sum()))}
    return off_policy.adapt({}, metrics, config)["effective_samples"].view(1)


def main() -> None:
    accelerator = Accelerator(cpu=True)
    result = {name: change(name, accelerator) for name in UPDATES}
    result |= {ratios: effective_samples(ratios, accelerator) for ratios in ("action", "trajectory", "decision")}
    result["processes"] = torch.tensor(accelerator.num_processes)
    if accelerator.is_main_process:
        save_file(result, Path(sys.argv[1]) / "result.safetensors")
    leave(0)


if __name__ == "__main__":
    main()
