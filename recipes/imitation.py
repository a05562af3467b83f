"""Learning from a demonstrator: cloning stays at its level, cloning then PPO passes it, DAgger is taught as it goes.

    python recipes/imitation.py                                            # CartPole-v1, with an expert of its own
    python recipes/imitation.py --expert runs/cartpole/ppo/final/policy    # or that of recipes/cartpole.py
    python recipes/imitation.py --resume                                   # goes on after a kill, bit for bit

Phases: `expert` (PPO, stopped early so that there is something to pass; left out with --expert), `clone` (behaviour
cloning from a few of its episodes), `ppo` (from the clone), `ppo_kl` (the same, charged for its KL to the clone) and
`dagger` (the expert labels the states that the learner comes to). Every evaluation plays the same 200 greedy episodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rlhf import optimize, train
from rlhf.algorithms import bc, ppo
from rlhf.control import collect, dagger, evaluate
from rlhf.control.collectors import make_collector
from rlhf.control.demonstrations import demonstrations
from rlhf.control.envs import make_env, make_envs, spaces_of
from rlhf.control.load import load_policy
from rlhf.control.policy import ControlPolicy
from rlhf.control.presets import preset
from rlhf.core.random import derive_seed
from rlhf.demonstrations import DemonstrationCollector
from rlhf.errors import InputError
from rlhf.runs.launch import launch
from rlhf.runs.log import read_lines, trackers
from rlhf.runs.run import Phase, Run
from rlhf.runs.summary import conclude


@dataclass(frozen=True, kw_only=True)
class Config:
    """Cloning, then PPO with and without a KL charge to the clone; and DAgger."""

    expert: Path | None = None
    """Folder of a saved policy, such as PHASE/final/policy of recipes/cartpole.py; None: train one for expert_steps."""
    env_id: str = "CartPole-v1"
    """A registered gymnasium environment with vector observations."""
    seed: int = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/imitation")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    checkpoint_every: int = 10
    """Updates between checkpoints, in every phase."""
    expert_steps: int = 10_240
    """Environment steps of the expert's own training: few, so that it can be passed."""
    demonstrations: int = 5
    """Whole episodes that the expert shows for cloning."""
    clone_updates: int = 1000
    """Gradient steps of cloning, each on rows_per_update demonstrated steps."""
    rows_per_update: int = 256
    """At most as many as there are demonstrated steps."""
    improve_steps: int = 51_200
    """Environment steps of PPO from the clone, without a KL charge and again with one."""
    kl_coef: float = 0.01
    """Charge per nat of log p - log p_clone in `ppo_kl`, on rewards divided by the standard deviation of returns."""
    critic_warmup: int = 5
    """Updates of PPO from the clone that train only the critic, which cloning leaves as it was."""
    dagger: dagger.Config = dagger.Config()
    dagger_updates: int = 10
    """Rounds of acting and cloning; each clones all that was labelled so far, in `dagger_optimize.epochs` passes."""
    clone_optimize: optimize.Config = optimize.Config(learning_rate=1e-3, schedule="linear", epochs=1, whiten="none")
    dagger_optimize: optimize.Config = optimize.Config(learning_rate=1e-3, epochs=20, minibatches=4, whiten="none")
    evaluate: evaluate.Config = evaluate.Config(sampled_episodes=0)

    def __post_init__(self) -> None:
        for name in (
            "checkpoint_every",
            "expert_steps",
            "demonstrations",
            "rows_per_update",
            "clone_updates",
            "improve_steps",
            "dagger_updates",
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if not self.kl_coef > 0:
            raise InputError(f"kl_coef is {self.kl_coef}; it must be positive, since `ppo` runs without.")


def main(config: Config) -> dict[str, float]:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir))
    expert: Any = None if config.expert is None else load_expert(config.expert, config.env_id)
    run = Run(config.output_dir, config, resume=config.resume, accelerator=accelerator)
    evaluator = evaluate.Evaluator(config.env_id, config=config.evaluate, seed=config.seed, accelerator=accelerator)
    fit = partial(train.train, evaluate=evaluator, accelerator=accelerator, seed=config.seed)
    settings = preset("ppo", config.env_id)
    improve_here = partial(improve, fit=fit, how=settings.optimize, config=config, accelerator=accelerator)

    if expert is None:
        # Not the weights from which the learners start, who would have the expert half learned.
        expert = new_policy(config, "expert weights")
        improve_here(expert, run.phase("expert"), settings.collect, settings.method, config.expert_steps, None)

    cloned, clone_phase = new_policy(config), run.phase("clone")
    shown = demonstrations(expert, cloned, config.env_id, episodes=config.demonstrations, seed=config.seed)
    dealt = DemonstrationCollector(
        shown, rows_per_update=config.rows_per_update, seed=config.seed, accelerator=accelerator
    )
    clone(cloned, clone_phase, fit, dealt, length(config.clone_updates, config), config.clone_optimize)

    # The critic of a clone has learned nothing, and meets long episodes at once: it gets time, and returns of size 1.
    # At their own size they saturate its tanh units, which never recover.
    acting = replace(settings.collect, normalise_rewards=True)
    for name, kl_coef in (("ppo", 0.0), ("ppo_kl", config.kl_coef)):
        policy, phase = new_policy(config), run.phase(name)
        policy.load(clone_phase.final_policy)
        method = replace(settings.method, critic_warmup=config.critic_warmup, kl_coef=kl_coef)
        improve_here(policy, phase, acting, method, config.improve_steps, cloned)

    envs = make_envs(config.env_id, config.dagger.num_envs, num_processes=accelerator.num_processes)
    taught = dagger.DaggerCollector(envs, expert, config=config.dagger, seed=config.seed, accelerator=accelerator)
    clone(
        new_policy(config),
        run.phase("dagger"),
        fit,
        taught,
        length(config.dagger_updates, config),
        config.dagger_optimize,
    )

    result = {"expert_return": evaluator(expert).metrics["eval_return_mean"], "clone_labels": len(shown.mask)}
    result |= summarise(config.output_dir)
    conclude(run, result)
    return result


