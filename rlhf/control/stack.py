"""Several seeds at once: parameters stacked along a leading axis, and the method's own functions under `vmap`.

Rows of all seeds lie end to end, as many for each, first those of the first seed. Every seed has its own minibatches,
whitening, clipping and state, so each is what it is alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map

from rlhf import optimize
from rlhf.algorithms.base import Method, Whitening
from rlhf.algorithms.off_policy import OffPolicy
from rlhf.core.masked import whiten
from rlhf.core.random import hashed_orders
from rlhf.errors import InputError, NonFiniteError
from rlhf.optimize import Learner
from rlhf.rollout import Batch, Rollout, batch_of

_ESTIMATES = ("advantages", "returns", "weights", "units")


@dataclass(frozen=True, kw_only=True)
class StackedMethod(Method):
    """A method for several seeds, in the form the outer loop takes; its `loss` is untouched."""

    method: Method
    """The method of each seed."""
    seeds: tuple[int, ...]
    """One for each of the policies that are stacked."""

    def __post_init__(self) -> None:
        # One that needs groups is refused for want of them (`require`), whatever its steps are.
        if type(self.method).update is not Method.update and not self.method.needs_groups:
            raise InputError(f"{self.method.name} takes steps of its own kind; run its seeds one at a time.")
        if isinstance(self.method, OffPolicy):
            raise InputError(
                f"{self.method.name}'s sample size is made of estimates, of which several seeds side by side keep only "
                "the mean; run its seeds one at a time."
            )

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.method.name

    @property
    def whitens(self) -> tuple[Whitening, ...]:  # type: ignore[override]
        return self.method.whitens

    @property
    def single_step(self) -> bool:  # type: ignore[override]
        return self.method.single_step

    @property
    def discount(self) -> float:
        return self.method.discount

    @property
    def num_seeds(self) -> int:
        return len(self.seeds)

    @property
    def needs_reference(self) -> bool:
        return self.method.needs_reference

    @property
    def needs_rewards(self) -> bool:
        return self.method.needs_rewards

    @property
    def needs_groups(self) -> bool:
        return self.method.needs_groups

    @property
    def needs_episodes(self) -> bool:
        return self.method.needs_episodes

    def initial_state(self) -> dict[str, Tensor]:
        alone = self.method.initial_state()
        return {name: torch.stack([tensor] * len(self.seeds)) for name, tensor in alone.items()}

    def fits_critic_only(self, state: dict[str, Tensor]) -> bool:
        return self.method.fits_critic_only(state)

    def estimate(self, rollout: Rollout, state: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        def alone(tensors: dict[str, Any], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            batch, metrics = self.method.estimate(Rollout.unchecked(tensors), state)
            return {name: getattr(batch, name) for name in _ESTIMATES}, metrics

        tensors = {field.name: getattr(rollout, field.name) for field in fields(rollout)}
        tensors = {name: self._split(value) for name, value in tensors.items() if value is not None}
        estimates, metrics = vmap(alone, in_dims=(0, self._axes(state)))(tensors, state)
        return batch_of(rollout, **_flat(estimates)), _flat(metrics)

    def update(
        self, learner: Learner, rollout: Rollout, batch: Batch, state: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """What `optimize.update` does, for all seeds side by side; metrics are averaged over seeds, `_max` ones not."""
        policy, optimizer, settings = learner.module, learner.optimizer, learner.config
        rate = optimize.set_learning_rate(learner)
        tensors = {name: self._split(value) for name, value in batch._asdict().items() if value is not None}
        if settings.whitens_batch:
            tensors["advantages"] = _whitened(tensors)
        parameters = policy.stacked()
        objective = vmap(partial(self._on_minibatch, policy.alone), in_dims=(0, 0, self._axes(state)))
        history: list[dict[str, Tensor]] = []
        for rows in self._minibatches(tensors, settings, learner.update_index):
            if settings.whitens_minibatches:
                rows["advantages"] = _whitened(rows)
            optimizer.zero_grad()
            losses, metrics = objective(parameters, rows, state)
            if not history:
                worst = {name: float(cells.max()) for name, cells in metrics.items() if name.startswith("ratio_")}
                optimize.check_identity(worst, learner.accelerator)
            # No seed's loss depends on another's parameters.
            losses.sum().backward()
            optimize.drop_unstepped(optimizer, parameters.values())
            metrics["gradient_norm"] = _clip(list(parameters.values()), settings.max_gradient_norm)
            _stop_if_not_finite(metrics["gradient_norm"], self.seeds)
            optimizer.step()
            history.append(metrics)
        optimizer.zero_grad()
        each = [optimize.averaged(steps, settings) for steps in _by_seed(history)]
        state = self._adapted(state, each)
        return _over_seeds(each) | {"learning_rate": rate, "gradient_steps": len(history)}, state

    def adapt(self, state: dict[str, Tensor], metrics: dict[str, float]) -> dict[str, Tensor]:
        """Each seed's state was adapted in `update`, by its own metrics."""
        return state

    def _on_minibatch(
        self,
        policy: nn.Module,
        parameters: dict[str, Tensor],
        rows: dict[str, Any],
        state: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One seed's loss on its minibatch, and its metrics."""
        batch = Batch(*(rows.get(name) for name in Batch._fields))  # type: ignore[arg-type]  # no reference: None
        output = functional_call(policy, parameters, (batch.inputs,))
        terms, metrics = self.method.objective(state)(output, batch)
        weighted = batch.weights * terms
        total = batch.units.sum(dtype=torch.float64)
        loss = weighted.masked_fill(~batch.mask, 0.0).sum() / torch.where(total > 0, total, 1.0).to(terms)
        cells = {"loss": weighted, **metrics}
        return loss, {name: _reduced(name, cell.detach(), batch.mask) for name, cell in cells.items()}

    def _minibatches(
        self, tensors: dict[str, Any], config: optimize.Optimize, update_index: int
    ) -> Iterator[dict[str, Any]]:
        """Each seed's own minibatches side by side."""
        if config.minibatches == 1:
            yield from (dict(tensors) for _ in range(config.epochs))
            return
        optimize.require_rows(tensors["sample_ids"].shape[1], config.minibatches)
        orders = torch.stack(
            [
                hashed_orders(seed, config.passes, update_index, ids)
                for seed, ids in zip(self.seeds, tensors["sample_ids"], strict=True)
            ],
            dim=1,
        )
        first = torch.arange(len(self.seeds)).unsqueeze(1)
        for order in orders:
            for chosen in order.tensor_split(config.minibatches, dim=1):
                yield tree_map(lambda x, chosen=chosen: x[first, chosen], tensors)

    def _split(self, value: Any) -> Any:
        return tree_map(lambda x: x.unflatten(0, (len(self.seeds), -1)), value)

    def _axes(self, state: dict[str, Tensor]) -> dict[str, int | None]:
        """Of the state, what the method adapts differs between seeds; the loop's counters do not."""
        return {name: 0 if tensor.dim() else None for name, tensor in state.items()}

    def _adapted(self, state: dict[str, Tensor], metrics: list[dict[str, float]]) -> dict[str, Tensor]:
        states = [
            self.method.adapt({name: x[i] if x.dim() else x for name, x in state.items()}, row)
            for i, row in enumerate(metrics)
        ]
        return {name: torch.stack([one[name] for one in states]) if x.dim() else x for name, x in state.items()}


def _whitened(tensors: dict[str, Any]) -> Tensor:
    """Each seed's advantages, as `optimize.whitened`."""
    return vmap(whiten)(*(tensors[name] for name in ("advantages", "mask", "returns", "values")))


def _flat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.flatten(0, 1) for name, tensor in tensors.items()}


