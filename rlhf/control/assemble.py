"""From settings to what trains: policy, collector, evaluation and algorithm, for one seed or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from rlhf import optimize, train
from rlhf.algorithms.catalogue import REPLAYED, algorithm_of
from rlhf.control import collect, evaluate, replay
from rlhf.control.collectors import make_collector
from rlhf.control.envs import make_env, make_envs, spaces_of
from rlhf.control.policy import ControlPolicy
from rlhf.control.seeds import PolicyStack, evaluate_each
from rlhf.control.twin_policy import TwinPolicy
from rlhf.errors import InputError
from rlhf.stack import StackedAlgorithm


class Parts(NamedTuple):
    """What `train.train` is called with, beside its configs."""

    policy: Any
    collector: Any
    evaluate: Any
    algorithm: Any

    def train(self, config: Any, *, phase: Any, accelerator: Accelerator) -> None:
        """Trains the policy by the settings that the parts were assembled from."""
        train.train(
            policy=self.policy,
            algorithm=self.algorithm,
            algorithm_config=config.method,
            optimize_config=config.optimize,
            collector=self.collector,
            evaluate=self.evaluate,
            phase=phase,
            accelerator=accelerator,
            config=length(config),
            seed=config.seed,
        )


def assemble(config: Any, accelerator: Accelerator) -> Parts:
    """The parts of a run on control.

    Args:
        config: Has env_id, algorithm, seed, num_seeds, and the settings of a Preset by its names.

    Raises:
        InputError: The method does not fit the environment, or cannot train several seeds at once.
    """
    _require_what_it_learns_from(config)
    if config.num_seeds > 1:
        return _side_by_side(config, accelerator)
    algorithm, spaces = algorithm_of(config.method), spaces_of(make_env(config.env_id))
    judge = _evaluator(config, config.seed, accelerator)
    if config.algorithm not in REPLAYED:
        collector = make_collector(
            config.env_id,
            config=config.collect,
            gamma=config.method.gamma,
            seed=config.seed,
            accelerator=accelerator,
            micro_batch_cost=config.optimize.micro_batch_cost,
        )
        return Parts(ControlPolicy(spaces, config.policy, seed=config.seed), collector, judge, algorithm)
    if (config.algorithm == "sac") == bool(spaces.num_actions):
        kind = "vectors as actions: choose discrete_sac" if spaces.num_actions else "discrete actions: choose sac"
        raise InputError(f"{config.algorithm} needs {kind} for {config.env_id}.")
    replayed = replay.ReplayCollector(
        make_envs(config.env_id, config.collect.num_envs, num_processes=accelerator.num_processes),
        config=config.collect,
        replay=config.replay,
        num_rows=config.method.batch_size * config.optimize.minibatches,
        seed=config.seed,
        accelerator=accelerator,
    )
    return Parts(TwinPolicy(spaces, config.policy, seed=config.seed), replayed, judge, algorithm)


def length(config: Any) -> train.Config:
    """Fragments make updates of one size, which can be counted; where that is not so, steps are counted."""
    if config.collect.episodes_per_rollout or config.algorithm in REPLAYED:
        return train.Config(
            steps=config.steps, eval_every=config.eval_every_steps, checkpoint_every=config.checkpoint_every_steps
        )
    steps_per_update = config.collect.num_envs * config.collect.steps_per_rollout
    return train.Config(
        updates=-(-config.steps // steps_per_update),
        eval_every=max(config.eval_every_steps // steps_per_update, 1),
        checkpoint_every=max(config.checkpoint_every_steps // steps_per_update, 1),
    )


def _require_what_it_learns_from(config: Any) -> None:
    whole = config.algorithm in ("reinforce", "reinforce_pp") or getattr(config.method, "ratios", "action") != "action"
    fragments = not config.collect.episodes_per_rollout
    if whole and fragments:
        raise InputError(
            f"{config.algorithm} with these settings learns from whole episodes; set --collect.episodes-per-rollout."
        )
    sampled = config.algorithm == "replay_actor_critic" and config.method.sampled_actions
    of_actions = config.algorithm in ("discrete_sac", "q_actor_critic", "sac") or sampled
    if of_actions and config.policy.critic == "state":
        raise InputError(
            f"policy.critic is 'state', from which {config.algorithm} cannot tell actions apart; choose 'action'."
        )
    if config.policy.critic == "action" and not (of_actions or config.algorithm in REPLAYED):
        raise InputError(
            f"policy.critic is 'action', and returns less what the taken action is worth teach {config.algorithm} "
            "nothing; choose 'state'."
        )
    if fragments and config.algorithm not in REPLAYED:
        num_shares = max(config.optimize.minibatches, getattr(config.method, "fisher_shares", 1))
        optimize.require_rows(config.collect.num_envs * config.collect.steps_per_rollout, num_shares)


def _side_by_side(config: Any, accelerator: Accelerator) -> Parts:
    if accelerator.num_processes > 1:
        raise InputError(f"num_seeds is {config.num_seeds}, which runs on one process; start it without a launcher.")
    algorithm = algorithm_of(config.method)
    if config.collect.episodes_per_rollout or config.collect.lag or hasattr(algorithm, "update"):
        raise InputError(
            f"num_seeds is {config.num_seeds}, which {config.algorithm} does not offer (its steps are of its own kind, "
            "or it learns from more than fragments of its own policy's); run its seeds one by one."
        )
    if config.algorithm == "off_policy":
        raise InputError(
            f"num_seeds is {config.num_seeds}, but off_policy's sample size is made of estimates that seeds side by "
            "side do not pass on; run its seeds one by one."
        )
    if config.optimize.target_kl:
        raise InputError("target_kl would end each seed's update elsewhere; set it to 0, or run one seed at a time.")
    seeds = [config.seed + i for i in range(config.num_seeds)]
    spaces = spaces_of(make_env(config.env_id))
    policy = PolicyStack([ControlPolicy(spaces, config.policy, seed=seed) for seed in seeds])
    collector = collect.EnvCollector(
        make_envs(config.env_id, config.collect.num_envs * len(seeds)),
        config=config.collect,
        gamma=config.method.gamma,
        seed=seeds,
        accelerator=accelerator,
    )
    judge = evaluate_each([_evaluator(config, seed, accelerator) for seed in seeds])
    return Parts(policy, collector, judge, StackedAlgorithm(algorithm, seeds))


def _evaluator(config: Any, seed: int, accelerator: Accelerator) -> evaluate.Evaluator:
    cache = Path(config.output_dir) / config.algorithm / f"episodes-{seed}.safetensors"
    return evaluate.Evaluator(config.env_id, config=config.evaluate, seed=seed, accelerator=accelerator, cache=cache)
