"""Several seeds side by side: each is what it is alone."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from rlhf import optimize
from rlhf.algorithms import clone, grpo, ppo, ppo_kl, reinforce_pp, trpo
from rlhf.control import collect, evaluate, stack
from rlhf.control.envs import make_env, make_envs, spaces_of
from rlhf.control.policy import ControlPolicy, PolicyConfig
from rlhf.control.seeds import PolicyStack, SeedsOfEnvs, evaluate_each
from rlhf.control.stack import StackedMethod
from rlhf.control.tasks import Envs
from rlhf.errors import InputError
from rlhf.loop import Duration
from rlhf.runs.evaluate import bootstrap_interval, interquartile_mean
from rlhf.runs.log import read_lines
from rlhf.runs.run import Run, Unsaved
from rlhf.training import require, train, train_phase
from tests.given import Given

CPU = Accelerator(cpu=True)
SEEDS = (4, 5, 6)
COLLECT = collect.CollectSteps(num_envs=4, steps=25)


@dataclass(frozen=True, kw_only=True)
class Settings:
    env_id: str
    method: Any
    optimize: optimize.Optimize


WHOLE = optimize.Optimize(learning_rate=0.01, epochs=4, minibatches=1, whiten="minibatch", max_gradient_norm=0.3)
CASES = {
    "ppo, minibatches": Settings(
        env_id="CartPole-v1",
        method=ppo.PPO(gamma=0.97, clip_schedule="linear", value_clip=0.2, entropy_coef=0.01, critic_warmup=1),
        optimize=optimize.Optimize(
            learning_rate=0.01,
            schedule="linear",
            warmup_updates=2,
            epochs=3,
            minibatches=3,
            whiten="minibatch",
            max_gradient_norm=0.3,
        ),
    ),
    "ppo, vectors": Settings(
        env_id="Pendulum-v1", method=ppo.PPO(gamma=0.9), optimize=replace(WHOLE, critic_learning_rate=0.003)
    ),
    "ppo with an adapted penalty": Settings(env_id="CartPole-v1", method=ppo_kl.PPOKL(gamma=0.97), optimize=WHOLE),
}


def policy_of(env_id: str, seed: int) -> ControlPolicy:
    return ControlPolicy(spaces_of(make_env(env_id)), PolicyConfig(hidden_sizes=(8, 8)), seed=seed).double()


def evaluator_of(env_id: str, seed: int) -> evaluate.Evaluator:
    config = evaluate.EvaluateEpisodes(episodes=3, sampled_episodes=0)
    return evaluate.Evaluator(env_id, config=config, seed=seed, accelerator=CPU)


def run_training(
    folder: Path, settings: Settings, *, seed: Any, policy: Any, method: Any, evaluator: Any, **changes: Any
):
    num_seeds = 1 if isinstance(seed, int) else len(seed)
    train_phase(
        policy,
        Given(
            collect.EnvCollector(
                make_envs(settings.env_id, 4 * num_seeds), config=COLLECT, gamma=0.9, seed=seed, accelerator=CPU
            ),
            evaluator,
        ),
        method,
        settings.optimize,
        duration=Duration(updates=changes.pop("updates", 5), eval_every=2, checkpoint_every=2),
        phase=Run(folder, settings, resume=changes.pop("resume", False), accelerator=CPU).phase("train"),
        seed=0 if num_seeds > 1 else seed,
    )
    return policy


def run_stack(folder: Path, settings: Settings, **changes: Any) -> PolicyStack:
    return run_training(
        folder,
        settings,
        seed=SEEDS,
        policy=PolicyStack([policy_of(settings.env_id, seed) for seed in SEEDS]),
        method=StackedMethod(method=settings.method, seeds=SEEDS),
        evaluator=evaluate_each([evaluator_of(settings.env_id, seed) for seed in SEEDS]),
        **changes,
    )


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_each_seed_equals_its_own_run(settings: Settings, tmp_path: Path) -> None:
    stack = run_stack(tmp_path / "stack", settings)
    together = read_lines(tmp_path / "stack" / "train" / "metrics.jsonl")
    runs = []
    for i, seed in enumerate(SEEDS):
        alone = run_training(
            tmp_path / str(seed),
            settings,
            seed=seed,
            policy=policy_of(settings.env_id, seed),
            method=settings.method,
            evaluator=evaluator_of(settings.env_id, seed),
        )
        start = policy_of(settings.env_id, seed)
        for name, tensor in alone.named_parameters():
            torch.testing.assert_close(stack.stacked()[name][i].detach(), tensor.detach(), rtol=0, atol=1e-9)
            assert not torch.equal(tensor, start.get_parameter(name))
        runs.append(read_lines(tmp_path / str(seed) / "train" / "metrics.jsonl"))
        returns = [row["eval_return_mean"] for row in runs[-1] if "eval_return_mean" in row]
        assert [row[f"eval_return_mean/{i}"] for row in together if f"eval_return_mean/{i}" in row] == pytest.approx(
            returns, abs=1e-6
        )
    for name in ("loss", "entropy", "approx_kl_k3", "approx_kl_k3_last", "gradient_norm", "learning_rate"):
        means = [np.mean([rows[update][name] for rows in runs]) for update in range(1, 6)]
        assert [row[name] for row in together[1:]] == pytest.approx(means, rel=1e-6, abs=1e-9)


def test_seeds_resume_exactly(tmp_path: Path) -> None:
    settings = CASES["ppo with an adapted penalty"]
    whole = run_stack(tmp_path / "whole", settings, updates=5)
    run_stack(tmp_path / "parts", settings, updates=3)
    parts = run_stack(tmp_path / "parts", settings, updates=5, resume=True)
    for name, tensor in whole.stacked().items():
        assert torch.equal(tensor, parts.stacked()[name])


def test_seeds_whose_acting_and_scoring_disagree_are_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    plain = StackedMethod.estimate

    def shifted(self: Any, *arguments: Any) -> Any:
        batch, metrics = plain(self, *arguments)
        return batch._replace(logprobs=batch.logprobs - 0.01), metrics

    monkeypatch.setattr(StackedMethod, "estimate", shifted)
    with pytest.raises(RuntimeError, match="dropout"):
        run_stack(tmp_path / "stack", CASES["ppo with an adapted penalty"])


def test_what_seeds_cannot_share_is_refused() -> None:
    with pytest.raises(InputError, match="steps of its own kind"):
        StackedMethod(method=trpo.TRPO(), seeds=SEEDS)
    spaces = spaces_of(make_env("CartPole-v1"))
    policy = ControlPolicy(spaces, PolicyConfig(normalise_observations=True), seed=0)
    with pytest.raises(InputError, match="normalise_observations"):
        PolicyStack([policy])
    task = SeedsOfEnvs(Envs("CartPole-v1", num_envs=1, steps=5, normalise_rewards=True), SEEDS)
    method = StackedMethod(method=ppo.PPO(), seeds=SEEDS)
    with pytest.raises(InputError, match="normalise_rewards"):
        require(task.policy(hidden_sizes=(8,)), task, method, optimize.Optimize(), CPU)


class Some(gymnasium.Env):
    """Half of the episodes pay the action, the others nothing."""

    observation_space, action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken, self.pays = 0, self.np_random.random() < 0.5
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        return np.zeros(1, np.float32), float(action * self.pays), self.taken == 20, False, {}


def test_seeds_paid_alike_beside_others_that_were_not_are_refused() -> None:
    """Alone, those would stand still."""
    for num_envs, refused in ((1, True), (8, False)):
        task, method = SeedsOfEnvs(Envs(Some, num_envs=num_envs, steps=10), SEEDS), ppo.PPO()
        stacked = StackedMethod(method=method, seeds=SEEDS)
        with (
            pytest.raises(InputError, match=r"those numbered \[.*\] were paid alike .* one at a time")
            if refused
            else nullcontext()
        ):
            train(task.policy(hidden_sizes=(8,)), task, stacked, optimize.Optimize(), updates=1)


def test_seeds_do_not_end_their_updates_early() -> None:
    """An update that one seed ends by its KL would go on for the others."""
    task = SeedsOfEnvs(Envs("CartPole-v1", num_envs=4, steps=5), SEEDS)
    method, settings = StackedMethod(method=ppo.PPO(), seeds=SEEDS), optimize.Optimize(target_kl=0.02)
    policy = task.policy(hidden_sizes=(8,))
    with pytest.raises(
        InputError, match=r"target_kl is 0\.02, .*each seed's update elsewhere; set it to 0, or run one"
    ):
        train_phase(
            policy, task, method, settings, duration=Duration(updates=1), phase=Unsaved("ppo", CPU, shown=False), seed=0
        )
    require(policy, task, method, replace(settings, target_kl=0.0), CPU)


@dataclass(frozen=True, kw_only=True)
class WholeRows(ppo.PPO):
    rows: ClassVar[Any] = "episodes"


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (grpo.GRPO(), "grpo compares rows that share a start, and each row is alone"),
        (reinforce_pp.ReinforcePP(), "reinforce_pp with these settings learns from whole episodes"),
        (WholeRows(), "whole_rows with these settings learns from whole episodes"),
        (clone.BehaviourCloning(), "clone learns from demonstrations"),
        (ppo.PPO(kl_coef=0.1), "kl_coef charges for the KL to a reference policy, and there is none here"),
    ],
    ids=["groups", "episodes", "whole rows", "demonstrations", "reference"],
)
def test_what_one_seed_refuses_several_do(method: Any, message: str, tmp_path: Path) -> None:
    envs = Envs("CartPole-v1", num_envs=4, steps=5)
    task, settings = SeedsOfEnvs(envs, SEEDS), optimize.Optimize(epochs=1)
    stacked = StackedMethod(method=method, seeds=SEEDS)
    with pytest.raises(InputError, match=message):
        require(envs.policy(hidden_sizes=(8,)), envs, method, settings, CPU)
    with pytest.raises(InputError, match=message):
        train(task.policy(hidden_sizes=(8,)), task, stacked, settings, updates=1, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_stacked_policies_can_be_taken_apart() -> None:
    policies = [policy_of("CartPole-v1", seed) for seed in SEEDS]
    stack = PolicyStack(copy.deepcopy(policies))
    for policy, again in zip(policies, stack.policies(), strict=True):
        for name, tensor in policy.named_parameters():
            assert torch.equal(tensor, again.get_parameter(name))


def test_a_stack_whose_precision_was_raised_is_saved_in_it(tmp_path: Path) -> None:
    envs = Envs("CartPole-v1", num_envs=4, steps=5)
    one, other = (SeedsOfEnvs(envs, SEEDS).policy(hidden_sizes=(8,)).double() for _ in range(2))
    with torch.no_grad():
        for parameter in one.parameters():
            # Lost in float32.
            parameter.add_(1e-12)
    assert all(policy.weight.dtype == torch.float64 for policy in one.policies())
    one.save(tmp_path)
    other.load(tmp_path)
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_policies_for_replay_buffers_are_not_stacked() -> None:
    with pytest.raises(InputError, match="replay buffers are not offered for several seeds at once"):
        SeedsOfEnvs(Envs("CartPole-v1", num_envs=4, steps=5), SEEDS).policy(replays=True)


def test_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    # Of eight the middle four; of ten 2.5 go at each end, so the third and the eighth count half.
    assert interquartile_mean([100, 1, 2, 3, 4, 5, 6, -50]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    expected = (0.5 * 3 + 4 + 5 + 6 + 7 + 0.5 * 8) / 5
    assert interquartile_mean([1, 2, 3, 4, 5, 6, 7, 8, 9, 1000]) == pytest.approx(expected)
    assert interquartile_mean([7.0]) == 7.0


def test_bootstrap_interval_of_a_mean_is_near_the_normal_one() -> None:
    scores = np.random.default_rng(0).normal(10.0, 2.0, 400)
    low, high = bootstrap_interval(scores, statistic=lambda x: float(x.mean()), seed=0)
    half = 1.96 * scores.std() / 20
    assert low == pytest.approx(scores.mean() - half, abs=0.01)
    assert high == pytest.approx(scores.mean() + half, abs=0.01)


def test_seeds_of_which_nothing_steps_have_a_gradient_of_norm_0() -> None:
    """As torch's own, where scores are alike and there is no critic."""
    stacked = torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(stack._clip([stacked], 0.3), torch.zeros(2, dtype=torch.float64))
