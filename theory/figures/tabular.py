"""What the figures on problems that never end share; tables as in episodes.py.

The critic is exact: what goes wrong is the fault of the policy's steps alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import grad, jvp, vmap

from rlhf.algorithms import trpo
from rlhf.algorithms.base import Method
from rlhf.core import kl
from rlhf.core.trust_region import acceptable, conjugate_gradient, step_length
from rlhf.rollout import Batch, Rollout
from theory import mdp
from theory.figures.episodes import play, score, with_values
from theory.mdp import Mdp

GAMMA = 0.95


class Update(NamedTuple):
    """One update of all runs: logits `(R, S, A)` before and after, its batch, and the method's state after it."""

    old: Tensor
    new: Tensor
    batch: Batch
    state: dict[str, Tensor]


def random_worlds(num_worlds: int, *, num_states: int, num_actions: int, seed: int) -> Mdp:
    """MDPs that never end; each action leads mostly to one state, so what one does decides where one comes to."""
    world = mdp.random_mdps(num_worlds, num_states=num_states, num_actions=num_actions, seed=seed)
    sharper = world.transitions**8
    return world._replace(transitions=sharper / sharper.sum(-1, keepdim=True))


def repeat(world: Mdp, times: int) -> Mdp:
    """All worlds, then all again: run i is in world i modulo their number."""
    return Mdp(*(table.repeat(times, *[1] * (table.dim() - 1)) for table in world))


def exact_return(world: Mdp, logits: Tensor) -> Tensor:
    """`(R,)` J of each run's policy."""
    return vmap(lambda w, p: mdp.expected_return(w, p, gamma=GAMMA))(world, logits.softmax(-1))


def exact_gradient(world: Mdp, logits: Tensor) -> Tensor:
    """`(R, S, A)` gradient of J."""
    return vmap(lambda w, x: mdp.policy_gradient(w, x, gamma=GAMMA))(world, logits)


def success(world: Mdp, logits: Tensor) -> Tensor:
    """`(R,)` J on a scale on which the uniform policy has 0 and the best 1."""
    best = vmap(lambda w: mdp.optimal_values(w, gamma=GAMMA, num_iterations=400))(world)
    low, high = exact_return(world, torch.zeros_like(logits)), (world.start * best).sum(-1)
    return (exact_return(world, logits) - low) / (high - low)


def successes(world: Mdp, history: Sequence[Tensor]) -> Tensor:
    """`(len(history), R)` success of each of the policies of every run; all at once costs little more than one."""
    return success(repeat(world, len(history)), torch.cat(list(history))).view(len(history), -1)


def sample(world: Mdp, logits: Tensor, *, num_episodes: int, num_steps: int, seed: int, update: int) -> Rollout:
    """Steps of every run's policy in worlds that never end, cut after `num_steps`, with its exact values."""
    values = vmap(lambda w, p: mdp.state_values(w, p, gamma=GAMMA))(world, logits.softmax(-1))
    sizes: dict[str, Any] = {"num_episodes": num_episodes, "num_steps": num_steps, "seed": seed, "update": update}
    return with_values(play(world, logits, **sizes, purpose="tabular steps"), values, bootstrap=True)


def sampler(method: Method, world: Mdp, **sizes: int) -> Callable[[Tensor, int], Batch]:
    """Batches of samples as the method estimates them; `sizes` as in `sample`."""
    state = method.initial_state()

    def collect(logits: Tensor, update: int) -> Batch:
        return method.estimate(sample(world, logits, update=update, **sizes), state)[0]

    return collect


def expectation(world: Mdp) -> Callable[[Tensor, int], Batch]:
    """Batches without noise: every state and action once, with its probability under d_pi and its exact advantage."""
    num_runs, num_states, num_actions = world.rewards.shape
    cells = torch.cartesian_prod(*(torch.arange(n) for n in (num_runs, num_states, num_actions)))
    inputs = {name: cells[:, i : i + 1] for i, name in enumerate(("runs", "states", "actions"))}

    def collect(logits: Tensor, update: int) -> Batch:
        policy = logits.softmax(-1)
        occupancy = vmap(lambda w, p: mdp.occupancy(w, p, gamma=GAMMA))(world, policy)
        gains = vmap(lambda w, p: mdp.advantages(w, p, gamma=GAMMA))(world, policy).view(-1, 1)
        weights, logprobs = (occupancy.unsqueeze(-1) * policy).view(-1, 1), score(logits, inputs).logprobs
        nothing, ids = torch.zeros_like(gains), torch.arange(len(gains))
        mask, costs = torch.ones_like(gains, dtype=torch.bool), torch.ones_like(ids)
        return Batch(
            inputs, logprobs, logprobs, nothing, None, gains, nothing, mask, weights, weights, ids, costs
        )  # fmt: skip

    return collect


