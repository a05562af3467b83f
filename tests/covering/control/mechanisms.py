"""The mechanisms of a run on control, and what of them is refused together."""

from __future__ import annotations

from typing import Any

import rlhf
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.choices import find_method
from tests.covering.blocks import InBlocks
from tests.covering.cases import Mechanisms, Refusal, refused

# By name: the class, and its settings beside gamma, kl_coef and entropy_coef, which are mechanisms of their own.
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ppo": (rlhf.PPO, {}),
    "ppo warming up": (rlhf.PPO, {"critic_warmup": 1, "value_clip": 0.2}),
    "ppo adaptive": (rlhf.PPO, {"kl_target": 0.1, "clip_schedule": "linear"}),
    "ppo_kl": (find_method("ppo_kl"), {}),
    "a2c": (rlhf.A2C, {"advantage": "n_step", "num_steps": 2}),
    "a2c fitted": (rlhf.A2C, {"critic": Critic(target="td0", epochs=2, renew_labels=True)}),
    "q_actor_critic": (find_method("q_actor_critic"), {}),
    "q_actor_critic fitted": (find_method("q_actor_critic"), {"critic": Critic(epochs=2), "baseline": "none"}),
    "reinforce": (rlhf.Reinforce, {"discounted_states": True}),
    "reinforce fitted": (rlhf.Reinforce, {"baseline": "value", "critic_epochs": 2}),
    "reinforce least variance": (rlhf.Reinforce, {"baseline": "least_variance"}),
    "reinforce_pp": (find_method("reinforce_pp"), {}),
    "rloo": (rlhf.RLOO, {}),
    "grpo": (rlhf.GRPO, {}),
    "grpo as dapo": (rlhf.GRPO, {"scale": "batch", "average": "action", "clip_high": 0.28, "dual_clip": 3.0}),
    "gspo": (rlhf.GSPO, {"clip": 0.1, "clip_high": 0.2}),
    "cispo": (rlhf.CISPO, {}),
    "grpo in blocks": (InBlocks, {"average": "action", "together": 2}),
    "trpo": (rlhf.TRPO, {"cg_iterations": 3}),
    "impala": (find_method("impala"), {}),
    "off_policy": (find_method("off_policy"), {}),
    "off_policy by trajectory": (find_method("off_policy"), {"ratios": "trajectory", "self_normalised": True}),
    "td_lambda": (find_method("td_lambda"), {}),
    "sac": (rlhf.SAC, {"batch_size": 24}),
    "discrete_sac": (find_method("discrete_sac"), {"batch_size": 24}),
    "replay_actor_critic": (find_method("replay_actor_critic"), {"batch_size": 24}),
    "replay_actor_critic biased": (find_method("replay_actor_critic"), {"batch_size": 24, "sampled_actions": 0}),
}

# The first value of each is the plain one.
FACTORS: dict[str, tuple[str, ...]] = {
    "method": tuple(METHODS),
    "environment": ("choices", "vectors", "CartPole"),
    "acting": ("fragments", "episodes", "groups"),
    "ends": ("terminated", "cut", "both"),
    "starts": ("own", "given"),
    "observations": ("raw", "normalised"),
    "rewards": ("raw", "normalised"),
    "critic": ("state", "action"),
    "reference": ("none", "same", "other"),
    "entropy": ("0", "0.01"),
    "gamma": ("1", "0.9"),
    "lag": ("0", "1"),
    "steps": ("1 x 1", "2 x 2"),
    "whiten": ("none", "batch", "minibatch"),
    "budget": ("all", "some", "one row"),
    "schedule": ("constant", "linear"),
    "precision": ("float64", "float32"),
    "seeds": ("one", "two"),
}

