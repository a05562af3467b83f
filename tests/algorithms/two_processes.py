"""Run by test_two_processes.py, alone and under torchrun: updates by REINFORCE, of what lagging actors did, and of
demonstrations, episodes spread unevenly over ranks."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.algorithms.bradley_terry import BradleyTerry
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.dpo import DPO
from rlhf.algorithms.kto import KTO
from rlhf.algorithms.off_policy import OffPolicy
from rlhf.algorithms.reinforce import Reinforce
from rlhf.loop import framed
from rlhf.reduce import MetricSums, global_sum
from rlhf.rollout import Rollout
from rlhf.runs.launch import leave
from tests.algorithms.compared_rows import labelled, with_worth
from tests.algorithms.test_rows import GSPO, Pairs
from tests.batches import make_rollout
from tests.learners import learner_of
from tests.tabular import TabularPolicy

CELLS = ("behaviour_logprobs", "logprobs", "values", "next_values", "rewards", "dones", "mask", "ref_logprobs")
BASELINES = get_args(get_type_hints(Reinforce)["baseline"])
UPDATES: dict[str, Method] = {
    **{baseline: Reinforce(baseline=baseline, critic_epochs=3) for baseline in BASELINES},
    "of another, by action": OffPolicy(ratios="action"),
    "of another, by action, self-normalised": OffPolicy(ratios="action", self_normalised=True),
    "of another, by trajectory": OffPolicy(ratios="trajectory", units="episode"),
    "of another, by trajectory, self-normalised": OffPolicy(ratios="trajectory", units="episode", self_normalised=True),
    "of another, by decision": OffPolicy(ratios="decision", baseline="none"),
    "cloned": BehaviourCloning(),
    "by whole rows": GSPO(),
    "by pairs": Pairs(),
    "DPO": DPO(),
    "IPO": DPO(loss_type="ipo"),
    "KTO": KTO(),
    "a reward model": BradleyTerry(margin_coef=0.5, centring_coef=0.1),
}


def share_of(whole: Rollout, accelerator: Accelerator) -> Rollout:
    """Of two ranks the first has the two shortest episodes, and no column beyond them."""
    order = whole.mask.sum(1).argsort(stable=True)
    mine = order if accelerator.num_processes == 1 else (order[:2], order[2:])[accelerator.process_index]
    rows = whole.rows(mine)
    width = int(rows.mask.sum(1).max())
    assert accelerator.num_processes == 1 or (width < whole.mask.shape[1]) == accelerator.is_main_process
    cut = {name: getattr(rows, name)[:, :width] for name in CELLS if getattr(rows, name) is not None}
    return replace(rows, inputs={name: x[:, :width] for name, x in rows.inputs.items()}, **cut)


def of_another(policy: TabularPolicy, accelerator: Accelerator) -> Rollout:
    """What was done with other probabilities than the policy's own."""
    rollout = share_of(make_rollout(policy, rows=7, steps=5), accelerator)
    return replace(rollout, behaviour_logprobs=rollout.logprobs + 0.1 * rollout.rewards)


def in_pairs(policy: TabularPolicy, accelerator: Accelerator) -> Rollout:
    """Rows of like length are a pair: one of them on the first of two ranks, three on the second."""
    return share_of(paired(make_rollout(policy, rows=8, steps=5)), accelerator)


def paired(rollout: Rollout) -> Rollout:
    groups = torch.empty(8, dtype=torch.int64)
    groups[rollout.mask.sum(1).argsort(stable=True)] = torch.arange(8) // 2
    return replace(rollout, groups=groups)


def given(method: Method, policy: TabularPolicy, accelerator: Accelerator) -> Rollout:
    """Rows that the method can learn from."""
    if method.learns_from == "labels":
        return share_of(labelled(policy), accelerator)
    if method.learns_from == "pairs":
        rollout = paired(make_rollout(policy, rows=8, steps=5))
        order = torch.argsort(rollout.groups, stable=True)
        pairs = with_worth(rollout.rows(order), [0.5, -0.5, -1.0, 1.0, 1.5, -1.5, 2.0, -2.0], torch.arange(8) // 2)
        return share_of(pairs, accelerator)
    if method.rows != "steps":
        return in_pairs(policy, accelerator)
    if isinstance(method, Reinforce):
        return share_of(make_rollout(policy, rows=7, steps=5), accelerator)
    return of_another(policy, accelerator)


def change(name: str, accelerator: Accelerator) -> Tensor:
    """What one update does to every weight, in one vector: REINFORCE's of one step, the other's of two."""
    method, policy = UPDATES[name], TabularPolicy(4, 3)
    own, rollout = isinstance(method, Reinforce), given(method, policy, accelerator)
    # Of whole rows there are more micro-batches on one rank than on the other.
    plain = optimize.Optimize(
        learning_rate=0.5, epochs=1 if own else 2, micro_batch_cost=6, whiten="none", max_gradient_norm=0.0
    )
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.5)
    start = torch.cat([parameter.detach().clone().flatten() for parameter in policy.parameters()])
    wrapped, _ = accelerator.prepare(policy, optimizer)
    batch = framed(method, policy, rollout, method.estimate(rollout, {})[0])
    learner = learner_of(wrapped, plain, optimizer=optimizer, accelerator=accelerator)
    method.update(learner, rollout, batch, {})
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]) - start


def effective_samples(ratios: str, accelerator: Accelerator) -> Tensor:
    rollout, method = of_another(TabularPolicy(4, 3), accelerator), OffPolicy(ratios=ratios)
    _, cells = method.estimate(rollout, {})
    sums = MetricSums()
    sums.add(cells, rollout.mask, rollout.dones)
    metrics = sums.reduce(accelerator) | {"steps": float(global_sum(accelerator, rollout.mask.sum()))}
    return method.adapt({}, metrics)["effective_samples"].view(1)


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