def _reduced(name: str, cells: Tensor, mask: Tensor) -> Tensor:
    if name.endswith("_max"):
        return cells.masked_fill(~mask, -torch.inf).amax().double()
    return cells.masked_fill(~mask, 0.0).sum(dtype=torch.float64) / mask.sum()


@torch.no_grad()
def _clip(parameters: list[Tensor], most: float) -> Tensor:
    """Scales each seed's gradient down to the norm `most` (0 is off); returns the norms before, `(seeds,)`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return parameters[0].new_zeros(parameters[0].shape[0])
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    if most:
        # As torch.nn.utils.clip_grads_with_norm_.
        scale = (most / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))
    return norms


def _stop_if_not_finite(norms: Tensor, seeds: Sequence[int]) -> None:
    if not bool(torch.isfinite(norms).all()):
        bad = [seed for seed, norm in zip(seeds, norms.tolist(), strict=True) if not math.isfinite(norm)]
        raise NonFiniteError(f"the gradient is not finite for seeds {bad}; run one of them alone to see more.")


def _by_seed(history: list[dict[str, Tensor]]) -> list[list[dict[str, float]]]:
    """For each seed the metrics of its steps."""
    columns = {name: torch.stack([row[name] for row in history]).T.tolist() for name in history[0]}
    num_seeds = len(next(iter(columns.values())))
    return [
        [{name: column[i][step] for name, column in columns.items()} for step in range(len(history))]
        for i in range(num_seeds)
    ]


def _over_seeds(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Means over the seeds, `_max` ones by maximum."""
    columns = {name: [row[name] for row in metrics] for name in metrics[0]}
    return {name: max(x) if name.endswith("_max") else sum(x) / len(x) for name, x in columns.items()}
