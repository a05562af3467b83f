"""A language model learns to use a calculator, since answers are right with it and seldom without.

    python recipes/tools.py
    python recipes/tools.py --method grpo
    python recipes/tools.py --model Qwen/Qwen2.5-0.5B-Instruct --lora     # a chat model that knows how to call tools
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/tools.py

Without --model nothing is downloaded: a small transformer is built from its config and cloned from a teacher who is
asked for products of two three-digit numbers, guesses most of the time, and now and then asks the calculator first,
whose answer comes back as a turn of its own. PPO then sees nothing but whether the last answer is right. With a chat
model there is no cloning: its template shows it the tool. result.json tells on products never trained on how often the
last answer is right, and how often the calculator was asked, before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from recipes.settings.language import (
    Adapted,
    CloneConfig,
    ImproveConfig,
    Precision,
    engine_of,
    for_language_models,
    lora_settings,
    with_method,
)
from rlhf.algorithms.checks import require_policy
from rlhf.algorithms.choices import method_help
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.ppo import PPO
from rlhf.deferred import deferred
from rlhf.lm.settings import CollectResponses
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.settings import Count, Location, Positive, Seed, Share

with deferred():
    import torch
    from accelerate import Accelerator
    from transformers import LlamaConfig

    from rlhf.core.random import derive_seed, uniforms
    from rlhf.lm.conversations import Conversations
    from rlhf.lm.data import hold_out
    from rlhf.lm.demonstrations import Demonstrations
    from rlhf.lm.load import build_policy, load_policy, load_tokenizer, model_sums
    from rlhf.lm.policy import CausalLM
    from rlhf.lm.tokenizers import character_tokenizer
    from rlhf.runs.clock import seconds_spent
    from rlhf.runs.door import require_new_or_resumed
    from rlhf.runs.log import trackers
    from rlhf.runs.run import Run
    from rlhf.runs.summary import conclude
    from rlhf.sources import code_sums
    from rlhf.training import require, train_phase

# A product, the question to the calculator, its answer, and the model's own.
CONTEXT = 40
# Every turn of others ends with `>`, every one of the model's with its end of sequence. A question begins with `?`.
TEMPLATE = (
    "{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}<eos>{% else %}>{% endif %}{% endfor %}"
)


def multiply(a: int, b: int) -> int:
    """Multiplies two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return int(a) * int(b)


def calls(text: str) -> dict[str, Any]:
    """What the small model writes, as a message: `?123*456` asks the calculator."""
    if not text.startswith("?"):
        return {"content": text}
    a, _, b = text[1:].partition("*")
    function = {"name": "multiply", "arguments": {"a": a, "b": b}}
    return {"content": text, "tool_calls": [{"type": "function", "function": function}]}


