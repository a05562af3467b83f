"""Where all that was paid is alike, nothing was learned about the actions, and the policy has no reason to move.

What then still differs between advantages is the critic's error, or rounding. Whitening would make a full step of
either, and so would Adam, whose steps are of one size whatever the gradient's.
"""

from __future__ import annotations

from rlhf.algorithms.base import Method
from rlhf.deferred import deferred
from rlhf.errors import InputError

with deferred():
    import torch
    from accelerate import Accelerator
    from torch import Tensor

    from rlhf.core.advantages import monte_carlo_returns
    from rlhf.core.masked import rounding
    from rlhf.reduce import global_max, global_sum
    from rlhf.rollout import Batch, Rollout


def seen(method: Method, rollout: Rollout, batch: Batch, paid: Tensor, accelerator: Accelerator) -> dict[str, Tensor]:
    """The method's state `teaches`, and `paid` (one for each seed side by side) as it now is.

    Raises:
        InputError: Of seeds side by side, some were paid alike and others not. They share Adam's count of steps, so
            none of them can stand still while others step.
    """
    runs = [(rollout, batch)]
    if method.num_seeds > 1:
        rows = torch.arange(rollout.mask.shape[0]).chunk(method.num_seeds)
        runs = [(rollout.rows(own), batch.rows(own)) for own in rows]
    paid = torch.tensor([pays(acted, accelerator) for acted, _ in runs]) | paid
    taught = [
        teaches(method, acted, estimated, accelerator, paid=ever)
        for (acted, estimated), ever in zip(runs, paid.tolist(), strict=True)
    ]
    if any(taught) and not all(taught):
        numbers = [i for i, learns in enumerate(taught) if not learns]
        raise InputError(
            f"of the seeds side by side, those numbered {numbers} were paid alike in all they did, so that their "
            "policies have to stand still while the others step, which side by side they cannot; run its seeds one at "
            "a time."
        )
    return {"paid": paid, "teaches": torch.tensor(taught[0])}


def pays(rollout: Rollout, accelerator: Accelerator) -> bool:
    """Whether any reward of any rank is other than 0."""
    return bool(global_max(accelerator, (rollout.rewards != 0.0).any().long()))


def teaches(method: Method, rollout: Rollout, batch: Batch, accelerator: Accelerator, *, paid: bool) -> bool:
    """Whether what was paid tells one action from another.

    It does not where every action of every rank has the same return to go, to rounding, in episodes that are whole
    (what a cut one would still have earned is not known), or, for methods that compare the rows of a group, where no
    group's rows differ; and where the policy is still the reference, if its KL to one is charged.

    Args:
        paid: Some reward of the run so far was not 0. Before, a cut episode's value is the critic's invention.
    """
    charged = unknown = torch.zeros_like(rollout.mask)
    if method.needs_reference and rollout.ref_logprobs is not None:
        charged = rollout.logprobs != rollout.ref_logprobs
    if method.needs_groups:
        returns = batch.advantages.double()
    else:
        returns = _returns(rollout, method.discount)
        unknown = _cut(rollout) if paid else unknown
    inside = torch.stack([returns, -returns]).masked_fill(~rollout.mask, -torch.inf).flatten(1)
    open_ends = ((charged | unknown) & rollout.mask).any().double().expand(1)
    highest, minus_lowest, differs = global_max(accelerator, torch.cat([inside.amax(1), open_ends])).tolist()
    if method.needs_groups:
        return bool(differs or highest > 0.0 or minus_lowest > 0.0)
    return bool(differs or highest + minus_lowest > rounding(max(abs(highest), abs(minus_lowest))))


def share_of_groups(rollout: Rollout, accelerator: Accelerator) -> dict[str, float]:
    """`groups_alike`: of the groups of several rows, the share whose rows were paid alike; nothing without groups."""
    if rollout.groups is None:
        return {}
    scored = rollout.mask.any(1)
    scores = rollout.rewards[scored].double().sum(1)
    _, index, sizes = rollout.groups[scored].unique(return_inverse=True, return_counts=True)
    unset = scores.new_zeros(len(sizes))
    highest = unset.scatter_reduce(0, index, scores, "amax", include_self=False)
    lowest = unset.scatter_reduce(0, index, scores, "amin", include_self=False)
    alike = highest - lowest <= rounding(torch.maximum(highest.abs(), lowest.abs()))
    several = sizes > 1
    counts = torch.stack([(alike & several).sum(), several.sum()])
    same, groups = global_sum(accelerator, counts).tolist()
    return {"groups_alike": same / groups} if groups else {}


def words(method: Method, update: int) -> str:
    """What the user is told the first time."""
    rows = "the rows of each group" if method.needs_groups else "all rows"
    rest = "stays as it is" if method.needs_rewards else "moves by the rest of its loss alone"
    return (
        f"update {update}: {rows} were paid alike, so nothing was learned about the actions, and the policy {rest} "
        "until they differ (scores_alike in the metrics counts such updates). If they never do, look at the reward, or "
        "give starts from which some rows succeed and others fail."
    )


def _returns(rollout: Rollout, discount: float) -> Tensor:
    rewards = rollout.rewards.double()
    return monte_carlo_returns(rewards, torch.zeros_like(rewards), rollout.dones, gamma=discount)


def _cut(rollout: Rollout) -> Tensor:
    """Steps of episodes that go on after the row, or were cut at the end that they have in it."""
    dones = rollout.dones & rollout.mask
    followed = dones.flip(1).cumsum(1).flip(1) > 0
    terminals = rollout.dones if rollout.terminals is None else rollout.terminals
    return (rollout.mask & ~followed) | (dones & ~terminals)
