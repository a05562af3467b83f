"""Learning from a demonstrator: cloning stays at its level, cloning then PPO passes it, DAgger is taught as it goes.

    python recipes/imitation.py                                            # CartPole-v1, with an expert of its own
    python recipes/imitation.py --expert runs/cartpole/ppo/final/policy    # or that of recipes/cartpole.py
    python recipes/imitation.py --resume                                   # goes on after a kill, bit for bit

Phases: `expert` (PPO, stopped early so that there is something to pass; left out with --expert), `clone` (behaviour
cloning from a few of its episodes), `ppo` (from the clone), `ppo_kl` (the same, charged for its KL to the clone) and
`dagger` (the expert labels the states that the learner comes to). Every evaluation plays the same 200 greedy episodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from recipes.settings.control import preset
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.ppo import PPO
from rlhf.control.settings import CollectSteps, Dagger, EvaluateEpisodes
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.settings import Count, CountOrNone, Seed, Settings, Size, Total

with deferred():
    import torch
    from accelerate import Accelerator

    from rlhf.control.dagger import DaggerCollector
    from rlhf.control.demonstrations import demonstrations
    from rlhf.control.envs import make_envs
    from rlhf.control.evaluate import Evaluator
    from rlhf.control.load import load_control_policy
    from rlhf.control.policy import ControlPolicy, Spaces
    from rlhf.control.tasks import Envs, Imitation
    from rlhf.control.trial import tried
    from rlhf.core.random import derive_seed
    from rlhf.demonstrations import DemonstrationCollector
    from rlhf.runs.log import read_lines, trackers
    from rlhf.runs.run import Phase, Run
    from rlhf.runs.summary import conclude
    from rlhf.training import train_phase


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Cloning, then PPO with and without a KL charge to the clone; and DAgger."""

    expert: Path | None = None
    """Folder of a saved policy, such as PHASE/final/policy of recipes/cartpole.py; None: train one for expert_steps."""
    env_id: str = "CartPole-v1"
    """A registered gymnasium environment, module:Name-v0 of one that a module registers, or path/to/file.py:Class of
    your own; arguments follow after commas (Pendulum-v1,g=9.8)."""
    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/imitation")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    checkpoint_every: Total = 10
    """Updates between checkpoints, in every phase."""
    expert_steps: Total = 10_240
    """Environment steps of the expert's own training: few, so that it can be passed."""
    demonstrations: Count = 5
    """Whole episodes that the expert shows for cloning."""
    clone_updates: Total = 1000
    """Gradient steps of cloning, each on rows_per_update demonstrated steps."""
    rows_per_update: Count = 256
    """At most as many as there are demonstrated steps."""
    improve_steps: Total = 51_200
    """Environment steps of PPO from the clone, without a KL charge and again with one."""
    kl_coef: Size = 0.01
    """Charge per nat of log p - log p_clone in `ppo_kl`, on rewards divided by the standard deviation of returns."""
    critic_warmup: CountOrNone = 5
    """Updates of PPO from the clone that train only the critic, which cloning leaves as it was."""
    dagger: Dagger = Dagger()
    dagger_updates: Total = 10
    """Rounds of acting and cloning; each clones all that was labelled so far, in `dagger_optimize.epochs` passes."""
    clone_optimize: Optimize = Optimize(learning_rate=1e-3, schedule="linear", epochs=1, whiten="none")
    dagger_optimize: Optimize = Optimize(learning_rate=1e-3, epochs=20, minibatches=4, whiten="none")
    evaluate: EvaluateEpisodes = EvaluateEpisodes(sampled_episodes=0)

    def __post_init__(self) -> None:
        if not self.kl_coef > 0:
            raise InputError(f"kl_coef is {self.kl_coef}; it must be positive, since `ppo` runs without.")


