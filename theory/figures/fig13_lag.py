"""Figure 13: Actors that lag behind: V-trace against uncorrected learning; A3C against seconds (lecture 002).

Batches come from the policy of L updates ago. A2C, here without the weights that `train` gives its advantages, takes
them for its own, so its critic learns what the old policy earns, and its policy is pushed by actions that it would no
longer take; V-trace weighs both by truncated ratios. The same loss, critic and step size serve both, on random MDPs
with exact J. A3C's workers do not wait for each other: how much faster two are than one depends on the machine, so its
seconds are real.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from rlhf import optimize
from rlhf.algorithms import a2c, impala
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.base import Method
from rlhf.control import a3c, collect, evaluate
from rlhf.control.envs import make_env, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.rollout import Rollout
from theory import mdp
from theory.figures.episodes import score
from theory.figures.tabular import GAMMA, draw_band, random_worlds, repeat, run_means, sample, success
from theory.mdp import Mdp

NUMBER = 13
TITLE = "Lag: V-trace against uncorrected learning, and A3C against seconds"
SEES = (
    "Without lag both are the same method. With it, V-trace's mean return over the 150 updates stays at 0.83 to 0.85, "
    "while the uncorrected one falls to 0.77 at a lag of 16 updates and 0.76 at 32; V-trace is ahead in all 10 seeds "
    "at every lag from 1 on. What suffers first is the critic, which learns the value of a policy that is gone: at lag "
    "32 it is 1.85 off the exact V, V-trace's 0.28 (0.19 without lag). In the end the uncorrected learner arrives all "
    "the same (0.97 against 0.99), since here the old policies come to rest as well. A3C's seconds are those of the "
    "machine that drew the page. On 2 cores on which only the figure ran two workers made 31,000 steps a second where "
    "one made 16,000 (medians of 10 seeds; 1.8 to 2.4 times as many, seed by seed). They came to 450 within 0.7 to 1.7 "
    "seconds with seven seeds; a lone worker took 1.2 to 3.8 with eight. The others did not within 60,000 steps."
)

METHODS: dict[str, Method] = {
    "uncorrected": a2c.A2C(gamma=GAMMA, critic=Critic(coef=0.5)),
    "V-trace": impala.Impala(gamma=GAMMA, value_coef=0.5),
}
LAGS = (0, 1, 2, 4, 8, 16, 32)
SAMPLES = {"num_episodes": 8, "num_steps": 25}
UPDATES, STEP_SIZE, CRITIC_STEP_SIZE = 150, 0.1, 0.3
A3C_STEPS, A3C_SEEDS = 60_000, 10
WORKERS = (1, 2)


def of_learner(rollout: Rollout, logits: Tensor, values: Tensor) -> Rollout:
    """What the actors did, as the learner scores it: its log-probabilities, and values by its critic `(R, S)`."""
    runs, states = rollout.inputs["runs"], rollout.inputs["states"]
    # The world goes on after the cut; where the last step led to is not kept, so it is not learned from.
    following = torch.cat([values[runs, states][:, 1:], torch.zeros(len(runs), 1, dtype=values.dtype)], dim=1)
    mask = rollout.mask.clone()
    mask[:, -1] = False
    return replace(
        rollout,
        logprobs=score(logits, rollout.inputs).logprobs,
        values=values[runs, states],
        next_values=following,
        dones=torch.arange(mask.shape[1]).expand(mask.shape) == mask.shape[1] - 2,
        mask=mask,
    )


def learned(name: str, worlds: Mdp, lags: list[int], num_updates: int) -> dict[str, np.ndarray]:
    """`(lags, updates + 1, seeds)` success, and the critic's root mean square error, of all lags side by side."""
    method, seeds, world = METHODS[name], len(worlds.rewards), repeat(worlds, len(lags))
    logits = torch.zeros_like(world.rewards).requires_grad_()
    values = torch.zeros_like(world.rewards[..., 0]).requires_grad_()
    optimizer = torch.optim.Adam([{"params": [logits], "lr": STEP_SIZE}, {"params": [values], "lr": CRITIC_STEP_SIZE}])
    past = [logits.detach().clone()]
    returns, errors = [success(world, past[-1])], []
    for update in range(num_updates):
        acting = torch.cat([past[max(update - lag, 0)][i * seeds : (i + 1) * seeds] for i, lag in enumerate(lags)])
        acted = sample(world, acting, **SAMPLES, seed=13, update=update)
        rollout = of_learner(acted, logits.detach(), values.detach())
        batch, _ = method.estimate(rollout, {})
        output = score(logits, batch.inputs)._replace(values=values[batch.inputs["runs"], batch.inputs["states"]])
        optimizer.zero_grad()
        run_means(method.loss(output, batch, {})[0], batch, len(logits)).sum().backward()
        optimizer.step()
        past.append(logits.detach().clone())
        exact = vmap(lambda w, p: mdp.state_values(w, p, gamma=GAMMA))(world, past[-1].softmax(-1))
        returns.append(success(world, past[-1]))
        errors.append((values.detach() - exact).square().mean(-1).sqrt())
    shape = (len(lags), seeds, -1)
    return {
        f"return {name}": torch.stack(returns, dim=1).view(shape).mT.numpy(),
        f"critic {name}": torch.stack(errors, dim=1).view(shape).mT.numpy(),
    }


