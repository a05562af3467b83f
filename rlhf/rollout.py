"""The seam: what acting hands to learning. Everything after acting sees these `(B, T)` tensors and nothing else."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.core import kl
from rlhf.errors import InputError, NonFiniteError


class PolicyOutput(NamedTuple):
    """How a policy scores actions that were already taken; each `(B, T)`, nats where it is a logarithm."""

    logprobs: Tensor
    values: Tensor
    entropy: Tensor


class Categorical(NamedTuple):
    """What a policy may do at each step: softmax(logits), `(B, T, V)`."""

    logits: Tensor

    def kl(self, other: Categorical) -> Tensor:
        """`(B, T)` KL(self || other), nats."""
        return kl.categorical_kl(self.logits, other.logits)


class Gaussian(NamedTuple):
    """What a policy may do at each step: a diagonal Gaussian, both `(B, T, A)`."""

    mean: Tensor
    log_std: Tensor

    def kl(self, other: Gaussian) -> Tensor:
        """`(B, T)` KL(self || other), nats."""
        return kl.gaussian_kl(self.mean, self.log_std, other.mean, other.log_std)


class Collected(NamedTuple):
    """One rollout, its metrics (already global over ranks), and one record a sample for people to read."""

    rollout: Rollout
    metrics: dict[str, float]
    samples: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """Actions, how likely they were, and what they were paid: `B` rows of `T` actions, checked at construction.

    Cells outside `mask` are zeroed here, so garbage in padding cannot reach a number (0 x NaN is NaN).

    Args:
        inputs: What the policy needs to score the same actions again; each tensor has leading axis B.
        behaviour_logprobs: Of the taken action under the distribution that sampled it, nats.
        logprobs: Of the same action under the learner at the start of the update, by the training forward. A task may
            leave them out, together with the values: `acting` then fills them.
        values: V(s_t) of the learner; zeros without a critic.
        next_values: V of the state the step led to: 0 if it is terminal, the critic's estimate of the final
            observation if the episode was only cut off.
        rewards: After the collector's scaling and clipping, before any KL charge.
        dones: True on an episode's last step, terminated or cut: nothing flows back across it.
        mask: True where the policy acted; False on padding and autoreset steps.
        sample_ids: `(B,)` int64 identity of each row within the global rollout.
        costs: `(B,)` int64, what the micro-batch budget counts.
        ref_logprobs: Of the taken action under the reference policy, if there is one.
        groups: `(B,)` int64, which rows share a start.
        terminals: The state the step led to is terminal; None: every done is.
        next_inputs: The states that the steps led to, as the policy takes them; None where no episode is ever cut.
        importance: Ratio learner / actor, truncated, that advantages are weighed by; None: the learner itself acted.

    Raises:
        ValueError: A tensor has the wrong shape or type.
        NonFiniteError: A number inside the mask is NaN or infinite.
    """

    inputs: dict[str, Tensor]
    behaviour_logprobs: Tensor
    rewards: Tensor
    dones: Tensor
    mask: Tensor
    sample_ids: Tensor
    costs: Tensor
    logprobs: Tensor = None  # type: ignore[assignment]
    values: Tensor = None  # type: ignore[assignment]
    next_values: Tensor = None  # type: ignore[assignment]
    ref_logprobs: Tensor | None = None
    groups: Tensor | None = None
    terminals: Tensor | None = None
    next_inputs: dict[str, Tensor] | None = None
    importance: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mask.dim() != 2 or self.mask.dtype != torch.bool:
            raise ValueError(f"mask is {_describe(self.mask)}; it must be a bool tensor of shape (B, T).")
        for name in (
            "behaviour_logprobs",
            "logprobs",
            "values",
            "next_values",
            "rewards",
            "ref_logprobs",
            "importance",
        ):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tensor.shape != self.mask.shape or not tensor.is_floating_point():
                raise ValueError(f"{name} is {_describe(tensor)}; it must be floating point, {tuple(self.mask.shape)}.")
            zeroed = tensor.masked_fill(~self.mask, 0.0)
            require_finite(name, zeroed, self.sample_ids)
            object.__setattr__(self, name, zeroed)
        said = [tensor is not None for tensor in (self.logprobs, self.values, self.next_values)]
        if any(said) and not all(said):
            raise ValueError("logprobs, values and next_values are the learner's: give all three, or none of them.")
        for name in ("dones", "terminals"):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.shape != self.mask.shape or tensor.dtype != torch.bool):
                raise ValueError(f"{name} is {_describe(tensor)}; it must be bool, {tuple(self.mask.shape)}.")
        rows = self.mask.shape[0]
        for name in ("sample_ids", "costs", "groups"):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.shape != (rows,) or tensor.dtype != torch.int64):
                raise ValueError(f"{name} is {_describe(tensor)}; it must be int64, ({rows},).")
        for part in ("inputs", "next_inputs"):
            for name, tensor in (getattr(self, part) or {}).items():
                if tensor.dim() == 0 or tensor.shape[0] != rows:
                    raise ValueError(f"{part}[{name!r}] is {_describe(tensor)}; its leading axis must be {rows}.")

    @classmethod
    def unchecked(cls, tensors: dict[str, Any]) -> Rollout:
        """For tensors that were checked once and cannot be looked into now, as under `torch.func.vmap`."""
        rollout = object.__new__(cls)
        for field in fields(cls):
            default = None if field.default is MISSING else field.default
            object.__setattr__(rollout, field.name, tensors.get(field.name, default))
        return rollout

    @classmethod
    def demonstrations(cls, inputs: dict[str, Tensor], mask: Tensor, sample_ids: Tensor, costs: Tensor) -> Rollout:
        """Actions of a demonstrator: nothing is known of them but the actions, so every number is 0."""
        zeros = torch.zeros(mask.shape, device=mask.device)
        return cls(
            inputs=inputs,
            behaviour_logprobs=zeros,
            logprobs=zeros,
            values=zeros,
            next_values=zeros,
            rewards=zeros,
            dones=torch.zeros_like(mask),
            mask=mask,
            sample_ids=sample_ids,
            costs=costs,
        )

    def unscored(self) -> Rollout:
        """With zeros for what the learner would say, for methods that do not ask."""
        zeros = torch.zeros_like(self.rewards)
        return replace(self, logprobs=zeros, values=zeros, next_values=zeros)

    def rows(self, index: Tensor) -> Rollout:
        """The rows `index` (int64 or bool), in that order."""
        return replace(self, **{field.name: _rows(getattr(self, field.name), index) for field in fields(self)})

    def to(self, device: torch.device) -> Rollout:
        return replace(self, **{field.name: _to(getattr(self, field.name), device) for field in fields(self)})


class Batch(NamedTuple):
    """What a loss sees. A step minimises `sum(weights * terms) / sum(units)`, both sums global.

    `units` says what is averaged over: the mask (per action), 1 / length (per sequence), last steps (per episode).
    A tuple, so that `torch.func.vmap` and `optimize` can map over its tensors; fields as in `Rollout`. Rows with the
    same number in `blocks` `(B,)` int64 stay together in minibatches and micro-batches; None: each row stands alone.
    """

    inputs: dict[str, Tensor]
    behaviour_logprobs: Tensor
    logprobs: Tensor
    values: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    returns: Tensor
    mask: Tensor
    weights: Tensor
    units: Tensor
    sample_ids: Tensor
    costs: Tensor
    importance: Tensor | None = None
    # Only where the loss forms targets of its own.
    rewards: Tensor | None = None
    terminals: Tensor | None = None
    blocks: Tensor | None = None

    def rows(self, index: Tensor) -> Batch:
        """The rows `index` (int64 or bool), in that order."""
        return Batch(*(_rows(value, index) for value in self))


def batch_of(
    rollout: Rollout,
    *,
    advantages: Tensor,
    returns: Tensor | None = None,
    weights: Tensor | None = None,
    units: Tensor | None = None,
) -> Batch:
    """A rollout with its estimates; cells of the estimates outside the mask are zeroed.

    Args:
        returns: What values are fitted to; None where there is no critic: zeros.
        weights: Of each action's terms; None: 1.
        units: What is averaged over; None: actions.
    """
    ones, outside = rollout.mask.to(rollout.rewards), ~rollout.mask
    returns = torch.zeros_like(ones) if returns is None else returns
    return Batch(
        inputs=rollout.inputs,
        behaviour_logprobs=rollout.behaviour_logprobs,
        logprobs=rollout.logprobs,
        values=rollout.values,
        ref_logprobs=rollout.ref_logprobs,
        advantages=advantages.masked_fill(outside, 0.0),
        returns=returns.masked_fill(outside, 0.0),
        mask=rollout.mask,
        weights=ones if weights is None else weights.masked_fill(outside, 0.0),
        units=ones if units is None else units.masked_fill(outside, 0.0),
        sample_ids=rollout.sample_ids,
        costs=rollout.costs,
        importance=rollout.importance,
    )


def charge_kl(rollout: Rollout, coef: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards less coef * k1 per action, and the KL to the reference as metrics; the rewards alone without one.

    Raises:
        InputError: There is a charge and no reference.
    """
    require_reference(rollout, coef)
    if rollout.ref_logprobs is None:
        return rollout.rewards, {}
    charge = kl.k1(rollout.logprobs, rollout.ref_logprobs)
    metrics = {
        "kl_ref_k1": charge,
        "kl_ref_k3": kl.k3(rollout.logprobs, rollout.ref_logprobs),
        "kl_ref_per_episode": charge,
    }
    return rollout.rewards - torch.as_tensor(coef, dtype=charge.dtype, device=charge.device) * charge, metrics