def main(config: Config) -> dict[str, float]:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True, **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir))
    spaces = tried(config.env_id)
    expert: Any = None if config.expert is None else load_expert(config.expert, config.env_id, spaces)
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        inputs=lambda: Envs(config.env_id).inputs() | ({} if expert is None else expert.inputs()),
        accept_changes=config.accept_changes,
    )
    settings = preset("ppo", config.env_id)
    usual = cast(PPO, settings.method)

    def improve(policy: ControlPolicy, phase: Phase, acting: CollectSteps, method: PPO, steps: int) -> None:
        """PPO from where the policy is; once there is a clone, the KL to it is measured."""
        task = Envs(config.env_id, evaluate=config.evaluate, reference=cloned, **vars(acting))
        updates = -(-steps // (acting.num_envs * acting.steps))
        duration = Duration(updates=updates, checkpoint_every=config.checkpoint_every)
        train_phase(policy, task, method, settings.optimize, duration=duration, phase=phase, seed=config.seed)

    def clone(policy: ControlPolicy, name: str, updates: int, optimizing: Optimize, dealer: Any) -> Phase:
        """Maximum likelihood on what is dealt: demonstrations, or all that an expert labelled so far."""
        task, phase = Imitation(config.env_id, dealer, evaluate=config.evaluate), run.phase(name)
        every = max(updates // 10, 1)
        duration = Duration(updates=updates, eval_every=every, checkpoint_every=config.checkpoint_every)
        train_phase(policy, task, BehaviourCloning(), optimizing, duration=duration, phase=phase, seed=config.seed)
        return phase

    cloned: ControlPolicy | None = None
    if expert is None:
        # Not the weights from which the learners start, who would have the expert half learned.
        expert = new_policy(config, spaces, "expert weights")
        improve(expert, run.phase("expert"), settings.collect, usual, config.expert_steps)

    learner = new_policy(config, spaces)
    shown = demonstrations(expert, learner, config.env_id, episodes=config.demonstrations, seed=config.seed)
    dealt = partial(DemonstrationCollector, shown, rows_per_update=config.rows_per_update)
    clone_phase = clone(learner, "clone", config.clone_updates, config.clone_optimize, dealt)
    cloned = learner

    # The critic of a clone has learned nothing, and meets long episodes at once: it gets time, and returns of size 1.
    # At their own size they saturate its tanh units, which never recover.
    acting = replace(settings.collect, normalise_rewards=True)
    for name, kl_coef in (("ppo", 0.0), ("ppo_kl", config.kl_coef)):
        policy, phase = new_policy(config, spaces), run.phase(name)
        policy.load(clone_phase.final_policy)
        method = replace(usual, critic_warmup=config.critic_warmup, kl_coef=kl_coef)
        improve(policy, phase, acting, method, config.improve_steps)

    envs = make_envs(config.env_id, config.dagger.num_envs, num_processes=accelerator.num_processes)
    labelled = partial(DaggerCollector, envs, expert, config=config.dagger)
    clone(new_policy(config, spaces), "dagger", config.dagger_updates, config.dagger_optimize, labelled)

    evaluator = Evaluator(config.env_id, config=config.evaluate, seed=config.seed, accelerator=accelerator)
    result = {"expert_return": evaluator(expert).metrics["eval_return_mean"], "clone_labels": len(shown.mask)}
    result |= summarise(config.output_dir)
    conclude(run, result)
    return result


def new_policy(config: Config, spaces: Spaces, purpose: str = "learner weights") -> ControlPolicy:
    return ControlPolicy(spaces, preset("ppo", config.env_id).policy, seed=derive_seed(config.seed, purpose))


def load_expert(folder: Path, env_id: str, spaces: Spaces) -> Any:
    expert = load_control_policy(folder)
    if expert.spaces != spaces:
        raise InputError(f"{folder} holds a policy for {expert.spaces}, but {env_id} has {spaces}.")
    return expert


def summarise(folder: Path) -> dict[str, float]:
    """Each phase's last evaluation, the KL to the clone that PPO came to, and how many labels DAgger asked for."""
    last = {name: read_lines(folder / name / "metrics.jsonl")[-1] for name in ("clone", "ppo", "ppo_kl", "dagger")}
    result = {f"{name}_return": row["eval_return_mean"] for name, row in last.items()}
    result |= {f"kl_to_clone_{name}": last[name]["kl_ref_k1"] for name in ("ppo", "ppo_kl")}
    return result | {"dagger_labels": last["dagger"]["labels"]}


if __name__ == "__main__":
    launch(main, Config)
