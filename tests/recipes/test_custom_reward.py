from __future__ import annotations

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import custom_reward
from recipes.settings.language import Precision
from rlhf.algorithms import grpo
from rlhf.algorithms.checks import resolved
from rlhf.optimize import Optimize
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.recipes.small import ARGUMENTS, OWN_METHOD, REWARDS, files, outcome, run, save_model, small_config


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A run of two updates, with everything it leaves behind."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    result = run(custom_reward.main, small_config(model, folder))
    return folder, result


@pytest.fixture
def no_report(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(summary, "write_report", lambda folder: None)


def test_the_reward_of_the_file_is_the_share_of_words_in_s():
    assert custom_reward.alliteration(["So she sang", "", "a b s c"]) == [1.0, 0.0, 0.25]


def test_a_run_leaves_everything_behind(finished):
    folder, result = finished
    assert list(result) == [
        *("score_before", "score_after", "greedy_score_before", "greedy_score_after", "kl_per_response", "seconds")
    ]
    assert json.loads((folder / "result.json").read_text()) == result
    assert {p.name for p in folder.iterdir()} == {
        *(".lock", "config.json", "versions.json", "report.html", "result.json", "ppo")
    }
    assert [row["update"] for row in read_lines(folder / "ppo" / "metrics.jsonl")] == [0, 1, 2]
    kinds = [sample["kind"] for sample in read_lines(folder / "ppo" / "samples.jsonl")]
    assert kinds == ["evaluation"] * 4 + (["training"] * 8 + ["evaluation"] * 4) * 2
    curves = {path.name for path in (folder / "ppo" / "curves").iterdir()}
    assert {"evaluation.png", "return-and-score.png", "KL.png", "entropy.png"} <= curves


def test_kl_at_the_start_is_zero_and_the_reported_one_is_that_of_the_last_evaluation(finished):
    folder, result = finished
    rows = read_lines(folder / "ppo" / "metrics.jsonl")
    assert rows[0]["eval_kl_ref_per_episode"] == pytest.approx(0.0, abs=1e-5)
    assert result["kl_per_response"] == rows[-1]["eval_kl_ref_per_episode"]
    assert abs(result["kl_per_response"]) > 1e-3


def test_the_final_model_loads_with_plain_transformers_and_has_moved(finished, model):
    folder, _ = finished
    final = folder / "ppo" / "final" / "policy" / "model"
    trained, start = (AutoModelForCausalLM.from_pretrained(source) for source in (final, model))
    assert not torch.equal(trained.lm_head.weight, start.lm_head.weight)
    assert AutoTokenizer.from_pretrained(final)("a b")["input_ids"] == [5, 6]


def test_the_folder_of_the_final_policy_is_a_model_to_go_on_from(finished, tmp_path, no_report):
    folder, result = finished
    again = run(custom_reward.main, small_config(folder / "ppo" / "final" / "policy", tmp_path / "run", updates=1))
    assert again["score_before"] == pytest.approx(result["score_after"])


def test_resuming_a_finished_run_trains_nothing_and_reports_the_same(finished, model, no_report):
    folder, result = finished
    before = files(folder)
    assert run(custom_reward.main, small_config(model, folder, resume=True)) == result
    after = files(folder)
    assert {name for name in before if after[name] != before[name]} == {"config.json"}
    assert after.keys() == before.keys()


def test_a_finished_run_can_be_extended(model, tmp_path, no_report):
    run(custom_reward.main, small_config(model, tmp_path / "run", updates=1))
    run(custom_reward.main, small_config(model, tmp_path / "run", updates=2, resume=True))
    run(custom_reward.main, small_config(model, tmp_path / "whole", updates=2))
    extended, whole = (read_lines(tmp_path / name / "ppo" / "metrics.jsonl") for name in ("run", "whole"))
    assert [row["update"] for row in extended] == [0, 1, 2]
    assert extended[-1]["eval_score_mean"] == whole[-1]["eval_score_mean"]
    assert (tmp_path / "run" / "ppo" / "final" / "policy" / "model" / "tokenizer.json").exists()


def test_several_rewards_plain_async_and_per_token_add_up_with_their_weights(model, tmp_path, no_report):
    functions = ("count_a", "no_b", "every_c")
    config = small_config(model, tmp_path / "run", rewards=functions, reward_weights=(1.0, 0.5, 2.0))
    run(custom_reward.main, config)
    for row in read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")[1:]:
        parts = [row[f"reward/{name}"] for name in functions]
        assert row["score_mean"] == pytest.approx(parts[0] + 0.5 * parts[1] + 2.0 * parts[2])
    sample = read_lines(tmp_path / "run" / "ppo" / "samples.jsonl")[0]
    assert sample["parts"]["no_b"] == -sample["response"].count("b")


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_adapters_in_half_precision_with_gradient_checkpointing(architecture, tmp_path, no_report):
    model = save_model(tmp_path / "model", architecture)
    before = files(model)
    config = small_config(
        model, tmp_path / "run", lora=True, precision=Precision(mixed_precision="bf16", gradient_checkpointing=True)
    )
    result = run(custom_reward.main, config)
    rows = read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")
    assert rows[1]["kl_ref_per_episode"] == pytest.approx(0.0, abs=1e-6)
    assert abs(result["kl_per_response"]) > 1e-3
    final = tmp_path / "run" / "ppo" / "final" / "policy" / "model"
    assert (final / "adapter_model.safetensors").exists()
    assert not (final / "model.safetensors").exists()
    adapted = AutoPeftModelForCausalLM.from_pretrained(final)
    moved = [weight for name, weight in adapted.named_parameters() if "lora_B" in name]
    assert any(weight.abs().sum() > 0 for weight in moved)
    assert {weight.dtype for weight in moved} == {torch.float32}
    assert files(model) == before


def test_chat_data_of_messages_without_a_critic(tmp_path, no_report):
    model = save_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant: "
    tokenizer.save_pretrained(model)
    rows = [
        {"messages": [{"role": "user", "content": f"a {word}"}, {"role": "assistant", "content": "b"}]}
        for word in "abcdefg" * 2
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small_config(
        model, tmp_path / "run", data=str(tmp_path / "chat.jsonl"), rewards=["length_of_turn"], critic="none"
    )
    run(custom_reward.main, config)
    row = read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")[-1]
    assert row["value_max"] == 0.0


def test_columns_of_any_name_hold_the_prompts(model, tmp_path, no_report):
    (tmp_path / "texts.csv").write_text(
        "text,bonus\n" + "".join(f"a {word},{i}\n" for i, word in enumerate("abcdefgabc"))
    )
    config = small_config(
        model, tmp_path / "run", data=str(tmp_path / "texts.csv"), prompt_column="text", rewards=["by_bonus"]
    )
    run(custom_reward.main, config)
    sample = read_lines(tmp_path / "run" / "ppo" / "samples.jsonl")[0]
    assert sample["score"] == sample["row"]


def test_tensorboard_gets_the_metrics_beside_the_run(model, tmp_path, no_report):
    run(custom_reward.main, small_config(model, tmp_path / "run", updates=1, tensorboard=True))
    events = list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents*"))
    assert sum(path.stat().st_size for path in events) > 1000
    resumed = small_config(model, tmp_path / "run", updates=1, resume=True)
    run(custom_reward.main, resumed)


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_one_option_chooses_grpo_and_all_that_goes_with_it(model, tmp_path, no_report, monkeypatch):
    options = (
        "--model",
        str(model),
        *ARGUMENTS,
        "--reward",
        f"{REWARDS}:count_a",
        "--output-dir",
        str(tmp_path / "run"),
    )
    assert outcome(monkeypatch, custom_reward, *options, "--method", "grpo") == 0
    settings = settings_of(tmp_path / "run")
    assert settings["critic"] == "none"
    assert resolved(grpo.GRPO(), Optimize(**settings["improve"]["optimize"])).whiten == "none"
    # Charged for the KL like PPO here, in the loss.
    assert settings["improve"]["method"]["kl_coef"] == 0.01
    assert "clip" in settings["improve"]["method"]
    assert "gae_lambda" not in settings["improve"]["method"]
    rows = read_lines(tmp_path / "run" / "grpo" / "metrics.jsonl")
    assert [row["update"] for row in rows] == [0, 1, 2]
    assert all(row["gradient_norm"] > 0.0 and "value_loss" not in row for row in rows[1:])
    start, end = (
        AutoModelForCausalLM.from_pretrained(folder)
        for folder in (model, tmp_path / "run" / "grpo" / "final" / "policy" / "model")
    )
    assert not torch.equal(start.lm_head.weight, end.lm_head.weight)
    assert not (tmp_path / "run" / "ppo").exists()


def test_a_method_of_ones_own_is_given_by_file_and_class(model, tmp_path, no_report, monkeypatch, capsys):
    file = tmp_path / "my_file.py"
    file.write_text(OWN_METHOD)
    options = (
        "--model",
        str(model),
        *ARGUMENTS,
        "--reward",
        f"{REWARDS}:count_a",
        "--output-dir",
        str(tmp_path / "run"),
    )
    mine = ("--method", f"{file}:MyMethod", "--improve.method.strength", "0.5")
    assert outcome(monkeypatch, custom_reward, *options, *mine) == 0
    assert settings_of(tmp_path / "run")["improve"]["method"] == {"strength": 0.5}
    rows = read_lines(tmp_path / "run" / "my_method" / "metrics.jsonl")
    assert [row["update"] for row in rows] == [0, 1, 2]
    # What is logged of every method, and what is its own.
    assert rows[1]["ratio_error_max"] < 1e-5
    assert [row["strength"] for row in rows[1:]] == [0.5, 0.5]
    assert all(row["gradient_norm"] > 0.0 for row in rows[1:])
    assert outcome(monkeypatch, custom_reward, *options, "--method", f"{file}:MyMethd") == 2
    assert "did you mean 'MyMethod'?" in capsys.readouterr().err