def updates(
    method: Method,
    logits: Tensor,
    collect: Callable[[Tensor, int], Batch],
    *,
    optimizer: Callable[..., torch.optim.Optimizer],
    step_sizes: Sequence[float],
    epochs: int,
    num_updates: int,
) -> Iterator[Update]:
    """Every update: a batch, `epochs` gradient steps on it, and the adaption of the method's state.

    Args:
        step_sizes: As many equal shares of the runs, in order, take these.
    """
    num_runs = logits.shape[0]
    parts = [part.clone().requires_grad_() for part in logits.chunk(len(step_sizes))]
    stepper = optimizer([{"params": [x], "lr": size} for x, size in zip(parts, step_sizes, strict=True)])
    state = {name: x.repeat(num_runs) for name, x in method.initial_state().items()}
    for update in range(num_updates):
        old = torch.cat(parts).detach()
        batch = collect(old, update)
        cells = {name: x.repeat_interleave(len(batch.mask) // num_runs).unsqueeze(1) for name, x in state.items()}
        cells |= {"update": torch.tensor(update), "progress": torch.tensor(update / num_updates)}
        loss = method.objective(cells)
        for _ in range(epochs):
            stepper.zero_grad()
            terms, metrics = loss(score(torch.cat(parts), batch.inputs), batch)
            run_means(terms, batch, num_runs).sum().backward()
            stepper.step()
        moved = run_means(metrics["approx_kl_k3"], batch, num_runs).tolist()
        each = [
            method.adapt({name: x[i] for name, x in state.items()}, {"approx_kl_k3_last": moved[i]})
            for i in range(num_runs)
        ]
        state = {name: torch.stack([one[name] for one in each]) for name in state}
        yield Update(old, torch.cat(parts).detach(), batch, state)


def trust_region_updates(
    method: trpo.TRPO, logits: Tensor, collect: Callable[[Tensor, int], Batch], *, num_updates: int
) -> Iterator[Update]:
    """What `TRPO.update` does, for all runs at once: its loss, and the steps of `rlhf.core.trust_region`."""
    for update in range(num_updates):
        batch = collect(logits, update)
        states = torch.zeros(logits.shape[:2], dtype=torch.float64)
        states.index_put_((batch.inputs["runs"], batch.inputs["states"]), batch.weights, accumulate=True)
        states /= states.sum(-1, keepdim=True)

        def surrogate(x: Tensor, batch: Batch = batch) -> Tensor:
            return run_means(method.loss(score(x, batch.inputs), batch, {})[0], batch, len(x))

        ascent = -grad(lambda x: surrogate(x).sum())(logits)
        steps = vmap(partial(_natural_step, method=method))(logits, ascent, states)
        new, searching, share, before = logits, torch.ones(len(logits), dtype=torch.bool), 1.0, surrogate(logits)
        for _ in range(method.backtracks):
            candidate = torch.where(searching[:, None, None], logits + share * steps, new)
            reached = (states * kl.categorical_kl(logits, candidate)).sum(-1)
            good = vmap(partial(acceptable, max_kl=method.max_kl))(before - surrogate(candidate), reached)
            new = torch.where((searching & good)[:, None, None], candidate, new)
            searching, share = searching & ~good, share * method.shrinkage
        yield Update(logits, new, batch, {})
        logits = new


def run_means(terms: Tensor, batch: Batch, num_runs: int) -> Tensor:
    """`(R,)` sum(weights x terms) / sum(units) of each run."""
    return (batch.weights * terms).view(num_runs, -1).sum(1) / batch.units.view(num_runs, -1).sum(1)


def _natural_step(logits: Tensor, ascent: Tensor, states: Tensor, *, method: trpo.TRPO) -> Tensor:
    """One run's step before the line search; `states` are the shares of the batch's states."""

    def slope(x: Tensor) -> Tensor:
        return grad(lambda y: (states * kl.categorical_kl(logits, y.view_as(logits))).sum())(x)

    def product(vector: Tensor) -> Tensor:
        return jvp(slope, (logits.flatten(),), (vector,))[1] + method.damping * vector

    direction = conjugate_gradient(product, ascent.flatten(), num_iterations=method.cg_iterations, tolerance=1e-6)
    length = step_length(direction.dot(product(direction)), max_kl=method.max_kl)
    return (length * direction).view_as(logits)


def draw_band(axes: Axes, x: Sequence[float] | np.ndarray, runs: np.ndarray, label: str, **style: Any) -> None:
    """The median over the last axis, and the interquartile range around it."""
    low, middle, high = np.quantile(runs, [0.25, 0.5, 0.75], axis=-1)
    (line,) = axes.plot(x, middle, label=label, **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
