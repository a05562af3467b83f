"""The mechanisms of a run on a language model, and what of them is refused together."""

from __future__ import annotations

from collections.abc import Callable

import rlhf
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.base import Method
from rlhf.algorithms.choices import find_method
from tests.covering.blocks import InBlocks
from tests.covering.cases import Mechanisms, Refusal, refused

METHODS: dict[str, Callable[[float], Method]] = {
    "ppo": lambda kl_coef: rlhf.PPO(kl_coef=kl_coef),
    "ppo warming up": lambda kl_coef: rlhf.PPO(kl_coef=kl_coef, critic_warmup=1, value_clip=0.2),
    "ppo adaptive": lambda kl_coef: rlhf.PPO(kl_coef=kl_coef, kl_target=0.1),
    "ppo by length": lambda kl_coef: rlhf.PPO(kl_coef=kl_coef, length_alpha=0.5, critic_lambda=1.0),
    "ppo_kl": lambda kl_coef: find_method("ppo_kl")(kl_coef=kl_coef),
    "a2c": lambda kl_coef: find_method("a2c")(kl_coef=kl_coef),
    "a2c fitted": lambda kl_coef: find_method("a2c")(kl_coef=kl_coef, critic=Critic(epochs=2)),
    "reinforce": lambda kl_coef: find_method("reinforce")(kl_coef=kl_coef),
    "reinforce fitted": lambda kl_coef: find_method("reinforce")(kl_coef=kl_coef, baseline="value", critic_epochs=2),
    "reinforce_pp": lambda kl_coef: find_method("reinforce_pp")(kl_coef=kl_coef),
    "rloo": lambda kl_coef: find_method("rloo")(kl_coef=kl_coef),
    "grpo": lambda kl_coef: rlhf.GRPO(kl_coef=kl_coef),
    "grpo as dapo": lambda kl_coef: rlhf.GRPO(
        kl_coef=kl_coef, scale="batch", average="action", clip_high=0.28, dual_clip=3.0
    ),
    "gspo": lambda kl_coef: rlhf.GSPO(kl_coef=kl_coef, clip=0.1, clip_high=0.2),
    "cispo": lambda kl_coef: rlhf.CISPO(kl_coef=kl_coef),
    "grpo in blocks": lambda kl_coef: InBlocks(kl_coef=kl_coef, together=3),
    "trpo": lambda kl_coef: find_method("trpo")(kl_coef=kl_coef, fisher_shares=1),
    "impala": lambda kl_coef: find_method("impala")(kl_coef=kl_coef),
    "off_policy": lambda kl_coef: find_method("off_policy")(kl_coef=kl_coef),
}

# The first value of each is the plain one.
FACTORS: dict[str, tuple[str, ...]] = {
    "method": tuple(METHODS),
    "model": ("packed", "padded", "capped head", "experts"),
    "vocabulary": ("exact", "padded"),
    "precision": ("float64", "float32", "bf16"),
    "critic": ("shared", "separate", "none"),
    "adapter": ("none", "lora", "trained lora", "dora", "lora with biases", "lora with a module"),
    "reference": ("none", "same", "bfloat16"),
    "entropy": ("0", "0.01"),
    "group": ("3", "1"),
    "lag": ("0", "1"),
    "steps": ("1 x 1", "2 x 2"),
    "whiten": ("none", "batch", "minibatch"),
    "budget": ("all", "some", "one row"),
    "responses": ("whole", "chunked", "another engine"),
    "prompts": ("text", "chat"),
    "turns": ("one", "several"),
    "scores": ("plain", "one a token", "normalised", "clipped", "penalised", "some missing", "drawn again"),
    "schedule": ("constant", "linear"),
    "temperature": ("1", "0.7"),
    "checkpointing": ("off", "on"),
}

_STEPPING_ONCE = ("a2c", "a2c fitted", "reinforce", "reinforce fitted", "rloo", "impala")
_COMPARING = ("rloo", "grpo", "grpo as dapo", "gspo", "cispo", "grpo in blocks")
_UNWHITENED = ("reinforce", *_COMPARING, "impala")
_NEEDING_CRITIC = ("ppo warming up", "a2c fitted", "reinforce fitted", "off_policy")


def _refusals() -> list[Refusal]:
    def refuse(methods: tuple[str, ...], factor: str, values: tuple[str, ...], message: str) -> list[Refusal]:
        return refused("method", methods, factor, values, message)

    return [
        *refuse(_STEPPING_ONCE, "steps", ("2 x 2",), "takes one step on each batch"),
        *refuse(_UNWHITENED, "whiten", ("batch", "minibatch"), "whiten is"),
        *refuse(("reinforce_pp",), "whiten", ("none", "minibatch"), "whiten is"),
        *refuse(_COMPARING, "group", ("1",), "compares rows that share a start"),
        *refuse(_NEEDING_CRITIC, "critic", ("none",), "critic is none"),
        *refuse(("ppo adaptive",), "reference", ("none",), "kl_coef must be positive"),
        Refusal(("scores", "drawn again"), ("group", "1"), "draw_again is 1 and responses_per_prompt 1"),
        Refusal(("scores", "drawn again"), ("turns", "several"), "overlong_tokens is of single responses"),
    ]


# Not ours to refuse, as no model is loaded in float64 but by tests: torch multiplies experts in float32 and below only,
# and transformers' own attention has a softmax in float32, to which the least float64 is minus infinity. TRPO has no
# entropy bonus.
ABSENT = [
    (("model", "experts"), ("precision", "float64")),
    (("model", "capped head"), ("precision", "float64")),
    (("method", "trpo"), ("entropy", "0.01")),
]
MECHANISMS = Mechanisms(FACTORS, _refusals(), ABSENT)