def asynchronous(num_workers: int, *, seed: int, steps: int) -> np.ndarray:
    """`(3, P)` seconds of training, steps and mean greedy return of A3C on CartPole."""
    policy = ControlPolicy(spaces_of(make_env("CartPole-v1")), PolicyConfig(), seed=seed)
    config = evaluate.EvaluateEpisodes(episodes=20, sampled_episodes=0)
    play = evaluate.Evaluator("CartPole-v1", config=config, seed=seed, accelerator=Accelerator(cpu=True))
    method = a2c.A2C(gamma=0.99, gae_lambda=0.95, critic=Critic(td_lambda=0.95))
    settings = optimize.Optimize(learning_rate=1e-3, schedule="linear", epochs=1, max_gradient_norm=0.5, adam_eps=1e-5)
    job = a3c.Job("CartPole-v1", steps, collect.CollectSteps(num_envs=8, steps=16), method, settings, seed)
    points: list[tuple[float, float, float]] = []

    def log(row: dict[str, float]) -> None:
        points.append((row["seconds/train"], row["steps"], play(policy).metrics["eval_return_mean"]))

    a3c.train(policy, job, num_workers=num_workers, eval_every_steps=max(steps // 6, 1), log=log)
    return np.array(points).T


def compute(*, seeds: int, effort: float) -> dict[str, np.ndarray]:
    worlds = random_worlds(seeds, num_states=20, num_actions=4, seed=13)
    lags = list(LAGS) if effort > 0.1 else [0, 2]
    data = {"lags": np.array(lags)}
    for name in METHODS:
        data |= learned(name, worlds, lags, max(round(UPDATES * effort), 4))
    # Processes take seconds to start, and what they do cannot be repeated: a first look does without them.
    if effort >= 0.1:
        # How many processes wanted a core in the minute before.
        data["machine"] = np.array([os.cpu_count() or 1, os.getloadavg()[0]])
        for workers in WORKERS:
            for seed in range(min(seeds, A3C_SEEDS)):
                data[f"a3c {workers} {seed}"] = asynchronous(workers, seed=seed, steps=int(A3C_STEPS * effort))
    return data


def plot(data: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(13, 9), layout="constrained")
    (final, course), (critic, seconds) = figure.subplots(2, 2)
    lags = data["lags"].tolist()
    shown = lags[-2]
    for color, method in zip(("tab:red", "tab:blue"), METHODS, strict=True):
        curves, errors = data[f"return {method}"], data[f"critic {method}"]
        places = np.arange(len(lags))
        draw_band(final, places, curves[:, -1], f"{method}, after the last", color=color, marker="o")
        draw_band(final, places, curves.mean(1), f"{method}, mean of all", color=color, marker="o", linestyle="--")
        draw_band(
            critic, np.arange(len(lags)), errors[:, len(errors[0]) // 2 :].mean(1), method, color=color, marker="o"
        )
        for lag, style in ((0, ":"), (shown, "-")):
            steps, each = np.arange(curves.shape[1]), curves[lags.index(lag)]
            draw_band(course, steps, each, f"{method}, lag {lag}", color=color, linestyle=style)
    for panel in (final, critic):
        panel.set_xticks(range(len(lags)), [str(lag) for lag in lags])
        panel.set_xlabel("lag of the actors, updates")
    final.set(ylabel="exact return (0: uniform, 1: best)", title="Return of the updates")
    critic.set(ylabel="root mean square error of V", title="Critic against the exact V, second half of the updates")
    course.set(xlabel="updates", ylabel="exact return (0: uniform, 1: best)", title="On the way")
    for color, workers in zip(("tab:orange", "tab:green"), WORKERS, strict=True):
        runs = [each for name, each in data.items() if name.startswith(f"a3c {workers} ")]
        for i, (spent, _, returns) in enumerate(runs):
            speed = np.median([run[1, -1] / run[0, -1] for run in runs])
            label = (
                f"{workers} worker{'s' * (workers > 1)}, {speed:,.0f} steps/s, {len(runs)} seeds" if i == 0 else None
            )
            seconds.plot(spent, returns, "o-", markersize=3, color=color, alpha=0.7, label=label)
    title = "A3C on CartPole: not measured at this effort"
    if "machine" in data:
        title = "A3C on CartPole, {:.0f} cores, load {:.1f} before".format(*data["machine"])
    seconds.set(xlabel="seconds of training", ylabel="greedy return", title=title)
    for panel in figure.axes:
        if panel.lines:
            panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    return figure
