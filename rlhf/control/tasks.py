"""Environments as what a policy is trained on: acting in fragments, whole episodes or into a replay buffer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from accelerate import Accelerator
from torch import equal

from rlhf import optimize
from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import require_learns_from
from rlhf.control.collect import CollectSteps, EnvCollector
from rlhf.control.envs import EnvSource, make_env, make_envs, make_many, name_of, spaces_of
from rlhf.control.episode_collect import EpisodeCollector
from rlhf.control.evaluate import EvaluateEpisodes, Evaluator
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.control.replay import Replay, ReplayCollector
from rlhf.control.trial import tried
from rlhf.control.twin_policy import TwinPolicy
from rlhf.errors import InputError, no_exit
from rlhf.optimize import Optimize
from rlhf.runs.evaluate import Evaluation
from rlhf.settings import Seed, checked, made
from rlhf.sources import code_sums, held_sums, rows_sums
from rlhf.task import CollectorTask, Here


class Envs(CollectorTask):
    """A gymnasium environment, several copies at a time.

    Args:
        env: Id of a registered environment, or module:Name-v0 of one that a module registers, or path/to/file.py:Class
            of your own, with arguments after commas if there are any; a class or function that makes one; or an
            environment, of which copies are made.
        replay: What a method with a replay buffer remembers.
        evaluate: Episodes of an evaluation.
        reference: A policy that methods with a kl_coef charge for the KL to.
        starts: States in which episodes begin, each equally likely; None: where the environment begins.
        acting: Fields of CollectSteps: num_envs, steps, episodes, ...

    Raises:
        InputError: There is no such environment or setting, or the environment does not keep gymnasium's contract.
    """

    @checked
    def __init__(
        self,
        env: EnvSource,
        *,
        replay: Replay | None = None,
        evaluate: EvaluateEpisodes | None = None,
        reference: ControlPolicy | None = None,
        starts: np.ndarray | None = None,
        **acting: Any,
    ) -> None:
        self.env = env
        self.config = made(CollectSteps, acting, beside=("replay", "evaluate", "reference", "starts"))
        self.replay, self.evaluation = replay or Replay(), evaluate or EvaluateEpisodes(sampled_episodes=0)
        # A copy, since the very policy that is trained may be given.
        self.reference, self.starts = copy.deepcopy(reference), starts
        self.group_size, self.lag = self.config.episodes_per_start, self.config.lag
        self.whole_episodes = self.config.episodes > 0
        with no_exit(f"environment {name_of(env)}"):
            self.spaces = tried(env)
        self._evaluator: Any = None

    @checked
    def policy(self, *, replays: bool = False, seed: Seed = 0, **settings: Any) -> ControlPolicy | TwinPolicy:
        """A policy for this environment, with random weights.

        Args:
            replays: For methods that learn from replayed transitions, such as SAC, which take twin critics.
            settings: Fields of PolicyConfig: hidden_sizes, critic, ...
        """
        if replays:
            return TwinPolicy(self.spaces, made(PolicyConfig, {"critic": "action", **settings}), seed=seed)
        return ControlPolicy(self.spaces, made(PolicyConfig, settings), seed=seed)

    def require(self, policy: Any, method: Method, settings: Optimize, accelerator: Accelerator) -> None:
        """Refuses a method that does not fit the environment, the policy or what is collected."""
        require_learns_from(method, "rewards")
        self.require_measurable(policy, accelerator)
        acting = self.config
        if method.replays and (acting.normalise_rewards or acting.lag or acting.episodes):
            raise InputError(
                "normalise_rewards, lag and episodes have no meaning for methods with a replay buffer; leave them off."
            )
        if method.replays != isinstance(policy, TwinPolicy):
            needed = "policy(replays=True)" if method.replays else "policy()"
            raise InputError(f"{method.name} cannot train a {type(policy).__name__}; make it with the task's {needed}.")
        require_critic(method, policy.config.critic)
        if method.actions != "either" and (method.actions == "discrete") != bool(self.spaces.num_actions):
            found = "discrete" if self.spaces.num_actions else "vectors"
            raise InputError(
                f"{method.name} needs {method.actions} as actions, and those of {self.name} are {found}; choose "
                "another method."
            )
        if method.needs_reference and self.reference is None:
            raise InputError(
                "method.kl_coef charges for the KL to a reference policy, and there is none here; set it to 0, or give "
                "the task a reference (see recipes/imitation.py, whose `ppo_kl` is charged for its KL to the clone)."
            )
        if not method.replays:
            rows = acting.num_envs * acting.steps
            if self.whole_episodes:
                # Steps are cut only once it is known how many there are; whole rows and groups are counted here.
                rows = {"steps": rows, "episodes": acting.episodes, "groups": acting.episodes // self.group_size}[
                    method.rows
                ]
            if not self.whole_episodes or method.rows != "steps":
                optimize.require_rows(rows, max(settings.minibatches, method.num_parts))
        if acting.episodes % accelerator.num_processes:
            raise InputError(
                f"episodes is {acting.episodes}, which {accelerator.num_processes} processes cannot share "
                "evenly; make it a multiple of them."
            )

    def require_measurable(self, policy: Any, accelerator: Accelerator) -> None:
        """Refuses a policy for other observations or actions."""
        if not isinstance(policy, ControlPolicy | TwinPolicy) or policy.spaces != self.spaces:
            found = getattr(policy, "spaces", type(policy).__name__)
            raise InputError(f"the policy is for {found}, but {self.name} has {self.spaces}; take the task's policy().")

    def prepare(self, policy: Any, here: Here) -> None:
        self.steps_per_update = (
            0 if self.whole_episodes or here.method.replays else self.config.num_envs * self.config.steps
        )
        self.collector = self._make_collector(here)
        cache = None if here.folder is None else here.folder / f"episodes-{here.seed}.safetensors"
        self._evaluator = Evaluator(
            self.env, config=self.evaluation, seed=here.seed, accelerator=here.accelerator, cache=cache
        )

    def at_reference(self, policy: Any) -> bool:
        """Moments of observations count too: by other ones the same weights choose otherwise."""
        if self.reference is None:
            return False
        own, kept = policy.state_dict(), self.reference.state_dict()
        return own.keys() == kept.keys() and all(equal(own[name], kept[name]) for name in own)

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        """The same greedy episodes each time, and the same sampled ones."""
        return self._evaluator(policy)

    def close(self) -> None:
        super().close()
        self._evaluator.close()

    def inputs(self) -> dict[str, str]:
        made = make_env(self.env).unwrapped
        sums = code_sums("environment", made) | held_sums("environment", made)
        if self.starts is not None:
            sums |= rows_sums("starts", "states", [{"state": state} for state in self.starts])
        return sums | ({} if self.reference is None else getattr(self.reference, "inputs", dict)())

    def describe(self) -> dict[str, Any]:
        return {"env": self.name, "collect": asdict(self.config), "evaluate": asdict(self.evaluation)} | (
            {"replay": asdict(self.replay)}
        )

    @property
    def name(self) -> str:
        return name_of(self.env)

    def _make_collector(self, here: Here) -> Any:
        accelerator, num_processes = here.accelerator, here.accelerator.num_processes
        where: dict[str, Any] = {"config": self.config, "seed": here.seed, "accelerator": accelerator}
        if here.method.replays:
            return ReplayCollector(
                make_envs(self.env, self.config.num_envs, num_processes=num_processes, starts=self.starts),
                replay=self.replay,
                num_rows=cast(Any, here.method).batch_size * here.settings.minibatches,
                **where,
            )
        where |= {"gamma": here.method.discount, "reference": self.reference}
        if self.whole_episodes:
            return EpisodeCollector(
                make_many(self.env, self.config.episodes // num_processes, starts=self.starts), **where
            )
        return EnvCollector(
            make_envs(self.env, self.config.num_envs, num_processes=num_processes, starts=self.starts), **where
        )


class Imitation(CollectorTask):
    """Cloning of what an expert does in an environment, measured by playing there.

    Args:
        env: As for Envs.
        make_collector: Called with `seed` and `accelerator`; its rollouts hold the actions to clone, as those of
            DemonstrationCollector and DaggerCollector do.
        evaluate: Episodes of an evaluation.
    """

    def __init__(
        self, env: EnvSource, make_collector: Callable[..., Any], *, evaluate: EvaluateEpisodes | None = None
    ) -> None:
        self.env, self.make_collector = env, make_collector
        self.evaluation = evaluate or EvaluateEpisodes(sampled_episodes=0)
        self._evaluator: Any = None

    def require(self, policy: Any, method: Method, settings: Optimize, accelerator: Accelerator) -> None:
        """Refuses methods that learn from rewards, of which nothing is known here, and policies that none can clone."""
        require_learns_from(method, "demonstrations")
        spaces = spaces_of(make_env(self.env))
        if not isinstance(policy, ControlPolicy) or policy.spaces != spaces:
            found = f"a {type(policy).__name__} for {getattr(policy, 'spaces', 'something else')}"
            raise InputError(
                f"the policy is {found}, but {name_of(self.env)} has {spaces}; take the policy() of its Envs."
            )

    def prepare(self, policy: Any, here: Here) -> None:
        self.collector = self.make_collector(seed=here.seed, accelerator=here.accelerator)
        self._evaluator = Evaluator(self.env, config=self.evaluation, seed=here.seed, accelerator=here.accelerator)

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        return self._evaluator(policy)

    def close(self) -> None:
        super().close()
        self._evaluator.close()

    def describe(self) -> dict[str, Any]:
        return {"env": name_of(self.env), "evaluate": asdict(self.evaluation)}


def require_critic(method: Method, critic: str) -> None:
    """Refuses a critic of states where actions must be told apart, and one of actions where they must not."""
    if method.critic_of == "actions" and critic == "state":
        raise InputError(
            f"policy.critic is 'state', from which {method.name} cannot tell actions apart; choose 'action'."
        )
    if critic == "action" and method.critic_of not in ("actions", "either"):
        raise InputError(
            f"policy.critic is 'action', and returns less what the taken action is worth teach {method.name} "
            "nothing; choose 'state'."
        )
