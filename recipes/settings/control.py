"""Settings with which each algorithm is known to learn; what they reach is measured in docs/algorithms.md.

Of MuJoCo's robots only PPO and SAC on HalfCheetah were measured; the other settings are the usual ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlhf import optimize
from rlhf.algorithms import (
    a2c,
    cispo,
    discrete_sac,
    grpo,
    gspo,
    impala,
    off_policy,
    ppo,
    ppo_kl,
    q_actor_critic,
    reinforce,
    reinforce_pp,
    replay_actor_critic,
    rloo,
    sac,
    td_lambda,
    trpo,
)
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.base import Method
from rlhf.algorithms.checks import fitting
from rlhf.algorithms.choices import make_method
from rlhf.control.settings import CollectSteps, EvaluateEpisodes, PolicyConfig, Replay


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a run on control is made of, but for its seed."""

    steps: int = 100_000
    eval_every_steps: int = 2_560
    collect: CollectSteps
    replay: Replay = Replay()
    policy: PolicyConfig = PolicyConfig()
    method: Method
    optimize: optimize.Optimize
    evaluate: EvaluateEpisodes = EvaluateEpisodes(sampled_episodes=0)


_PPO = optimize.Optimize(learning_rate=1e-3, max_gradient_norm=0.5, whiten="minibatch", adam_eps=1e-5)

_ACTOR_CRITIC = replace(_PPO, schedule="linear", epochs=1)
# Advantages are only as good as the critic: fitted first, solved policies stay solved.
_FITTED = Critic(target="td_lambda", td_lambda=0.95, epochs=10)

_REPLAY = optimize.Optimize(learning_rate=1e-3, epochs=1, minibatches=32, max_gradient_norm=0.0, whiten="none")
_TWINS = PolicyConfig(critic="action")

# Robots that walk; `pip install "rlhf[mujoco]"` brings them.
_ROBOTS = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5")
_SCALED = PolicyConfig(normalise_observations=True)
# An episode has 1,000 steps, which take a tenth of a second.
_EPISODES = EvaluateEpisodes(episodes=50, sampled_episodes=0)
_FRAGMENTS = CollectSteps(num_envs=8, steps=256, normalise_rewards=True)
_ROBOT_PRESETS = {
    "ppo": Preset(
        steps=1_000_000,
        eval_every_steps=102_400,
        collect=_FRAGMENTS,
        policy=_SCALED,
        method=ppo.PPO(gamma=0.99, gae_lambda=0.95, value_coef=0.5),
        optimize=replace(_PPO, learning_rate=3e-4, schedule="linear", epochs=10, minibatches=32),
        evaluate=_EPISODES,
    ),
    "trpo": Preset(
        steps=1_000_000,
        eval_every_steps=102_400,
        collect=_FRAGMENTS,
        policy=_SCALED,
        method=trpo.TRPO(gamma=0.99, gae_lambda=0.95),
        optimize=replace(_PPO, epochs=20, minibatches=16, whiten="batch"),
        evaluate=_EPISODES,
    ),
    "a2c": Preset(
        steps=1_000_000,
        eval_every_steps=102_400,
        collect=replace(_FRAGMENTS, num_envs=16, steps=16),
        policy=_SCALED,
        method=a2c.A2C(gamma=0.99, gae_lambda=0.95, critic=_FITTED),
        optimize=_ACTOR_CRITIC,
        evaluate=_EPISODES,
    ),
    "sac": Preset(
        steps=200_000,
        eval_every_steps=20_480,
        collect=CollectSteps(num_envs=1, steps=32),
        replay=Replay(random_steps=10_000),
        policy=replace(_TWINS, hidden_sizes=(256, 256)),
        method=sac.SAC(),
        optimize=replace(_REPLAY, learning_rate=3e-4),
        evaluate=_EPISODES,
    ),
}

_HALF_CHEETAH = Preset(
    steps=1_000_000,
    eval_every_steps=102_400,
    collect=CollectSteps(num_envs=4, steps=128, normalise_rewards=True),
    # A step size that is small beside a standard deviation of 0.14; the usual ones came to 1,600 in 600k.
    policy=replace(_SCALED, hidden_sizes=(256, 256), initial_log_std=-2.0),
    method=ppo.PPO(gamma=0.98, gae_lambda=0.92, clip=0.1, value_coef=0.58, entropy_coef=4e-4),
    optimize=replace(_PPO, learning_rate=2e-5, epochs=20, minibatches=8, max_gradient_norm=0.8),
    evaluate=_EPISODES,
)

