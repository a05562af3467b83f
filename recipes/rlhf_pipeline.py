"""The three stages of RLHF in one run: supervised fine-tuning, a reward model from pairs, PPO against it.

    python recipes/rlhf_pipeline.py --model gpt2 --demonstrations chats.jsonl --pairs pairs.jsonl
    python recipes/rlhf_pipeline.py --model gpt2 --pairs pairs.jsonl --prompts prompts.jsonl --lora
    python recipes/rlhf_pipeline.py --model gpt2 --prompts prompts.jsonl --gold my_rewards.py:polite
    accelerate launch --config_file recipes/accelerate/multi_gpu.yaml recipes/rlhf_pipeline.py --model gpt2 ...

(Ouyang et al., 2022; https://arxiv.org/abs/2203.02155.) Without demonstrations the first stage is left out, as for a
model that converses already. PPO answers the prompts; without any, those of the pairs. With --gold and no pairs nobody
needs to have compared anything: that function compares the model's own answers, and afterwards tells on prompts never
trained on whether the reward model was right: PPO itself never sees it. result.json has each stage's numbers; the
reward model is in reward_model_folder/, the policy in ppo/final/policy/model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.settings.language import Adapted, ImproveConfig, Precision, lora_settings
from recipes.settings.preferences import kept_rows
from rlhf.algorithms.bradley_terry import BradleyTerry
from rlhf.algorithms.checks import require_policy
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.algorithms.ppo import PPO
from rlhf.deferred import deferred
from rlhf.errors import InputError
from rlhf.lm.settings import CollectResponses
from rlhf.loop import Duration
from rlhf.optimize import Optimize
from rlhf.runs.launch import launch
from rlhf.settings import Count, Location, Positive, Seed, Settings

with deferred():
    from accelerate import Accelerator

    from rlhf.core.random import derive_seed
    from rlhf.lm.classifier import save_reward_model
    from rlhf.lm.data import Data, hold_out, load_data
    from rlhf.lm.demonstrations import Demonstrations
    from rlhf.lm.load import context_length, load_policy, load_tokenizer, model_sums
    from rlhf.lm.policy import CausalLM
    from rlhf.lm.preference_data import preferred
    from rlhf.lm.preferences import Preferences
    from rlhf.lm.prompts import Prompts
    from rlhf.lm.reward_model import RewardModel, named_reward
    from rlhf.lm.sampled_pairs import sample_pairs
    from rlhf.runs.clock import seconds_spent
    from rlhf.runs.door import require_new_or_resumed
    from rlhf.runs.log import trackers
    from rlhf.runs.run import Run
    from rlhf.runs.summary import conclude
    from rlhf.training import train_phase

# Within output_dir.
REWARD_MODEL = "reward_model_folder"


@dataclass(frozen=True, kw_only=True)
class Stage(Settings):
    """How long and how fast a stage learns from data."""

    rows_per_update: Count = 16
    """Rows of one optimizer step, over all processes."""
    passes: Positive = 1.0
    """Times that each row is learned from."""
    optimize: Optimize = Optimize(learning_rate=1e-5, schedule="linear", epochs=1)


@dataclass(frozen=True, kw_only=True)
class Config(Adapted):
    """Supervised fine-tuning, a reward model, PPO."""

    model: Location
    """Hub id or folder of a causal language model or LoRA adapter, or a .gguf file."""
    demonstrations: Location = ""
    """What the model is to write, as for sft.py; empty: it writes well enough."""
    pairs: Location = ""
    """What people compared, as for reward_model.py."""
    prompts: Location = ""
    """What PPO answers; empty: the prompts of the pairs."""
    gold: Location = ""
    """path/to/file.py:function, which without pairs compares the model's own answers in the place of people, and is
    measured, and not paid, where PPO answers."""
    pairs_of: Count = 1000
    """Of so many prompts, with gold; fewer if there are not as many."""
    answers_each: Count = 4
    """Answers to each of them."""
    held_out: Count = 16
    """Rows of each kind of data that are only evaluated on."""
    max_new_tokens: Count = 64
    """Longest answer, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    seed: Seed = 0
    """Everything random follows from it."""
    output_dir: Path = Path("runs/rlhf_pipeline")
    """Folder for what the run leaves behind."""
    resume: bool = False
    """Continue the run in output_dir; with more PPO updates, a finished one too."""
    accept_changes: bool = False
    """With --resume: go on although data, code or models are not those that the run was started from."""
    tensorboard: bool = False
    """Also log for tensorboard, into output_dir/tensorboard."""
    precision: Precision = Precision()
    clone: Stage = Stage(passes=3.0)
    compare: Stage = Stage()
    improve: ImproveConfig = ImproveConfig(
        collect=CollectResponses(prompts_per_rollout=16, responses_per_prompt=4),
        method=PPO(kl_coef=0.05, value_coef=0.1),
        train=Duration(updates=40, eval_every=10, checkpoint_every=10),
        optimize=Optimize(learning_rate=1e-5, epochs=2, minibatches=2),
    )

    def __post_init__(self) -> None:
        lora_settings(self)
        require_policy(self.improve.method, memoryless=False, has_critic=True)
        if not self.pairs and not self.gold:
            raise InputError(
                "pairs and gold are both empty; give pairs that people compared, or a function that compares in their "
                "place."
            )
        if not self.pairs and not self.prompts:
            raise InputError("gold compares answers to prompts, and prompts is empty; give them.")