def require_reference(rollout: Rollout, coef: float | Tensor) -> None:
    """Refuses a charge for the KL to what is not there. A tensor is a coefficient that adapts, which is never 0.

    Raises:
        InputError: There is a charge and no reference.
    """
    if rollout.ref_logprobs is None and (isinstance(coef, Tensor) or coef > 0):
        raise InputError(
            "kl_coef charges for the KL to a reference, and the rollout has none; give it `ref_logprobs`, or set "
            "kl_coef to 0."
        )


def single_steps(batch: Batch) -> Batch:
    """`(B, T)` rows as `(B*T, 1)` rows, for policies without memory; masked cells are kept.

    Inputs must have leading axes (B, T). Cell (b, t) gets sample id `id_b * T + t` and cost 1.
    """
    num_steps = batch.mask.shape[1]
    steps = torch.arange(num_steps, device=batch.mask.device)
    flat = {name: tensor.flatten(0, 1).unsqueeze(1) for name, tensor in batch.inputs.items()}
    cells = {
        name: tensor.reshape(-1, 1)
        for name, tensor in batch._asdict().items()
        if isinstance(tensor, Tensor) and tensor.shape == batch.mask.shape
    }
    sample_ids = (batch.sample_ids.unsqueeze(1) * num_steps + steps).flatten()
    return batch._replace(**cells, inputs=flat, sample_ids=sample_ids, costs=torch.ones_like(sample_ids))


def require_finite(name: str, tensor: Tensor, sample_ids: Tensor) -> None:
    """Raises NonFiniteError that names the tensor and the samples (at most eight)."""
    if not bool(torch.isfinite(tensor).all()):
        bad = ~torch.isfinite(tensor).flatten(1).all(dim=1)
        raise NonFiniteError(f"{name} is not finite in samples {sample_ids[bad].tolist()[:8]}.")


def _rows(value: Any, index: Tensor) -> Any:
    if isinstance(value, dict):
        return {name: tensor[index] for name, tensor in value.items()}
    return None if value is None else value[index]


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: tensor.to(device) for name, tensor in value.items()}
    return None if value is None else value.to(device)


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
