"""Several seeds of one run side by side: their policies as one, acting in all their environments at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.func import functional_call, vmap

from rlhf.algorithms.base import Method
from rlhf.control.collect import EnvCollector
from rlhf.control.envs import make_envs
from rlhf.control.evaluate import Evaluator
from rlhf.control.policy import ControlPolicy
from rlhf.control.stack import StackedMethod
from rlhf.control.tasks import Envs
from rlhf.control.twin_policy import TwinPolicy
from rlhf.errors import InputError
from rlhf.optimize import Optimize
from rlhf.runs.evaluate import Evaluation, bootstrap_interval, interquartile_mean
from rlhf.task import CollectorTask, Here


class PolicyStack(nn.Module):
    """The policies of several seeds, whose parameters are stacked along a leading axis.

    It acts and scores as one ControlPolicy does, on rows of all seeds end to end, as many for each.
    """

    memoryless, has_critic = True, True

    def __init__(self, policies: Sequence[ControlPolicy | TwinPolicy]) -> None:
        super().__init__()
        first = policies[0]
        if not isinstance(first, ControlPolicy):
            raise InputError("replay buffers are not offered for several seeds at once; run them one by one.")
        if first.config.normalise_observations:
            raise InputError("normalise_observations is not offered for several seeds at once; run them one by one.")
        self.num_seeds, self.spaces, self.config = len(policies), first.spaces, first.config
        # A tuple hides it: its own weights are never used.
        self._alone = (copy.deepcopy(first).requires_grad_(False),)
        self.stack = copy.deepcopy(first)
        named = [dict(policy.named_parameters()) for policy in policies]
        for name in named[0]:
            owner, _, leaf = name.rpartition(".")
            stacked = torch.stack([parameters[name].detach() for parameters in named])
            setattr(self.stack.get_submodule(owner), leaf, nn.Parameter(stacked))

    @property
    def alone(self) -> ControlPolicy:
        """A policy that stands for each, to be called with one seed's parameters."""
        return self._alone[0]

    @property
    def weight(self) -> Tensor:
        return self.stack.weight

    def stacked(self) -> dict[str, Tensor]:
        """The parameters, `(seeds, ...)`, by their names in one policy."""
        return dict(self.stack.named_parameters())

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        return self._each("forward", inputs)

    def actor(self, observations: Tensor) -> Tensor:
        return self._each("actor", observations)

    def score(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        return self._each("score", outputs, actions)

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        return self._each("values", observations, actions)

    def state_values(self, inputs: dict[str, Tensor]) -> Tensor:
        return self._each("state_values", inputs)

    def sample(self, outputs: Tensor, uniforms: Tensor) -> Tensor:
        # Drawing from logits needs no parameter, and its search has no batching rule.
        if self.spaces.num_actions:
            return self.alone.sample(outputs, uniforms)
        return self._each("sample", outputs, uniforms)

    def critic_parameters(self) -> list[nn.Parameter]:
        return self.stack.critic_parameters()

    def for_env(self, actions: Tensor) -> np.ndarray:
        return self.alone.for_env(actions)

    def normalise(self, observations: Tensor) -> Tensor:
        return observations.to(self.weight.dtype)

    def policies(self) -> list[ControlPolicy]:
        """Copies, one a seed."""
        # Whoever changes the precision of the stack does not reach what is hidden.
        alone = [copy.deepcopy(self.alone).to(self.weight) for _ in range(self.num_seeds)]
        for i, policy in enumerate(alone):
            policy.load_state_dict({name: tensor[i].detach() for name, tensor in self.stacked().items()})
        return alone

    def save(self, folder: Path) -> None:
        """Each policy in a folder of its own, as ControlPolicy saves it."""
        for i, policy in enumerate(self.policies()):
            policy.save(folder / str(i))

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        for i, policy in enumerate(self.policies()):
            policy.load(folder / str(i))
            for name, tensor in policy.named_parameters():
                self.stacked()[name][i].copy_(tensor)

    def _each(self, method: str, *args: Any) -> Any:
        """`method` of each seed's policy on its share of the rows."""
        rows = torch.utils._pytree.tree_map(lambda x: x.unflatten(0, (self.num_seeds, -1)), args)
        parameters = {f"policy.{name}": tensor for name, tensor in self.stacked().items()}
        called = _Method(self.alone, method)
        out = vmap(lambda p, *xs: functional_call(called, p, xs))(parameters, *rows)
        return torch.utils._pytree.tree_map(lambda x: x.flatten(0, 1), out)


class _Method(nn.Module):
    """A method of a policy as a module of its own, which is what `functional_call` takes."""

    def __init__(self, policy: ControlPolicy, name: str) -> None:
        super().__init__()
        self.policy, self.name = policy, name

    def forward(self, *args: Any) -> Any:
        return getattr(self.policy, self.name)(*args)


def evaluate_each(evaluators: Sequence[Callable[[ControlPolicy], Evaluation]]) -> Callable[[PolicyStack], Evaluation]:
    """Every seed's own evaluation: its metrics under `name/seed`, and without a seed the mean over seeds.

    `eval_return_iqm` is their interquartile mean, `_low` and `_high` its 95 % bootstrap interval over seeds.
    """

    def evaluate(stack: PolicyStack) -> Evaluation:
        each = [one(policy) for one, policy in zip(evaluators, stack.policies(), strict=True)]
        columns = {name: [evaluation.metrics[name] for evaluation in each] for name in each[0].metrics}
        metrics = {name: sum(values) / len(values) for name, values in columns.items()}
        returns = columns["eval_return_mean"]
        low, high = bootstrap_interval(returns, statistic=interquartile_mean, seed=0)
        metrics |= {"eval_return_iqm": interquartile_mean(returns)}
        metrics |= {"eval_return_iqm_low": low, "eval_return_iqm_high": high}
        metrics |= {f"eval_return_mean/{i}": value for i, value in enumerate(returns)}
        samples = [{"seed_number": i, **sample} for i, evaluation in enumerate(each) for sample in evaluation.samples]
        return Evaluation(metrics, samples)

    return evaluate


class SeedsOfEnvs(CollectorTask):
    """Several runs of one task side by side, each what it is alone; for StackedMethod and PolicyStack.

    Args:
        envs: The task of each; its collector takes the environments of all seeds end to end.
    """

    def __init__(self, envs: Envs, seeds: Sequence[int]) -> None:
        self.envs, self.seeds = envs, list(seeds)
        self.group_size, self.whole_episodes, self.lag = envs.group_size, envs.whole_episodes, envs.lag
        self._evaluators: list[Evaluator] = []

    def policy(self, **settings: Any) -> PolicyStack:
        """The policies of all seeds as one; settings as for `Envs.policy`."""
        return PolicyStack([self.envs.policy(seed=seed, **settings) for seed in self.seeds])

    def require(self, policy: Any, method: Method, settings: Optimize, accelerator: Accelerator) -> None:
        if self.envs.starts is not None or self.envs.reference is not None:
            raise InputError("starts and a reference are not offered for several seeds at once; run them singly.")
        if self.envs.config.normalise_rewards:
            raise InputError("normalise_rewards is not offered for several seeds at once; run them one by one.")
        if accelerator.num_processes > 1:
            raise InputError(f"{len(self.seeds)} seeds side by side run on one process; start it without a launcher.")
        if self.whole_episodes or self.lag:
            raise InputError(
                f"several seeds side by side are not offered for {method.name} with these settings (it learns from "
                "more than fragments of its own policy's); run its seeds one at a time."
            )
        if settings.target_kl:
            raise InputError(
                f"target_kl is {settings.target_kl}, which would end each seed's update elsewhere; set it to 0, or run "
                "one seed at a time."
            )
        alone = method.method if isinstance(method, StackedMethod) else method
        self.envs.require(policy.alone, alone, settings, accelerator)

    def prepare(self, policy: Any, here: Here) -> None:
        config = self.envs.config
        self.steps_per_update = config.num_envs * config.steps
        self.collector = EnvCollector(
            make_envs(self.envs.env, config.num_envs * len(self.seeds)),
            config=config,
            gamma=here.method.discount,
            seed=self.seeds,
            accelerator=here.accelerator,
        )
        folders = [None if here.folder is None else here.folder / f"episodes-{seed}.safetensors" for seed in self.seeds]
        self._evaluators = [
            Evaluator(self.envs.env, config=self.envs.evaluation, seed=seed, accelerator=here.accelerator, cache=folder)
            for seed, folder in zip(self.seeds, folders, strict=True)
        ]

    def evaluate(self, policy: Any, here: Here) -> Evaluation:
        return evaluate_each(self._evaluators)(policy)

    def close(self) -> None:
        super().close()
        for evaluator in self._evaluators:
            evaluator.close()

    def inputs(self) -> dict[str, str]:
        return self.envs.inputs()

    def describe(self) -> dict[str, Any]:
        return self.envs.describe() | {"seeds": self.seeds}
