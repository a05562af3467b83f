"""The task Preferences: its reference, what it measures, and reward models that others load."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rlhf
from rlhf.errors import InputError
from rlhf.lm.classifier import require_classifier, save_reward_model
from rlhf.lm.load import load_policy
from rlhf.lm.reward_model import RewardModel
from rlhf.runs.log import read_lines
from tests.lm.tiny import save_tiny
from tests.lm.words import TEMPLATE, WORDS, word_tokenizer
from tests.lm.worlds import word_policy

CPU = torch.device("cpu")
# What is chosen ends in c, what is rejected does not.
PAIRS = [
    {"prompt": f"{first} {second}", "chosen": f" {other} c", "rejected": f" c {other}", "margin": 1 + number}
    for number, (first, second, other) in enumerate(
        (first, second, other) for first in "ab" for second in "defg" for other in "de"
    )
]
LABELS = [
    {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
    for row in PAIRS
    for side in ("chosen", "rejected")
]
CHATS = [
    {"prompt": [{"role": "user", "content": row["prompt"]}]} | {side: row[side][1:] for side in ("chosen", "rejected")}
    for row in PAIRS
]


def policy_of(**changes: Any) -> Any:
    policy = word_policy(dtype=torch.float32, **changes)
    policy.tokenizer = word_tokenizer(template=TEMPLATE)
    return policy


def trained(method: rlhf.Method, rows: Any, out: Path, *, policy: Any = None, updates: int = 2, **options: Any) -> Any:
    policy = policy or policy_of()
    task = rlhf.Preferences(rows, rows_per_update=8, held_out=4)
    settings = rlhf.Optimize(learning_rate=3e-3, epochs=1, **options)
    rlhf.train(policy, task, method, settings, updates=updates, evaluations=1, checkpoints=0, out=out)
    return policy, read_lines(out / method.name / "metrics.jsonl")


@pytest.mark.parametrize("rows", [PAIRS, CHATS], ids=["texts", "chats"])
def test_dpo_begins_at_log_two_and_learns_what_was_chosen(rows: Any, tmp_path: Path) -> None:
    _, found = trained(rlhf.DPO(), rows, tmp_path, updates=30)
    assert found[0]["eval_preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[1]["preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[-1]["eval_accuracy"] == 1.0
    assert found[-1]["eval_preference_loss"] < found[0]["eval_preference_loss"] - 0.02


@pytest.mark.parametrize("rows", [LABELS, PAIRS], ids=["labels", "pairs"])
def test_kto_learns_from_labels_and_from_pairs(rows: Any, tmp_path: Path) -> None:
    _, found = trained(rlhf.KTO(), rows, tmp_path, updates=30)
    assert found[1]["preference_loss"] == pytest.approx(0.5, abs=1e-6)
    assert found[1]["kl_to_reference"] == pytest.approx(0.0, abs=1e-6)
    assert found[-1]["eval_accuracy"] > 0.9
    assert found[-1]["eval_margin"] > 0.05


def test_reference_is_the_policy_at_the_start_at_temperature_one(tmp_path: Path) -> None:
    """Each row scored alone; and no copy of the model is kept."""
    policy, task = policy_of(temperature=0.5), rlhf.Preferences(PAIRS, rows_per_update=16)
    here = rlhf.Here(Accelerator(cpu=True), 0, rlhf.DPO(), rlhf.Optimize(micro_batch_cost=40), None)
    task.read(policy.tokenizer, context=None, method=rlhf.DPO())
    task.prepare(policy, here)
    rollout = task.collect(policy, 0, here).rollout
    assert not policy._frozen
    assert policy.temperature == 1.0
    for row in range(len(rollout.mask)):
        alone = policy({name: x[row : row + 1] for name, x in rollout.inputs.items()}).logprobs[0]
        torch.testing.assert_close(rollout.ref_logprobs[row], alone.detach(), rtol=0, atol=1e-5)  # type: ignore[index]
    task.close()
    assert policy.temperature == 0.5


def test_a_teacher_is_the_reference(tmp_path: Path) -> None:
    save_tiny("gpt2", tmp_path / "student", vocab_size=len(WORDS), eos_token_id=0, pad_token_id=0)
    save_tiny("llama", tmp_path / "teacher", vocab_size=len(WORDS), eos_token_id=0, pad_token_id=0)
    for name in ("student", "teacher"):
        word_tokenizer().save_pretrained(tmp_path / name)
    policy = load_policy(str(tmp_path / "student"), critic="none", reference=str(tmp_path / "teacher"))
    task = rlhf.Preferences(PAIRS, rows_per_update=16)
    here = rlhf.Here(Accelerator(cpu=True), 0, rlhf.DPO(), rlhf.Optimize(micro_batch_cost=40), None)
    task.read(policy.tokenizer, context=None, method=rlhf.DPO())
    task.prepare(policy, here)
    rollout = task.collect(policy, 0, here).rollout
    with torch.no_grad():
        expected = load_policy(str(tmp_path / "teacher"), critic="none")(rollout.inputs).logprobs
    torch.testing.assert_close(rollout.ref_logprobs, expected, rtol=0, atol=1e-5)


def test_held_out_labels_of_one_kind_measure_what_they_can(tmp_path: Path) -> None:
    policy = policy_of()
    task = rlhf.Preferences(
        LABELS, rows_per_update=8, held_out=[row for row in LABELS if row["label"]][:3] + LABELS[1:2]
    )
    settings = rlhf.Optimize(learning_rate=1e-3, epochs=1)
    # Data of one label alone are refused where they are to be learned from or measured by as a whole.
    rlhf.train(policy, task, rlhf.KTO(), settings, updates=1, evaluations=1, out=tmp_path / "mixed")
    for seed in range(3):
        one = rlhf.Preferences(LABELS, rows_per_update=8, held_out=1)
        found = rlhf.train(policy_of(), one, rlhf.KTO(), settings, updates=1, evaluations=1, seed=seed)
        assert set(found.after) == {"eval_score"}


def test_what_is_watched_is_watched_at_its_own_temperature(tmp_path: Path) -> None:
    seen: list[float] = []
    policy = policy_of(temperature=0.5)

    class Temperatures(rlhf.Task):
        def evaluate(self, policy: Any, here: rlhf.Here) -> rlhf.Evaluation:
            seen.append(policy.temperature)
            return rlhf.Evaluation({}, [])

    for task in (
        rlhf.Watched(rlhf.Preferences(PAIRS, rows_per_update=8), {"other": Temperatures()}),
        rlhf.Preferences(PAIRS, rows_per_update=8, also=Temperatures()),
    ):
        rlhf.train(policy, task, rlhf.DPO(), rlhf.Optimize(epochs=1), updates=1, evaluations=1)
    assert seen == [0.5] * 4


def test_updates_hold_whole_pairs_also_where_an_epoch_ends() -> None:
    policy, task = policy_of(), rlhf.Preferences(PAIRS, rows_per_update=12)
    here = rlhf.Here(Accelerator(cpu=True), 0, rlhf.DPO(), rlhf.Optimize(), None)
    task.read(policy.tokenizer, context=None, method=rlhf.DPO())
    task.prepare(policy, here)
    seen = []
    for update in range(4):
        rollout = task.collect(policy, update, here).rollout
        assert rollout.groups is not None
        assert rollout.groups.unique(return_counts=True)[1].tolist() == [2] * 12
        assert len(rollout.sample_ids.unique()) == 24
        assert rollout.rewards.sum(1).view(-1, 2).sum(1).abs().max() == 0
        seen += [int(group) % 16 for group in rollout.groups[::2]]
    assert sorted(seen) == sorted([*range(16)] * 3)


def test_evaluation_of_labels_is_over_all_pairs_of_both_kinds(tmp_path: Path) -> None:
    """The share of pairs of a desirable and an undesirable row in which the first scores more."""
    policy, _ = trained(rlhf.KTO(), LABELS, tmp_path)
    task = rlhf.Preferences(LABELS, rows_per_update=8, held_out=LABELS[:6])
    here = rlhf.Here(Accelerator(cpu=True), 0, rlhf.KTO(), rlhf.Optimize(), None)
    task.read(policy.tokenizer, context=None, method=rlhf.KTO())
    task.prepare(policy_of(), here)
    found = task.evaluate(policy, here).metrics
    rows = task._evaluated.rows(torch.arange(0, 12, 2))  # type: ignore[union-attr]
    scores = 0.1 * (policy(rows.inputs).logprobs.detach() - rows.ref_logprobs).masked_fill(~rows.mask, 0.0).sum(1)
    pairs = [(float(scores[i]), float(scores[j])) for i in (0, 2, 4) for j in (1, 3, 5)]
    assert found["eval_accuracy"] == pytest.approx(sum(a > b for a, b in pairs) / 9)
    assert found["eval_margin"] == pytest.approx(sum(a - b for a, b in pairs) / 9, abs=1e-6)


def test_samples_show_the_pairs_that_were_measured(tmp_path: Path) -> None:
    trained(rlhf.DPO(), CHATS, tmp_path)
    shown = [row for row in read_lines(tmp_path / "dpo" / "samples.jsonl") if row["update"] == 2]
    assert len(shown) == 4
    texts = {(row["chosen"], row["rejected"]) for row in CHATS}
    assert all((row["chosen"], row["rejected"]) in texts for row in shown)
    assert all(isinstance(row["chosen_score"], float) for row in shown)


# --- reward models


ARCHITECTURES = ["llama", "qwen2", "gpt2", "mistral", "opt"]


def saved_reward_model(folder: Path, architecture: str, **settings: Any) -> tuple[Any, Path]:
    """One trained for a few updates, and where it was written."""
    save_tiny(architecture, folder / "base", vocab_size=len(WORDS), eos_token_id=0, pad_token_id=0)
    word_tokenizer(template=TEMPLATE).save_pretrained(folder / "base")
    policy = load_policy(str(folder / "base"), critic="shared", **settings)
    trained(rlhf.BradleyTerry(centring_coef=0.01), CHATS, folder / "run", policy=policy, updates=4)
    save_reward_model(policy, folder / "saved")
    return policy, folder / "saved"


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}], ids=["all weights", "lora"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_reward_model_scores_as_the_policy_does(architecture: str, settings: dict, tmp_path: Path) -> None:
    """By the policy's value head, by RewardModel, and by plain transformers alone, padded and in a batch; where the
    model pads with what ends a text."""
    policy, folder = saved_reward_model(tmp_path, architecture, **settings)
    task = rlhf.Preferences(CHATS, rows_per_update=8)
    task.read(policy.tokenizer, context=policy.context, method=rlhf.BradleyTerry())
    rollout = task._rows[0]  # type: ignore[index]
    with torch.no_grad():
        ours = policy(rollout.inputs).values[:, 0]
    assert float(ours.std()) > 1e-3
    answers = [row[side] for row in CHATS for side in ("chosen", "rejected")]
    prompts = [row["prompt"] for row in CHATS for _ in range(2)]
    model = RewardModel(str(folder), device=CPU)
    scores = torch.tensor(model(prompts, answers, [True] * len(answers)))
    torch.testing.assert_close(scores, ours, rtol=0, atol=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id not in policy.stop_tokens
    assert plain.config.pad_token_id == tokenizer.pad_token_id
    texts = [
        tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], tokenize=False)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    # Rows of several lengths, so that some are padded.
    texts[0] = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False
    )
    # GPT-2 counts positions from the left, padding included, unless it is told otherwise.
    for side in ("right",) if architecture == "gpt2" else ("right", "left"):
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side, add_special_tokens=False)
        with torch.no_grad():
            together = plain(**batch).logits[:, 0]
        torch.testing.assert_close(together[1:], ours[1:], rtol=0, atol=1e-5)
    with torch.no_grad():
        alone = plain(**tokenizer(texts[:1], return_tensors="pt", add_special_tokens=False)).logits[0, 0]
    torch.testing.assert_close(together[0], alone, rtol=0, atol=1e-5)


def test_reward_model_learns_pairs_it_has_not_seen(tmp_path: Path) -> None:
    policy = policy_of()
    torch.nn.init.zeros_(policy.value_head.weight)
    _, found = trained(rlhf.BradleyTerry(), PAIRS, tmp_path, policy=policy, updates=40)
    assert found[0]["eval_preference_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert found[-1]["eval_accuracy"] == 1.0
    assert found[-1]["eval_preference_loss"] < 0.4


def test_reward_model_is_the_critic_that_a_run_may_begin_with(tmp_path: Path) -> None:
    policy, folder = saved_reward_model(tmp_path, "llama")
    critic = load_policy(str(tmp_path / "base"), critic="separate", critic_model=str(folder)).critic_trunk
    assert critic is not None
    own = dict(policy.model.model.named_parameters())
    assert all(torch.equal(tensor, own[name]) for name, tensor in critic.named_parameters())


def test_reward_model_of_an_adapter_in_half_precision_is_saved(tmp_path: Path) -> None:
    """Its frozen layers are held in bfloat16 by then."""
    save_tiny("llama", tmp_path / "base", vocab_size=len(WORDS), eos_token_id=0, pad_token_id=0)
    word_tokenizer(template=TEMPLATE).save_pretrained(tmp_path / "base")
    policy = load_policy(str(tmp_path / "base"), critic="shared", lora_rank=4)
    task, settings = rlhf.Preferences(CHATS, rows_per_update=8), rlhf.Optimize(learning_rate=3e-3, epochs=1)
    rlhf.train(policy, task, rlhf.BradleyTerry(), settings, updates=4, mixed_precision="bf16")
    save_reward_model(policy, tmp_path / "saved")
    model = RewardModel(str(tmp_path / "saved"), device=CPU)
    scores = model([row["prompt"] for row in CHATS], [row["chosen"] for row in CHATS], [True] * len(CHATS))
    assert all(math.isfinite(score) for score in scores)


def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    policy, _ = saved_reward_model(tmp_path, "llama")
    with torch.no_grad():
        policy.value_head.bias.fill_(0.5)
    with pytest.raises(InputError, match="the value head has a bias"):
        save_reward_model(policy, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    for critic in ("none", "separate"):
        other = load_policy(str(tmp_path / "base"), critic=critic)
        with pytest.raises(InputError, match=f"critic is {critic}, but a reward model is the model itself"):
            require_classifier(other)


def test_a_model_that_transformers_has_no_classifier_of_is_refused(tmp_path: Path) -> None:
    save_tiny("lfm2", tmp_path, vocab_size=len(WORDS), eos_token_id=0, pad_token_id=0)
    word_tokenizer(template=TEMPLATE).save_pretrained(tmp_path)
    task = rlhf.Preferences(PAIRS, rows_per_update=8)
    with pytest.raises(InputError, match="transformers makes no classifier of a lfm2"):
        rlhf.train(load_policy(str(tmp_path), critic="shared"), task, rlhf.BradleyTerry(), updates=1)


# --- what does not go together


def test_methods_and_tasks_that_do_not_go_together_are_refused() -> None:
    policy = policy_of()
    with pytest.raises(InputError, match="dpo learns from pairs, and the data has one answer a row"):
        rlhf.train(policy, rlhf.Preferences(LABELS), rlhf.DPO(), updates=1)
    with pytest.raises(InputError, match=r"ppo learns from rewards, and here there are pairs or labels; take DPO\(\)"):
        rlhf.train(policy, rlhf.Preferences(PAIRS), rlhf.PPO(), updates=1)
    task = rlhf.Prompts(PAIRS, lambda responses: [0.0] * len(responses), max_new_tokens=4)
    with pytest.raises(InputError, match=r"dpo learns from pairs, and here there are rewards; take PPO\(\), or a task"):
        rlhf.train(policy, task, rlhf.DPO(), updates=1)
    with pytest.raises(InputError, match=r"dpo learns from pairs, and here there are demonstrations"):
        rlhf.train(policy, rlhf.Demonstrations([{"text": "a b"}] * 4, rows_per_update=2), rlhf.DPO(), updates=1)


def test_reward_models_need_a_value_head(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, vocab_size=len(WORDS), eos_token_id=0, pad_token_id=0)
    word_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(str(tmp_path), critic="none")
    with pytest.raises(InputError, match="critic is none, but reward_model with these settings fits one"):
        rlhf.train(policy, rlhf.Preferences(PAIRS, rows_per_update=8), rlhf.BradleyTerry(), updates=1)