def new_policy(config: Config, purpose: str = "learner weights") -> ControlPolicy:
    spaces, settings = spaces_of(make_env(config.env_id)), preset("ppo", config.env_id)
    return ControlPolicy(spaces, settings.policy, seed=derive_seed(config.seed, purpose))


def load_expert(folder: Path, env_id: str) -> Any:
    expert, spaces = load_policy(folder), spaces_of(make_env(env_id))
    if expert.spaces != spaces:
        raise InputError(f"{folder} holds a policy for {expert.spaces}, but {env_id} has {spaces}.")
    return expert


def improve(
    policy: ControlPolicy,
    phase: Phase,
    acting: collect.Config,
    method: ppo.Config,
    steps: int,
    reference: ControlPolicy | None,
    *,
    fit: Callable[..., None],
    how: optimize.Config,
    config: Config,
    accelerator: Accelerator,
) -> None:
    """PPO from where the policy is."""
    collector = make_collector(
        config.env_id,
        config=acting,
        gamma=method.gamma,
        seed=config.seed,
        accelerator=accelerator,
        micro_batch_cost=how.micro_batch_cost,
        reference=reference,
    )
    fit(
        policy=policy,
        algorithm=ppo,
        algorithm_config=method,
        optimize_config=how,
        collector=collector,
        phase=phase,
        config=train.Config(
            updates=-(-steps // (acting.num_envs * acting.steps_per_rollout)), checkpoint_every=config.checkpoint_every
        ),
    )


def clone(
    policy: ControlPolicy,
    phase: Phase,
    fit: Callable[..., None],
    collector: Any,
    duration: train.Config,
    how: optimize.Config,
) -> None:
    """Maximum likelihood on what the collector hands out: demonstrations, or all that an expert labelled so far."""
    fit(
        policy=policy,
        algorithm=bc,
        algorithm_config=bc.Config(),
        optimize_config=how,
        collector=collector,
        phase=phase,
        config=duration,
    )


def length(updates: int, config: Config) -> train.Config:
    """Of a phase that clones: ten evaluations on its way."""
    return train.Config(updates=updates, eval_every=max(updates // 10, 1), checkpoint_every=config.checkpoint_every)


def summarise(folder: Path) -> dict[str, float]:
    """Each phase's last evaluation, the KL to the clone that PPO came to, and how many labels DAgger asked for."""
    last = {name: read_lines(folder / name / "metrics.jsonl")[-1] for name in ("clone", "ppo", "ppo_kl", "dagger")}
    result = {f"{name}_return": row["eval_return_mean"] for name, row in last.items()}
    result |= {f"kl_to_clone_{name}": last[name]["kl_ref_k1"] for name in ("ppo", "ppo_kl")}
    return result | {"dagger_labels": last["dagger"]["labels"]}


if __name__ == "__main__":
    launch(main, Config)
