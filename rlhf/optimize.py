"""The gradient loop, written once: epochs, minibatches, micro-batches, global normalisation, clipping, early stop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from rlhf.deferred import deferred
from rlhf.errors import InputError, NonFiniteError, memory_ended
from rlhf.settings import Count, Positive, Settings, ShareBelowOne, Size, Total, TotalOrNone

with deferred():
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn
    from torch.distributed.tensor import DTensor

    from rlhf.budget import bare, even_micro_batches, filler_of
    from rlhf.core import kl
    from rlhf.core.random import hashed_orders
    from rlhf.reduce import MetricSums, anywhere, gather_rows, global_gradients, global_max, global_sum, global_whiten
    from rlhf.rollout import Batch, PolicyOutput, require_finite
    from rlhf.sharded import is_sharded, local

Loss = Callable[[PolicyOutput, Batch], tuple[Tensor, dict[str, Tensor]]]

# Law 2: right after acting the training forward must repeat the sampler's probabilities, but for a few actions: where
# two experts of a mixture tie to within rounding, another one may be chosen. Whatever is wrong shows in most of them.
MAX_SHARE = 0.05

# Of policies that memory ended for, the micro_batch_cost that fits.
_FITTING: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Optimize(Settings):
    """How a batch becomes optimizer steps (AdamW; Loshchilov and Hutter, 2019)."""

    learning_rate: Positive = 3e-4
    """Step size of AdamW."""
    critic_learning_rate: Size = 0.0
    """That of the parameters which only the values depend on; 0: the same. Beside a LoRA adapter, which takes ten times
    the rate of all weights, a value head on a wide model wants less."""
    schedule: Literal["constant", "linear"] = "constant"
    """linear: the learning rate falls to 0 over the run."""
    warmup_updates: TotalOrNone = 0
    """Updates over which the learning rate rises to its full size; 0 is off."""
    epochs: Count = 4
    """Passes over each batch."""
    minibatches: Count = 1
    """Optimizer steps per pass; each takes a global share of the rows."""
    micro_batch_cost: Total = 16384
    """Most row costs (the collector's unit; tokens of language models, padding included) scored at once on one process;
    changes memory and speed, not results."""
    max_gradient_norm: Size = 1.0
    """The gradient is scaled down to this norm; 0 is off."""
    target_kl: Size = 0.0
    """The update ends before a step whose minibatch shows more than this KL(old || new), nats per action; 0 is off."""
    whiten: Literal["usual", "none", "minibatch", "batch"] = "usual"
    """Over what advantages get mean 0 and variance 1; usual: the whole batch, unless the method goes with none."""
    importance_cap: Positive = 2.0
    """Where another policy than the learner acted (actors that lag, half precision, another engine), advantages are
    weighed by the ratio learner / actor, at most this (truncated importance sampling)."""
    importance_floor: Size = 0.0
    """Above 0, the advantage of such an action is 0 where the ratio is below this or above the cap (IcePop: 0.5 and a
    cap of 5); 0 is off."""
    adam_beta2: ShareBelowOne = 0.999
    """Decay of AdamW's second moment."""
    adam_eps: Size = 1e-8
    """AdamW's epsilon."""
    weight_decay: Size = 0.0
    """AdamW's weight decay."""

    def __post_init__(self) -> None:
        if self.importance_floor > min(self.importance_cap, 1.0) or (
            self.importance_floor > 0 and self.importance_cap < 1
        ):
            raise InputError(
                f"importance_floor is {self.importance_floor} and importance_cap {self.importance_cap}: actions on "
                "which actor and learner agree, whose ratio is 1, would count nothing; the floor must be below 1 and "
                "the cap above."
            )

    @property
    def critic_over(self) -> float:
        """The critic's step size over that of the rest."""
        return self.critic_learning_rate / self.learning_rate if self.critic_learning_rate else 1.0

    @property
    def passes(self) -> list[str]:
        """What the order of each epoch's rows is drawn for."""
        return [f"minibatches of epoch {epoch}" for epoch in range(self.epochs)]

    @property
    def whitens_batch(self) -> bool:
        """One minibatch is the batch."""
        return self.whiten in ("usual", "batch") or (self.whiten == "minibatch" and self.minibatches == 1)

    @property
    def whitens_minibatches(self) -> bool:
        return self.whiten == "minibatch" and self.minibatches > 1


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What takes the optimizer steps, and where in the run it is."""

    policy: nn.Module
    """As Accelerate prepared it."""
    optimizer: torch.optim.Optimizer
    config: Optimize
    accelerator: Accelerator
    seed: int
    update_index: int = 0
    progress: float = 0.0
    """Share of the run that is done, in [0, 1): what linear schedules follow."""

    @property
    def module(self) -> Any:
        """The policy itself, without what data parallelism puts around it."""
        return self.accelerator.unwrap_model(self.policy)


def make_optimizer(policy: Any, config: Optimize) -> torch.optim.Optimizer:
    """AdamW over what is trainable, fused where the device has it; the critic in a group of its own if its step size
    is."""
    trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    own = {id(parameter) for parameter in policy.critic_parameters()} if config.critic_learning_rate else set()
    groups: list[dict[str, Any]] = [{"params": [p for p in trainable if id(p) not in own], "over": 1.0}]
    if own:
        groups.append({"params": [p for p in trainable if id(p) in own], "over": config.critic_over})
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(0.9, config.adam_beta2),
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def gradient(
    policy: nn.Module, rows: Batch, filler: Batch, loss: Loss, *, accelerator: Accelerator, micro_batch_cost: int
) -> dict[str, float]:
    """Puts the gradient of sum(weights * terms) / sum(units), both over all ranks, into `.grad`; returns the metrics.

    Where memory ends, on whichever rank, all begin again with half of what was scored at once, and stay with what fits.

    Args:
        rows: This rank's rows of the minibatch; there may be none.
        filler: A row, or block of rows, whose weight is ignored: ranks with fewer micro-batches run it, so that all
            take part in every collective.

    Raises:
        NonFiniteError: On every rank, if any rank's policy output or loss is NaN or infinite.
        OutOfMemoryError: On every rank, if memory ends for a row, or block of rows, alone.
    """
    total = global_sum(accelerator, rows.units.sum(dtype=torch.float64))
    scale = 1.0 / torch.where(total > 0, total, 1.0)
    budget = affordable(policy, micro_batch_cost)
    while True:
        parts = even_micro_batches(rows, filler, accelerator=accelerator, micro_batch_cost=budget, policy=policy)
        for parameter in policy.parameters():
            parameter.grad = None
        sums, finite, seen, ended = _passes(policy, parts, loss, scale, accelerator)
        if not anywhere(accelerator, bool(ended)):
            break
        budget = _halved(parts, budget, ended, accelerator)
        _FITTING[bare(policy)] = budget
    if not is_sharded(policy):
        global_gradients(accelerator, policy.parameters())
    _stop_if_not_finite(accelerator, finite, seen)
    return sums.reduce(accelerator) | ({"micro_batch_cost": float(budget)} if budget < micro_batch_cost else {})


def affordable(policy: nn.Module, micro_batch_cost: int) -> int:
    """The budget, or less where memory has ended for this policy before."""
    return min(micro_batch_cost, _FITTING.get(bare(policy), micro_batch_cost))


def _passes(
    policy: nn.Module, parts: list[Batch], loss: Loss, scale: Tensor, accelerator: Accelerator
) -> tuple[MetricSums, Tensor, list[tuple[Batch, PolicyOutput, Tensor]], str]:
    """Adds this rank's gradient of each part; the last that is returned says how memory ended, if it did."""
    sums, finite, seen = MetricSums(), torch.ones((), dtype=torch.bool, device=scale.device), []
    try:
        # Ranks add up their gradients when none of them has to begin again; where they hold parts only, layer by layer.
        apart = accelerator.num_processes > 1 and not is_sharded(policy)
        with accelerator.no_sync(policy) if apart else contextlib.nullcontext():
            for micro in parts:
                output = policy(micro.inputs)
                terms, metrics = loss(output, micro)
                weighted = micro.weights * terms
                objective = weighted.masked_fill(~micro.mask, 0.0).sum()
                # Not Accelerate's, which divides by what it takes for gradient accumulation.
                (objective * scale.to(objective.dtype)).backward()
                sums.add({"loss": weighted, **metrics}, micro.mask)
                finite = finite & torch.isfinite(objective.detach())
                seen.append((micro, type(output)(*(tensor.detach() for tensor in output)), terms.detach()))
    except (MemoryError, RuntimeError) as error:
        # The others wait for this one in the middle of a pass.
        if is_sharded(policy) or not memory_ended(error):
            raise
        return sums, finite, [], str(error) or "MemoryError"
    return sums, finite, seen, ""


def _halved(parts: list[Batch], budget: int, ended: str, accelerator: Accelerator) -> int:
    """Half of what the costliest micro-batch of any rank took, if that can be cut."""
    sizes = [len(part.mask) if part.blocks is None else len(part.blocks.unique()) for part in parts]
    costs = [int(part.costs.sum()) for part in parts]
    most, cost = global_max(accelerator, torch.tensor([max(sizes), max(costs)], device=parts[0].mask.device)).tolist()
    if most <= 1:
        raise torch.OutOfMemoryError(ended or "out of memory on another process")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return max(1, min(budget, cost) // 2)


def words(asked: int, fits: int, update: int) -> str:
    """What the user is told where memory ended for so much at once."""
    return (
        f"update {update}: memory ended for micro_batch_cost {asked}, so rows were cut into smaller parts and their "
        f"gradients added up, which is the same gradient. {fits} fits; --resume and later runs need not find that out "
        "again if they are given it."
    )


def update(
    learner: Learner, batch: Batch, loss: Loss, *, after_step: Callable[[], None] | None = None
) -> dict[str, float]:
    """Epochs of minibatch steps on one batch; returns metrics averaged over the steps, `_max` ones by maximum.

    `approx_kl_k3_last` is averaged over the last steps, as many as an epoch has, so it shows how far the update came;
    if `target_kl` ended it, it is that of the minibatch that did.

    Args:
        loss: Per-action terms and metrics, the algorithm's state and config already bound.
        after_step: Called after each optimizer step, as target networks need it.

    Raises:
        NonFiniteError: Before the optimizer step that a NaN or infinity would have entered.
        RuntimeError: The first minibatch shows that acting and scoring disagree.
    """
    policy, optimizer, config, accelerator = learner.policy, learner.optimizer, learner.config, learner.accelerator
    rate = set_learning_rate(learner)
    if config.whitens_batch:
        batch = whitened(batch, accelerator)
    parameters = list(policy.parameters())
    filler = filler_of(batch)
    history: list[dict[str, float]] = []
    stopped_at: dict[str, float] = {}
    for rows in minibatches(learner, batch, config.passes, config.minibatches):
        if config.whitens_minibatches:
            rows = whitened(rows, accelerator)
        optimizer.zero_grad()
        metrics = gradient(
            policy, rows, filler, loss, accelerator=accelerator, micro_batch_cost=config.micro_batch_cost
        )
        drop_unstepped(optimizer, parameters)
        if not history:
            check_identity(metrics, accelerator)
            if config.target_kl and "approx_kl_k3" not in metrics:
                raise InputError(f"target_kl is {config.target_kl}, but this method measures no KL; set it to 0.")
        elif 0.0 < config.target_kl < metrics["approx_kl_k3"]:
            # What the update came to, which adapted coefficients have to see.
            stopped_at = {"approx_kl_k3_last": metrics["approx_kl_k3"]}
            break
        metrics["gradient_norm"] = _clip(parameters, config.max_gradient_norm)
        if not math.isfinite(metrics["gradient_norm"]):
            raise NonFiniteError(
                f"the gradient is not finite; the minibatch held samples {rows.sample_ids[:8].tolist()}."
            )
        optimizer.step()
        if after_step is not None:
            after_step()
        history.append(metrics)
    optimizer.zero_grad()
    return averaged(history, config) | stopped_at | {"learning_rate": rate, "gradient_steps": len(history)}


def drop_unstepped(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Takes the gradient from what the optimizer does not step at present, so that it has no part in the norm."""
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in parameters:
        if id(parameter) not in stepped:
            parameter.grad = None


def whitened(batch: Batch, accelerator: Accelerator) -> Batch:
    """The batch with advantages of mean 0 and variance 1 over all ranks; 0 where they differ by rounding only."""
    sources = (batch.returns, batch.values)
    return batch._replace(advantages=global_whiten(accelerator, batch.advantages, batch.mask, *sources))


def set_learning_rate(learner: Learner) -> float:
    """Sets the step sizes that schedule and warm-up give at this point of the run; returns the actor's."""
    config = learner.config
    rate = config.learning_rate * (1.0 - learner.progress if config.schedule == "linear" else 1.0)
    if learner.update_index < config.warmup_updates:
        rate *= (learner.update_index + 1) / config.warmup_updates
    for group in learner.optimizer.param_groups:
        group["lr"] = rate * group.get("over", 1.0)
    return rate


def averaged(history: list[dict[str, float]], config: Optimize) -> dict[str, float]:
    """Metrics of an update from those of its steps: means, `_max` ones by maximum."""
    metrics = {}
    for name in history[0]:
        values = [row[name] for row in history]
        metrics[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    # Only before the first step do acting and scoring have to agree.
    for name in ("ratio_error_max", "ratio_off_fraction", "ratio_far_fraction"):
        if name in metrics:
            metrics[name] = history[0][name]
    if "approx_kl_k3" in metrics:
        last_pass = history[-config.minibatches :]
        metrics["approx_kl_k3_last"] = sum(row["approx_kl_k3"] for row in last_pass) / len(last_pass)
    return metrics


def minibatches(learner: Learner, batch: Batch, purposes: list[str], num_parts: int) -> Iterator[Batch]:
    """This rank's rows of each of so many parts of all rows, cut from one global order for each purpose.

    Rows of a block stay together, so parts hold as many blocks, not rows.
    """
    accelerator = learner.accelerator
    acted, _ = gather_rows(accelerator, batch.mask.any(dim=1).long())
    ids, offset = gather_rows(accelerator, batch.sample_ids)
    blocks = None if batch.blocks is None else gather_rows(accelerator, batch.blocks)[0]
    require_rows(ids.shape[0] if blocks is None else blocks.unique().shape[0], num_parts)
    if num_parts == 1 and bool(acted.all()):
        # The order within a minibatch plays no part, so a whole batch need not be drawn or copied.
        yield from (batch for _ in purposes)
        return
    if blocks is None:
        orders = list(hashed_orders(learner.seed, purposes, learner.update_index, ids))
        # Rows without an action, such as padding or samples that lack a score, have nothing to step on.
        parts = [order[acted[order] > 0].tensor_split(num_parts) for order in orders]
    else:
        parts = [
            _rows_of_blocks(blocks, order, acted, num_parts)
            for order in hashed_orders(learner.seed, purposes, learner.update_index, blocks.unique())
        ]
    for part in parts:
        for chosen in part:
            if chosen.shape[0]:
                yield _local_rows(batch, chosen, offset)


def _rows_of_blocks(blocks: Tensor, order: Tensor, acted: Tensor, num_parts: int) -> list[Tensor]:
    """Rows of so many parts of the blocks, in this order of them; blocks without an action are left out."""
    kept = [(blocks == block).nonzero().squeeze(1) for block in blocks.unique()[order]]
    kept = [rows for rows in kept if bool(acted[rows].any())]
    numbers = torch.arange(len(kept)).tensor_split(num_parts)
    return [torch.cat([kept[i] for i in part.tolist()]) if len(part) else blocks.new_zeros(0) for part in numbers]


def require_rows(num_rows: int, num_parts: int) -> None:
    """Refuses more parts than there are rows, or blocks of rows."""
    if num_parts > num_rows:
        raise InputError(
            f"a rollout has {num_rows} rows, which make no {num_parts} parts; lower minibatches, or TRPO's "
            "fisher_shares."
        )


def _clip(parameters: list[nn.Parameter], most: float) -> float:
    """Scales the gradient down to the norm `most` (0 is off); returns its norm before that."""
    # Accelerate's own looks for sharded tensors at every step, which on control costs as much as the clipping.
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if most and gradients:
        torch._foreach_mul_([local(gradient) for gradient in gradients], (most / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)


def _local_rows(batch: Batch, chosen: Tensor, offset: int) -> Batch:
    count = batch.sample_ids.shape[0]
    mine = chosen[(chosen >= offset) & (chosen < offset + count)] - offset
    return batch.rows(mine)


def _stop_if_not_finite(
    accelerator: Accelerator, finite: Tensor, seen: list[tuple[Batch, PolicyOutput, Tensor]]
) -> None:
    if not int(global_max(accelerator, (~finite).long())):
        return
    for micro, output, terms in seen:
        for name, tensor in (*output._asdict().items(), ("loss", terms)):
            # What the output says of each cell may be more than one number.
            outside = ~micro.mask.view(*micro.mask.shape, *[1] * (tensor.dim() - 2))
            require_finite(name, tensor.masked_fill(outside, 0.0), micro.sample_ids)
    raise NonFiniteError("the loss is not finite on another process; its message names the samples.")


def check_identity(metrics: dict[str, float], accelerator: Accelerator) -> None:
    """Raises RuntimeError if the training forward does not repeat the probabilities of acting (law 2)."""
    half = accelerator.mixed_precision != "no"
    share = metrics.get("ratio_far_fraction" if half else "ratio_off_fraction", 0.0)
    if share > MAX_SHARE:
        raise RuntimeError(
            f"right after acting, the training forward gives {share:.0%} of the actions another probability (|ratio - "
            f"1| above {kl.FAR if half else kl.OFF:g}, which rounding explains in {MAX_SHARE:.0%} at most; the largest "
            f"is {metrics['ratio_error_max']:.2e}). Likely causes: dropout or another source of noise in the model, "
            "weights in half precision without --mixed-precision, a cache or position_ids that the model reads "
            "differently when decoding, or an attention kernel that ignores the mask."
        )
