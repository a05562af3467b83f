"""The natural gradient's step inside a trust region, for any policy that shows its distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlhf.deferred import deferred
from rlhf.errors import NonFiniteError
from rlhf.optimize import Loss

with deferred():
    import torch
    from accelerate import Accelerator
    from torch import Tensor, nn

    from rlhf.core.trust_region import acceptable, conjugate_gradient, step_length
    from rlhf.reduce import MetricSums, global_sum
    from rlhf.rollout import Batch

# Of |b|: conjugate gradient in float32 gains nothing below it.
_RESIDUAL = 1e-6


def fisher_products(
    policy: nn.Module,
    actor: Sequence[nn.Parameter],
    parts: Sequence[Batch],
    *,
    damping: float,
    accelerator: Accelerator,
) -> Callable[[Tensor], Tensor]:
    """v -> (F + damping) v, where F is the Hessian of the mean KL(old || new) at new = old, which is the Fisher matrix:
    the mean over states of E_a[grad log pi grad log pi'] (Schulman et al., 2015, appendix C.1).

    Args:
        parts: Micro-batches, as many on every rank. The graph of a single one is kept between products, those of
            several are built again for each, since they need not fit in memory together.

    Returns:
        A function of vectors over the `actor` parameters, end to end.
    """
    count = global_sum(accelerator, torch.stack([part.mask.sum() for part in parts]).sum())

    def slopes(micro: Batch) -> tuple[Tensor, ...]:
        """The gradient of the mean KL: 0 as it is, and differentiable."""
        # Ours are the only sums over ranks: the hooks of data parallelism do not see gradients of gradients.
        with accelerator.no_sync(policy):
            _, new = policy(micro.inputs, distribution=True)
        old = type(new)(*(x.detach() for x in new))
        mean = old.kl(new).masked_fill(~micro.mask, 0.0).sum() / count
        return torch.autograd.grad(mean, actor, create_graph=True, materialize_grads=True)

    kept = [slopes(parts[0])] if len(parts) == 1 else []

    def product(vector: Tensor) -> Tensor:
        pieces = vector.split([p.numel() for p in actor])
        total = torch.zeros_like(vector)
        for gradients in kept or (slopes(micro) for micro in parts):
            along = torch.stack([g.flatten().dot(piece) for g, piece in zip(gradients, pieces, strict=True)]).sum()
            total += flat(torch.autograd.grad(along, actor, retain_graph=bool(kept), materialize_grads=True))
        return global_sum(accelerator, total) + damping * vector

    return product


def step(product: Callable[[Tensor], Tensor], ascent: Tensor, *, num_iterations: int, max_kl: float) -> Tensor:
    """The multiple of H^-1 g at which the quadratic 1/2 x'Hx is `max_kl`; 0 without a gradient.

    Args:
        product: v -> Hv.
        ascent: The gradient g of what is to grow.

    Raises:
        NonFiniteError: The gradient or a product is NaN or infinite.
    """
    direction = conjugate_gradient(product, ascent, num_iterations=num_iterations, tolerance=_RESIDUAL)
    curvature = direction.dot(product(direction))
    if not bool(torch.isfinite(torch.stack([ascent.sum(), curvature])).all()):
        raise NonFiniteError("the gradient, or the Fisher matrix times it, is not finite.")
    return step_length(curvature, max_kl=max_kl) * direction


class Measure:
    """Called, it returns the loss's metrics and the exact KL(old || new) as `kl_old_new`, global means over actions.

    The old policy is that of the moment this is built; its distributions are kept, (actions, choices) numbers.
    """

    def __init__(self, policy: nn.Module, parts: Sequence[Batch], loss: Loss, accelerator: Accelerator) -> None:
        self.policy, self.parts, self.loss, self.accelerator = policy, parts, loss, accelerator
        with torch.no_grad():
            # Cloned: a distribution may hold views of parameters, which are about to move.
            self.old = [_cloned(policy(micro.inputs, distribution=True)[1]) for micro in parts]

    def __call__(self) -> dict[str, float]:
        sums = MetricSums()
        with torch.no_grad():
            for micro, old in zip(self.parts, self.old, strict=True):
                output, new = self.policy(micro.inputs, distribution=True)
                sums.add(self.loss(output, micro)[1] | {"kl_old_new": old.kl(new)}, micro.mask)
            return sums.reduce(self.accelerator)


def line_search(
    actor: Sequence[nn.Parameter],
    full: Tensor,
    measure: Callable[[], dict[str, float]],
    *,
    max_kl: float,
    shrinkage: float,
    num_tries: int,
) -> dict[str, float]:
    """Moves the actor by the longest of full, shrinkage x full, ... that lowers `policy_loss` within KL(old || new) <=
    `max_kl` (Schulman et al., 2015, appendix C); without any, every parameter is as before, to the last bit.

    Returns:
        What `measure` says there, and `step_share`, the share of the full step that was taken.
    """
    start = [p.detach().clone() for p in actor]
    pieces = full.split([p.numel() for p in actor])
    before = measure()
    share = 1.0
    for _ in range(num_tries):
        with torch.no_grad():
            for parameter, old, piece in zip(actor, start, pieces, strict=True):
                parameter.copy_(old + share * piece.view_as(old))
        after = measure()
        improvement = before["policy_loss"] - after["policy_loss"]
        reached = torch.tensor([improvement, after["kl_old_new"]], dtype=torch.float64)
        if acceptable(*reached, max_kl=max_kl):
            return after | {"surrogate_improvement": improvement, "step_share": share}
        share *= shrinkage
    with torch.no_grad():
        for parameter, old in zip(actor, start, strict=True):
            parameter.copy_(old)
    return before | {"surrogate_improvement": 0.0, "step_share": 0.0}


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All of them end to end."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _cloned(distribution: Any) -> Any:
    return type(distribution)(*(tensor.clone() for tensor in distribution))