def stage_duration(stage: Stage, rows: int) -> Duration:
    """Measured five times on the way."""
    updates = max(round(stage.passes * rows / stage.rows_per_update), 1)
    return Duration(updates=updates, eval_every=-(-updates // 5), checkpoint_every=-(-updates // 5))


def load(config: Config, model: str) -> CausalLM:
    """A model with a value head. An adapter comes along with a policy that has one."""
    adapter = lora_settings(config) if model == config.model else {"quantize": config.quantize}
    return load_policy(
        model,
        critic="shared",
        **adapter,
        reference_dtype=config.improve.reference_dtype,
        gradient_checkpointing=config.precision.gradient_checkpointing,
        temperature=config.temperature,
        seed=derive_seed(config.seed, "weights"),
    )


def prompts_of(config: Config) -> Data:
    if config.prompts:
        return load_data(config.prompts)
    sides = preferred(load_data(config.pairs))
    if len(sides) == 1:
        raise InputError(f"{config.pairs} has one answer a row with a label; a reward model needs chosen and rejected.")
    rows = [{name: value for name, value in row.items() if name != "completion"} for row in sides[0].data.rows]
    return Data(name=f"the prompts of {config.pairs}", rows=rows)


def main(config: Config) -> dict[str, float]:
    accelerator = Accelerator(
        mixed_precision=config.precision.mixed_precision,
        **trackers(tensorboard=config.tensorboard, output_dir=config.output_dir),
    )
    # Whatever can be wrong with the input shows before the weights load, and all else before the folder is made.
    tokenizer, context = load_tokenizer(config.model), context_length(config.model)
    asked = prompts_of(config)
    gold: Any = named_reward(config.gold) if config.gold else None
    answering = prompts_task(config, asked, gold or _nothing)
    answering.read(tokenizer, context=context)
    answering.require_size(accelerator)
    shown = compared = None
    if config.demonstrations:
        shown = Demonstrations(
            config.demonstrations, rows_per_update=config.clone.rows_per_update, held_out=config.held_out
        )
        shown.read(tokenizer, context=context)
        shown.require_size(accelerator)
    if config.pairs:
        compared = Preferences(config.pairs, rows_per_update=config.compare.rows_per_update, held_out=config.held_out)
        compared.read(tokenizer, context=context, method=config_of_reward_model())
        compared.require_size(accelerator)
    require_new_or_resumed(config.output_dir, resume=config.resume)
    given = [task for task in (shown, compared, answering) if task is not None]
    run = Run(
        config.output_dir,
        config,
        resume=config.resume,
        accelerator=accelerator,
        extendable={"improve.train.updates"},
        inputs=lambda: (
            {name: value for task in given for name, value in task.inputs().items()} | model_sums(config.model)
        ),
        any_processes=True,
        accept_changes=config.accept_changes,
    )
    result: dict[str, float] = {}
    start, rows, policy = config.model, [], None
    if shown is not None:
        phase = run.phase("clone")
        policy = load(config, start)
        before, after, _ = train_phase(
            policy, shown, BehaviourCloning(), config.clone.optimize,
            duration=stage_duration(config.clone, len(shown.data.rows) - config.held_out), phase=phase,
            seed=config.seed,
        )  # fmt: skip
        result |= {"loss_before": before["eval_loss"], "loss_after": after["eval_loss"]}
        start, rows = str(phase.folder / "final" / "policy"), [*phase.rows()]
    phase = run.phase("reward_model")
    judge = load(config, start)
    if compared is None:
        compared = compared_by_gold(config, run, judge.to(accelerator.device), asked, gold)
    num_rows = len(compared.data.rows) - (compared.held_out if isinstance(compared.held_out, int) else 0)
    _, after, _ = train_phase(
        judge, compared, config_of_reward_model(), config.compare.optimize,
        duration=stage_duration(config.compare, num_rows), phase=phase, seed=config.seed,
    )  # fmt: skip
    result |= {"pair_accuracy": after["eval_accuracy"], "calibration_error": after["eval_calibration_error"]}
    rows += phase.rows()
    if accelerator.is_main_process:
        save_reward_model(judge, config.output_dir / REWARD_MODEL)
    accelerator.wait_for_everyone()
    del judge, compared, shown, policy
    phase = run.phase(config.improve.method.name)
    reward = RewardModel(str(config.output_dir / REWARD_MODEL), device=accelerator.device)
    before, after, _ = train_phase(
        load(config, start), prompts_task(config, asked, reward, *([gold] if gold else [])), config.improve.method,
        config.improve.optimize, duration=config.improve.train, phase=phase, seed=config.seed,
    )  # fmt: skip
    for name in ("score_mean", "gold_score_mean", "length_mean", "kl_ref_per_episode"):
        found = f"eval_{gold.__name__}" if name.startswith("gold") and gold else f"eval_{name}"
        if found in after:
            result |= {f"{name}_before": before[found], f"{name}_after": after[found]}
    result["seconds"] = seconds_spent([*rows, *phase.rows()])
    conclude(run, result)
    return result


def _nothing(responses: list[str]) -> list[float]:
    return [0.0] * len(responses)


def config_of_reward_model() -> BradleyTerry:
    # Scores near 0, as a value head begins with.
    return BradleyTerry(centring_coef=0.01)


def prompts_task(config: Config, asked: Data, *rewards: Any) -> Prompts:
    """The first reward is paid, what else there is is measured."""
    return Prompts(
        asked,
        list(rewards),
        reward_weights=[1.0, *(0.0 for _ in rewards[1:])],
        held_out=config.held_out,
        max_new_tokens=config.max_new_tokens,
        **vars(config.improve.collect),
    )


def compared_by_gold(config: Config, run: Run, policy: CausalLM, asked: Data, gold: Any) -> Preferences:
    """Pairs of the model's own answers, the held-out ones to prompts that PPO is measured on; they stay in the run."""
    training, evaluated = hold_out(len(asked.rows), num_held_out=config.held_out, seed=config.seed)

    def pairs(numbers: list[int], purpose: str) -> list[dict[str, Any]]:
        return sample_pairs(
            policy,
            Data(name=asked.name, rows=[asked.rows[number] for number in numbers]),
            gold,
            max_new_tokens=config.max_new_tokens,
            responses_per_prompt=config.answers_each,
            seed=derive_seed(config.seed, purpose),
            token_budget=config.compare.optimize.micro_batch_cost,
        )

    return Preferences(
        kept_rows(run, "pairs.jsonl", lambda: pairs(training.tolist()[: config.pairs_of], "pairs")),
        rows_per_update=config.compare.rows_per_update,
        held_out=kept_rows(run, "held_out_pairs.jsonl", lambda: pairs(evaluated.tolist(), "held-out pairs")),
    )


if __name__ == "__main__":
    launch(main, Config)
