"""Figure 4: Bias and variance of the advantage against n and lambda, with an imperfect critic (lectures 000 and 004).

n rewards and then the critic's value: few rewards leave its error in, many put their noise in. What is measured is
the error of the estimated Q, since what a wrong V(s) as a baseline adds to every action's advantage biases no gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from rlhf.algorithms import a2c
from rlhf.algorithms.actor_critic import Critic
from rlhf.core.advantages import gae, n_step_returns
from theory import mdp
from theory.figures.episodes import play, score, with_values
from theory.figures.sampling import draw_band
from theory.figures.tabular import random_worlds
from theory.mdp import Mdp

NUMBER = 4
TITLE = "Bias and variance of the advantage against n and lambda; what n does to learning"
SEES = (
    "More rewards before the critic take its error out and put noise in: from n = 1 to 64 the squared bias falls "
    "from 0.44 to 0.00 and the variance grows from 0.31 to 2.67 (medians of 10 random MDPs). A single estimate is "
    "best at n = 1 in 8 of 10 MDPs, for an error as large in every state only turns from bias into variance as n "
    "grows. A gradient averages over many, and of a mean of 16 the squared error is least strictly inside, at n = 4 "
    "(0.120, against 0.467 and 0.167 at the ends). Lambda mixes the lengths and does better, single (0.387 at 0.6) "
    "and averaged (0.071 at 0.8), both strictly inside. A2C whose critic learns along is fastest with n = 1 (0.65 of "
    "the way after 30 updates, 0.38 with n = 32), and after 150 updates n = 2 is level with it, 0.96 against 0.95."
)

GAMMA, NUM_STEPS = 0.95, 64
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
NUM_STATES, ERROR = 20, 1.0
# A gradient averages over actions, which lowers the variance and not the bias.
AVERAGED = 16
TRAINED_STEPS = (1, 2, 4, 8, 16, 32)


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    """Squared biases, exact, and variances, of samples, `(seeds, 2, points)`; success of learners by n and update."""
    world = random_worlds(seeds, num_states=NUM_STATES, num_actions=3, seed=4)
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(seeds, NUM_STATES, 3, generator=generator, dtype=torch.float64)
    error = ERROR * torch.randn(seeds, NUM_STATES, generator=generator, dtype=torch.float64)
    by_n, by_lambda = errors(world, logits, error, num_episodes=max(int(4000 * effort), 8))
    learned = [success(world, n, num_updates=max(int(150 * effort), 2)) for n in TRAINED_STEPS]
    return {"by_n": by_n.numpy(), "by_lambda": by_lambda.numpy(), "success": torch.stack(learned).numpy()}


def errors(world: Mdp, logits: Tensor, error: Tensor, *, num_episodes: int) -> tuple[Tensor, Tensor]:
    """For n and for lambda, squared bias and variance of the Q of the first action, `(seeds, 2, points)`."""
    policy = logits.softmax(-1)
    critic = vmap(lambda w, p: mdp.state_values(w, p, gamma=GAMMA))(world, policy) + error
    exact = vmap(lambda w, p: mdp.action_values(w, p, gamma=GAMMA))(world, policy)
    rollout = with_values(
        play(world, logits, num_episodes=num_episodes, num_steps=NUM_STEPS, seed=0), critic, bootstrap=True
    )
    rewards, values, following, dones = rollout.rewards, rollout.values, rollout.next_values, rollout.dones
    runs, states, actions = (rollout.inputs[name][:, 0] for name in ("runs", "states", "actions"))
    sampled_n = [n_step_returns(rewards, following, dones, gamma=GAMMA, num_steps=n)[:, 0] for n in STEPS]
    sampled_lambda = [
        (gae(rewards, values, following, dones, gamma=GAMMA, gae_lambda=x) + values)[:, 0] for x in LAMBDAS
    ]
    expected = expected_returns(world, policy, critic)
    expected_n = [expected[n - 1] for n in STEPS]
    expected_lambda = [mixed(expected, x) for x in LAMBDAS]
    first = world.start.unsqueeze(-1) * policy

    def split(sampled: list[Tensor], means: list[Tensor]) -> Tensor:
        biases = torch.stack([(first * (mean - exact).square()).sum((1, 2)) for mean in means], dim=1)
        noise = [x - mean[runs, states, actions] for x, mean in zip(sampled, means, strict=True)]
        variances = torch.stack([x.square().unflatten(0, (len(logits), -1)).mean(1) for x in noise], dim=1)
        return torch.stack([biases, variances], dim=1)

    return split(sampled_n, expected_n), split(sampled_lambda, expected_lambda)


def expected_returns(world: Mdp, policy: Tensor, critic: Tensor) -> list[Tensor]:
    """E[G_n | s, a], `(seeds, S, A)`, for n = 1, ..., NUM_STEPS, by looking ahead n times."""
    returns = []
    for _ in range(NUM_STEPS):
        returns.append(vmap(lambda w, v: mdp.backup(w, v, gamma=GAMMA))(world, critic))
        critic = (policy * returns[-1]).sum(-1)
    return returns


def mixed(returns: list[Tensor], lambda_: float) -> Tensor:
    """(1 - lambda) sum_n lambda^(n - 1) G_n, the rest of the weight on the longest (Sutton and Barto, eq. 12.3)."""
    weights = [(1.0 - lambda_) * lambda_**n for n in range(len(returns) - 1)] + [lambda_ ** (len(returns) - 1)]
    return torch.stack([weight * x for weight, x in zip(weights, returns, strict=True)]).sum(0)


def success(world: Mdp, n: int, *, num_updates: int) -> Tensor:
    """`(seeds, updates + 1)` exact J, 0 uniform and 1 best policy, of A2C whose critic starts at 0 and learns along."""
    method = a2c.A2C(gamma=GAMMA, advantage="n_step", num_steps=n, critic=Critic(target="n_step", num_steps=n))
    logits = torch.zeros(world.rewards.shape, dtype=torch.float64, requires_grad=True)
    critic = torch.zeros(logits.shape[:2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, critic], lr=0.05)
    best = vmap(lambda w: mdp.optimal_values(w, gamma=GAMMA, num_iterations=400))(world)
    low, high = expected_return(world, logits), (world.start * best).sum(-1)
    curve = [torch.zeros_like(low)]
    for update in range(num_updates):
        rollout = play(world, logits.detach(), num_episodes=2, num_steps=32, seed=1, update=update)
        batch, _ = method.estimate(with_values(rollout, critic.detach(), bootstrap=True), {})
        optimizer.zero_grad()
        terms, _ = method.loss(score(logits, batch.inputs, critic), batch, {})
        # Every run by itself: its own mean over its own actions.
        (batch.weights * terms).sum().div(len(low) ** -1 * batch.units.sum()).backward()
        optimizer.step()
        curve.append((expected_return(world, logits) - low) / (high - low))
    return torch.stack(curve, dim=1)


def expected_return(world: Mdp, logits: Tensor) -> Tensor:
    return vmap(lambda w, p: mdp.expected_return(w, p, gamma=GAMMA))(world, logits.detach().softmax(-1))


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 8), layout="constrained")
    (left, right), (curves, final) = figure.subplots(2, 2)
    for panel, name, x in ((left, "by_n", STEPS), (right, "by_lambda", LAMBDAS)):
        bias, variance = data[name].transpose(1, 0, 2)
        parts = {
            "squared bias, exact": bias,
            "variance": variance,
            "mean squared error": bias + variance,
            f"the same of a mean of {AVERAGED}": bias + variance / AVERAGED,
        }
        for label, rows in parts.items():
            draw_band(panel, np.array(x), rows, marker=".", label=label)
        panel.set(
            ylabel="squared error of Q, return^2",
            yscale="log",
            ylim=(0.003, 5),
            title=f"A critic whose error is N(0, {ERROR:g}^2)",
        )
    left.set(xlabel="n, rewards before the critic's value", xscale="log")
    right.set(xlabel="lambda")
    for n, rows in zip(TRAINED_STEPS, data["success"], strict=True):
        draw_band(curves, np.arange(rows.shape[1]), rows, label=f"n = {n}")
    curves.set(
        xlabel="updates of 64 steps", ylabel="exact J: 0 uniform, 1 best", title="A2C, its critic learning along"
    )
    for share in (0.2, 1.0):
        update = int(share * (data["success"].shape[2] - 1))
        draw_band(final, np.array(TRAINED_STEPS), data["success"][:, :, update].T, marker=".", label=f"update {update}")
    final.set(xlabel="n, rewards before the critic's value", xscale="log", ylabel="exact J: 0 uniform, 1 best")
    for panel in (left, right, curves, final):
        panel.grid(alpha=0.3)
        panel.legend()
    for panel, ticks in ((left, list(STEPS)), (final, list(TRAINED_STEPS))):
        panel.set_xticks(ticks, [str(n) for n in ticks])
        panel.minorticks_off()
    return figure