def right(responses: list[str], answer: list[str], **_: Any) -> list[float]:
    """The reward: 1 where the last answer holds the product as its last number, 0 for any other."""
    found = ["".join(c if c.isdigit() else " " for c in text.replace(",", "")).split() for text in responses]
    return [float(bool(numbers) and numbers[-1] == wanted) for numbers, wanted in zip(found, answer, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Config(Adapted):
    """A model that learns when to ask a tool."""

    model: Location = ""
    """Hub id or folder of a chat model whose template shows tools, or an adapter of one; empty: a small one is made."""
    asks: Share = 0.2
    """Share of the teacher's demonstrations that ask the calculator."""
    products: Count = 6000
    """Products in all."""
    held_out: Count = 500
    """Products that are only evaluated on."""
    max_new_tokens: Count = 10
    """Longest turn; a chat model wants some 100."""
    max_turns: Count = 2
    """Turns of the model; a chat model may want more."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    critic: Literal["shared", "separate", "none"] = "shared"
    """Value head on the policy's own trunk, on a trunk of its own, or no values: all are 0."""
    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/tools")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir; with more updates, a finished one too."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    precision: Precision = Precision()
    clone: CloneConfig = CloneConfig(
        rows_per_update=256,
        train=Duration(updates=800, eval_every=0, checkpoint_every=200),
        optimize=Optimize(learning_rate=2e-3, schedule="linear", warmup_updates=50, epochs=1, adam_beta2=0.99),
    )
    improve: ImproveConfig = ImproveConfig(
        collect=CollectResponses(prompts_per_rollout=256),
        method=PPO(gae_lambda=0.95),
        train=Duration(updates=40, eval_every=10, checkpoint_every=10),
        optimize=Optimize(learning_rate=3e-4, schedule="linear", epochs=2, minibatches=2),
    )

    def __post_init__(self) -> None:
        require_policy(self.improve.method, memoryless=False, has_critic=self.critic != "none")
        lora_settings(self)


def default_config(method: str = "ppo") -> Config:
    config = Config()
    critic, improve = with_method(config.improve, method)
    return replace(config, critic=critic, improve=improve)


def products(config: Config) -> list[dict[str, Any]]:
    """Three-digit factors, drawn by the seed."""
    draws = uniforms(config.seed, "products", 0, torch.arange(config.products), 2)
    rows = []
    for a, b in (100 + (draws * 900).long()).tolist():
        question = f"{a}*{b}" if not config.model else f"What is {a} * {b}? Answer with the number."
        rows.append({"prompt": [{"role": "user", "content": question}], "answer": str(a * b), "a": a, "b": b})
    return rows


def demonstrations(rows: list[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    """The teacher's conversations: a guess of the right length, or the calculator's answer."""
    ids = torch.arange(len(rows))
    draws = uniforms(config.seed, "asks", 0, ids, 1).squeeze(1).tolist()
    guesses = uniforms(config.seed, "guesses", 0, ids, 1).squeeze(1).tolist()
    shown = []
    for row, draw, guess in zip(rows, draws, guesses, strict=True):
        asked = {"role": "assistant", "content": f"?{row['a']}*{row['b']}"}
        told = [{"role": "tool", "content": row["answer"]}, {"role": "assistant", "content": row["answer"]}]
        low = 10 ** (len(row["answer"]) - 1)
        guessed = {"role": "assistant", "content": str(low + int(9 * low * guess))}
        shown.append({"messages": [*row["prompt"], *([asked, *told] if draw < config.asks else [guessed])]})
    return shown


def small_policy(config: Config, tokenizer: Any) -> CausalLM:
    policy = build_policy(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        ),
        temperature=config.temperature,
        critic=config.critic,
        seed=derive_seed(config.seed, "weights"),
        gradient_checkpointing=config.precision.gradient_checkpointing,
        reference_dtype=config.improve.reference_dtype,
    )
    policy.tokenizer = tokenizer
    return policy


def small_tokenizer() -> Any:
    tokenizer = character_tokenizer("0123456789*?>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def main(config: Config) -> dict[str, float]:
    accelerator = Accelerator(
        mixed_precision=config.precision.mixed_precision,
        **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir),
    )
    rows, small = products(config), not config.model
    training, held_out = (
        [rows[i] for i in part.tolist()] for part in hold_out(len(rows), num_held_out=config.held_out, seed=config.seed)
    )
    talks = Conversations(
        training,
        tools=[multiply],
        reward=right,
        max_turns=config.max_turns,
        max_new_tokens=config.max_new_tokens,
        held_out=held_out,
        # The small model's template has no words for tools, nor its calls any for JSON.
        show_tools=not small,
        parse=calls if small else None,
        engine=engine_of(config.improve),
        **vars(config.improve.collect),
    )
    tokenizer = small_tokenizer() if small else load_tokenizer(config.model)
    talks.read(tokenizer, context=CONTEXT if small else None)
    talks.require_size(accelerator)
    require_new_or_resumed(config.output_dir, resume=config.resume)
    method = config.improve.method
    if small:
        policy = small_policy(config, tokenizer)
    else:
        policy = load_policy(
            config.model,
            critic=config.critic,
            **lora_settings(config),
            reference_dtype=config.improve.reference_dtype,
            gradient_checkpointing=config.precision.gradient_checkpointing,
            temperature=config.temperature,
            seed=derive_seed(config.seed, "weights"),
        )
    require(policy, talks, method, config.improve.optimize, accelerator)
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"improve.train.updates"},
        inputs=lambda: code_sums("method", method) | ({} if small else model_sums(config.model)),
        any_processes=True,
        accept_changes=config.accept_changes,
    )
    spent: list[dict[str, Any]] = []
    if small:
        cloning = Demonstrations(demonstrations(training, config), rows_per_update=config.clone.rows_per_update)
        first = run.phase("clone")
        train_phase(
            policy, cloning, BehaviourCloning(), config.clone.optimize, duration=config.clone.train, phase=first,
            seed=config.seed,
        )  # fmt: skip
        spent += first.rows()
    phase = run.phase(method.name)
    before, after, _ = train_phase(
        policy, talks, method, config.improve.optimize, duration=config.improve.train, phase=phase, seed=config.seed
    )
    result = {
        f"{name}_{when}": row[f"eval_{key}"]
        for name, key in (
            ("right", "score_mean"),
            ("greedily_right", "greedy_score_mean"),
            ("asked", "tool_calls_mean"),
        )
        for when, row in (("before", before), ("after", after))
    }
    result["seconds"] = seconds_spent([*spent, *phase.rows()])
    conclude(run, result)
    return result


if __name__ == "__main__":
    launch(main, Config, default=default_config, picks={"method": method_help(for_language_models())})