_FITTED = ("a2c fitted", "q_actor_critic fitted", "reinforce fitted")
_Q = ("q_actor_critic", "q_actor_critic fitted")
_REINFORCE = ("reinforce", "reinforce fitted", "reinforce least variance")
_COMPARING = ("rloo", "grpo", "grpo as dapo", "gspo", "cispo", "grpo in blocks")
_IN_EPISODES = (*_REINFORCE, "reinforce_pp", "off_policy by trajectory")
_REPLAYING = ("sac", "discrete_sac", "replay_actor_critic", "replay_actor_critic biased")
_STEPPING_ONCE = ("a2c", "a2c fitted", *_Q, *_REINFORCE, "rloo", "impala", "td_lambda")
_UNWHITENED = ("reinforce", "reinforce least variance", *_COMPARING, "impala", "td_lambda", *_REPLAYING)
_OF_ACTIONS = (*_Q, "sac", "discrete_sac", "replay_actor_critic")
_CHOOSING = (*_Q, *_REPLAYING[1:])
_OF_THEIR_OWN_KIND = ("a2c", "a2c fitted", *_Q, "trpo", "td_lambda")
_OF_STATES = tuple(name for name in METHODS if name not in (*_OF_ACTIONS, *_REPLAYING))


def _refusals() -> list[Refusal]:
    def refuse(methods: tuple[str, ...], factor: str, values: tuple[str, ...], message: str) -> list[Refusal]:
        return refused("method", methods, factor, values, message)

    return [
        *refuse(_STEPPING_ONCE, "steps", ("2 x 2",), "takes one step on each batch"),
        *refuse(_UNWHITENED, "whiten", ("batch", "minibatch"), "whiten is"),
        *refuse(("reinforce_pp",), "whiten", ("none", "minibatch"), "whiten is"),
        *refuse(_COMPARING, "acting", ("fragments", "episodes"), "compares rows that share a start"),
        *refuse(_IN_EPISODES, "acting", ("fragments",), "learns from whole episodes"),
        *refuse(_REPLAYING, "acting", ("episodes", "groups"), "have no meaning for methods with a replay buffer"),
        *refuse(_REPLAYING, "rewards", ("normalised",), "have no meaning for methods with a replay buffer"),
        *refuse(_REPLAYING, "lag", ("1",), "have no meaning for methods with a replay buffer"),
        *refuse(_OF_ACTIONS, "critic", ("state",), "critic is 'state'"),
        *refuse(_OF_STATES, "critic", ("action",), "critic is 'action'"),
        *refuse(_CHOOSING, "environment", ("vectors",), "needs discrete|vector actions need"),
        *refuse(("sac",), "environment", ("choices", "CartPole"), "needs vectors as actions"),
        *refuse(("ppo adaptive",), "reference", ("none",), "kl_coef must be positive"),
        *refuse(_OF_THEIR_OWN_KIND, "seeds", ("two",), "takes steps of its own kind"),
        *refuse(_REPLAYING, "seeds", ("two",), "replay buffers are not offered for several seeds"),
        *refuse(("off_policy",), "seeds", ("two",), "of which several seeds side by side keep only the mean"),
        *refused("seeds", ("two",), "observations", ("normalised",), "normalise_observations is not offered"),
        *refused("seeds", ("two",), "rewards", ("normalised",), "normalise_rewards is not offered"),
        *refused("seeds", ("two",), "reference", ("same", "other"), "starts and a reference are not offered"),
        *refused("seeds", ("two",), "starts", ("given",), "starts and a reference are not offered"),
        *refused("seeds", ("two",), "lag", ("1",), "several seeds side by side are not offered"),
        *refused("seeds", ("two",), "acting", ("episodes", "groups"), "several seeds side by side are not offered"),
    ]


ABSENT = [
    # There is no such setting, or nothing that would end or begin elsewhere.
    *((("method", name), ("reference", value)) for name in _REPLAYING for value in ("same", "other")),
    *((("method", name), ("entropy", "0.01")) for name in ("trpo", "td_lambda", "sac", "discrete_sac")),
    *((("environment", "CartPole"), ("ends", value)) for value in ("cut", "both")),
    # What the one needs is refused to the other.
    *((("method", name), ("seeds", "two")) for name in (*_COMPARING, *_IN_EPISODES, "ppo adaptive")),
    (("critic", "action"), ("seeds", "two")),
]
MECHANISMS = Mechanisms(FACTORS, _refusals(), ABSENT)