_GROUPS = optimize.Optimize(
    learning_rate=5e-3, schedule="linear", epochs=10, minibatches=4, max_gradient_norm=0.5, whiten="none"
)

PRESETS: dict[tuple[str, str], Preset] = {
    ("a2c", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(num_envs=16, steps=16),
        method=a2c.A2C(gamma=0.99, gae_lambda=0.95, critic=_FITTED),
        optimize=_ACTOR_CRITIC,
    ),
    ("a2c", "Pendulum-v1"): Preset(
        steps=1_000_000,
        eval_every_steps=51_200,
        collect=CollectSteps(num_envs=16, steps=16, normalise_rewards=True),
        method=a2c.A2C(gamma=0.95, gae_lambda=0.95, critic=_FITTED),
        optimize=_ACTOR_CRITIC,
    ),
    # One step of A2C, by its name in the book.
    ("td_actor_critic", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(num_envs=16, steps=16),
        method=a2c.A2C(gamma=0.99, gae_lambda=0.0, critic=_FITTED),
        optimize=_ACTOR_CRITIC,
    ),
    ("q_actor_critic", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(num_envs=16, steps=16),
        policy=PolicyConfig(critic="action"),
        # Without, a policy may be deterministic before its critic knows anything.
        method=q_actor_critic.QActorCritic(gamma=0.99, entropy_coef=0.01, critic=_FITTED),
        optimize=_ACTOR_CRITIC,
    ),
    ("td_lambda", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(num_envs=64, steps=1),
        method=td_lambda.TDLambda(gamma=0.99),
        # Plain steps: a norm that suits Adam would cut every one of them.
        optimize=optimize.Optimize(
            learning_rate=2e-3, schedule="linear", epochs=1, max_gradient_norm=0.0, whiten="none"
        ),
    ),
    ("impala", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(num_envs=8, steps=8, lag=4),
        # Truncation at 1 lets a wrong critic push the policy on the way that it last moved, until it is deterministic.
        method=impala.Impala(gamma=0.99, td_lambda=0.95, rho_clip=2.0, entropy_coef=0.01),
        optimize=replace(_ACTOR_CRITIC, learning_rate=7e-4, whiten="none"),
    ),
    ("reinforce", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(episodes=16),
        method=reinforce.Reinforce(gamma=0.99, baseline="value", critic_epochs=10, units="action"),
        optimize=replace(_ACTOR_CRITIC, learning_rate=5e-3),
    ),
    ("off_policy", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(num_envs=16, steps=16, lag=4),
        method=off_policy.OffPolicy(gamma=0.99),
        optimize=_ACTOR_CRITIC,
    ),
    ("ppo", "CartPole-v1"): Preset(
        collect=CollectSteps(num_envs=16, steps=32),
        method=ppo.PPO(gamma=0.99, gae_lambda=0.9, clip=0.2, clip_schedule="linear", value_coef=1.0),
        optimize=replace(_PPO, schedule="linear", epochs=20, minibatches=2),
    ),
    ("ppo", "Pendulum-v1"): Preset(
        eval_every_steps=10_240,
        collect=CollectSteps(num_envs=4, steps=512, normalise_rewards=True),
        method=ppo.PPO(gamma=0.95, gae_lambda=0.95, value_coef=1.0),
        optimize=replace(_PPO, epochs=10, minibatches=8),
    ),
    ("ppo", "Acrobot-v1"): Preset(
        steps=200_000,
        eval_every_steps=20_480,
        collect=CollectSteps(num_envs=16, steps=256),
        policy=PolicyConfig(normalise_observations=True),
        method=ppo.PPO(gamma=0.99, gae_lambda=0.94, value_coef=1.0),
        optimize=replace(_PPO, schedule="linear", epochs=4, minibatches=32),
    ),
    ("ppo_kl", "CartPole-v1"): Preset(
        collect=CollectSteps(num_envs=16, steps=32),
        # Whitened advantages of a solved policy are noise, along which a KL that stays would go on moving it.
        method=ppo_kl.PPOKL(gamma=0.99, gae_lambda=0.9, penalty=3.0, penalty_target_schedule="linear", value_coef=1.0),
        # While the coefficient is still catching up, an update ends at three times the target of the start.
        optimize=replace(_PPO, schedule="linear", epochs=20, minibatches=2, target_kl=0.03),
    ),
    ("trpo", "CartPole-v1"): Preset(
        collect=CollectSteps(num_envs=16, steps=64),
        method=trpo.TRPO(gamma=0.99, gae_lambda=0.95, damping=0.01, max_kl_schedule="linear"),
        optimize=replace(_PPO, epochs=20, minibatches=4, whiten="batch"),
    ),
    ("trpo", "Pendulum-v1"): Preset(
        steps=200_000,
        eval_every_steps=10_240,
        collect=CollectSteps(num_envs=4, steps=512, normalise_rewards=True),
        method=trpo.TRPO(gamma=0.95, gae_lambda=0.95, damping=0.01),
        optimize=replace(_PPO, epochs=20, minibatches=16, whiten="batch"),
    ),
    ("sac", "Pendulum-v1"): Preset(
        steps=20_000,
        eval_every_steps=2_000,
        collect=CollectSteps(num_envs=1, steps=32),
        policy=_TWINS,
        method=sac.SAC(),
        optimize=_REPLAY,
    ),
    ("grpo", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(episodes=16, episodes_per_start=8),
        method=grpo.GRPO(),
        optimize=replace(_GROUPS, learning_rate=3e-3),
    ),
    ("gspo", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(episodes=16, episodes_per_start=8),
        # A mean over the actions of an episode moves less than the ratio of one.
        method=gspo.GSPO(clip=0.03, clip_high=0.04),
        optimize=replace(_GROUPS, learning_rate=3e-3),
    ),
    ("cispo", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(episodes=16, episodes_per_start=8),
        method=cispo.CISPO(),
        optimize=replace(_GROUPS, learning_rate=3e-3),
    ),
    ("rloo", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(episodes=16, episodes_per_start=8),
        method=rloo.RLOO(),
        optimize=replace(_GROUPS, epochs=1, minibatches=1),
    ),
    ("reinforce_pp", "CartPole-v1"): Preset(
        steps=500_000,
        eval_every_steps=10_240,
        collect=CollectSteps(episodes=16),
        method=reinforce_pp.ReinforcePP(gamma=0.99),
        optimize=replace(_GROUPS, learning_rate=3e-3, epochs=4, whiten="batch"),
    ),
    ("discrete_sac", "CartPole-v1"): Preset(
        steps=100_000,
        eval_every_steps=5_120,
        collect=CollectSteps(num_envs=4, steps=32),
        policy=_TWINS,
        method=discrete_sac.DiscreteSAC(target_rate=0.02),
        optimize=replace(_REPLAY, schedule="linear", minibatches=64),
    ),
    ("replay_actor_critic", "CartPole-v1"): Preset(
        steps=100_000,
        eval_every_steps=5_120,
        collect=CollectSteps(num_envs=4, steps=32),
        policy=_TWINS,
        method=replay_actor_critic.ReplayActorCritic(target_rate=0.02, entropy_coef=0.05),
        optimize=replace(_REPLAY, schedule="linear", minibatches=64),
    ),
    **{(name, env_id): settings for name, settings in _ROBOT_PRESETS.items() for env_id in _ROBOTS},
    # After rl-zoo's (https://huggingface.co/sb3/ppo-HalfCheetah-v3); docs/algorithms.md says where they differ.
    ("ppo", "HalfCheetah-v5"): _HALF_CHEETAH,
}


def preset(method: str, env_id: str) -> Preset:
    """The settings for this pair; an environment without its own takes the first ones of the method.

    Args:
        method: A name above, or path/to/file.py:Class, which takes those of PPO that go with it.
    """
    if (method, env_id) in PRESETS:
        return PRESETS[method, env_id]
    first = next((settings for (name, _), settings in PRESETS.items() if name == method), None)
    if first is not None:
        return first
    chosen, ppo_settings = make_method(method), PRESETS["ppo", "CartPole-v1"]
    acting = ppo_settings.collect
    if chosen.needs_episodes or chosen.needs_groups:
        acting = CollectSteps(episodes=16, episodes_per_start=8 if chosen.needs_groups else 1)
    critic = PolicyConfig(critic="action") if chosen.critic_of == "actions" else PolicyConfig()
    settings = fitting(chosen, ppo_settings.optimize)
    return replace(ppo_settings, collect=acting, policy=critic, method=chosen, optimize=settings)
