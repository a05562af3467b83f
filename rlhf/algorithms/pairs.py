"""What the methods that learn from pairs share: rows that people compared, one chosen, one rejected.

Of a pair's two rows the chosen one is paid more than 0 and the other less; the difference is the margin that people
gave, 1 where they gave none.
"""

from __future__ import annotations

from rlhf.deferred import deferred
from rlhf.errors import InputError

with deferred():
    import torch
    from torch import Tensor

    from rlhf.core.preferences import correct
    from rlhf.rollout import Batch, Rollout, batch_of


def pair_batch(rollout: Rollout) -> Batch:
    """Rows whose actions all count the same, each averaged over once, at its last action.

    Raises:
        InputError: The rows are not in pairs.
    """
    require_pairs(rollout)
    batch = batch_of(rollout, advantages=rollout.mask.to(rollout.rewards), units=rollout.dones.to(rollout.rewards))
    return batch._replace(rewards=rollout.rewards)


def require_pairs(rollout: Rollout) -> None:
    """Refuses rows that are not two and two in a group, one paid and one charged."""
    signs = rollout.rewards.sum(1).sign()
    if rollout.groups is not None:
        pairs, counts = rollout.groups.unique(return_counts=True)
        of_pair = torch.searchsorted(pairs, rollout.groups)
        balance = torch.zeros_like(pairs, dtype=signs.dtype).index_add(0, of_pair, signs)
        if bool((counts == 2).all() & (balance == 0).all() & (signs != 0).all()):
            return
    raise InputError(
        "the rows of the rollout are not in pairs: each group needs two rows, the chosen one with a reward above 0 and "
        "the rejected one with one below, as rlhf.Preferences gives them."
    )


def row_sums(cells: Tensor, batch: Batch) -> Tensor:
    """`(B,)` sums over the actions of each row."""
    return torch.where(batch.advantages > 0, cells, 0.0).sum(1)


def margins(scores: Tensor, batch: Batch) -> Tensor:
    """`(B / 2,)` scores of the chosen rows less those of the rejected ones; rows of a pair stand side by side."""
    assert batch.rewards is not None
    return (scores * batch.rewards.sum(1).sign()).view(-1, 2).sum(1)


def at_ends(of_pairs: Tensor, batch: Batch) -> Tensor:
    """`(B, T)` terms: what is said of a pair, at the last action of both its rows."""
    return of_pairs.repeat_interleave(2).unsqueeze(1) * batch.units


def shown(losses: Tensor, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
    """`(B,)` what is logged of a batch of pairs."""
    assert batch.rewards is not None
    chosen = (batch.rewards.sum(1) > 0).to(scores)
    of_pairs = {
        "preference_loss": losses,
        "accuracy": correct(margins(scores, batch)),
        "margin": margins(scores, batch),
        "chosen_score": (scores * chosen).view(-1, 2).sum(1),
        "rejected_score": (scores * (1.0 - chosen)).view(-1, 2).sum(1),
    }
    return {name: values.detach().repeat_interleave(2) for name, values in of_pairs.items()}
