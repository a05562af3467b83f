"""dpo.py, reward_model.py, rlhf_pipeline.py on a tiny model: what they leave behind, resume, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from recipes import custom_reward, dpo, reward_model, rlhf_pipeline
from rlhf import optimize
from rlhf.algorithms.dpo import DPO
from rlhf.algorithms.kto import KTO
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.recipes.small import REWARDS, improve_config, outcome, run, small_config

PAIRS = [
    {"prompt": f"{first} {second}", "chosen": f" {other} c", "rejected": f" c {other}"}
    for first in "ab"
    for second in "defg"
    for other in "deg"
]
PROMPTS = [{"prompt": f"{first} {second}"} for first in "abc" for second in "defgab"]
FAST = optimize.Optimize(learning_rate=1e-2, epochs=1)


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(summary, "write_report", lambda folder: None)


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    return written(tmp_path / "pairs.jsonl", PAIRS)


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return written(tmp_path / "prompts.jsonl", PROMPTS)


def small_dpo(model: Path, data: str, folder: Path, **changes: Any) -> dpo.Config:
    given = {"held_out": 8, "rows_per_update": 8, "passes": 10.0, "evaluations": 2, "optimize": FAST, **changes}
    return dpo.Config(model=str(model), data=data, output_dir=folder, **given)


def small_reward_model(model: Path, data: str, folder: Path, **changes: Any) -> reward_model.Config:
    given = {"held_out": 8, "rows_per_update": 8, "passes": 20.0, "evaluations": 2, "optimize": FAST, **changes}
    return reward_model.Config(model=str(model), data=data, output_dir=folder, **given)


@pytest.mark.parametrize("method", [DPO(), KTO()], ids=lambda method: method.name)
def test_dpo_recipe_learns_the_pairs(method: Any, model: Path, pairs: str, tmp_path: Path) -> None:
    result = run(dpo.main, small_dpo(model, pairs, tmp_path / "run", method=method))
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert result["accuracy_after"] > 0.9
    assert result["margin_after"] > 0.3
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / method.name / "final" / "policy" / "model")


def test_dpo_recipe_resumes_to_the_run_it_would_have_been(model: Path, pairs: str, tmp_path: Path) -> None:
    whole = run(dpo.main, small_dpo(model, pairs, tmp_path / "whole"))
    run(dpo.main, small_dpo(model, pairs, tmp_path / "parts", passes=5.0))
    again = run(dpo.main, small_dpo(model, pairs, tmp_path / "parts", resume=True))
    assert again == whole


def test_dpo_recipe_compares_the_models_own_answers(model: Path, tmp_path: Path) -> None:
    prompts = written(tmp_path / "prompts.jsonl", PROMPTS * 3)
    own = {"reward": f"{REWARDS}:count_a", "max_new_tokens": 12, "responses_per_prompt": 8, "held_out": 18}
    slowly = {"method": DPO(beta=0.3), "optimize": optimize.Optimize(learning_rate=1e-3, epochs=1)}
    result = run(dpo.main, small_dpo(model, prompts, tmp_path / "run", **own, **slowly))
    assert result["score_mean_after"] > result["score_mean_before"] + 0.5
    assert set(result) >= {"greedy_score_mean_before", "accuracy_after", "length_mean_after"}


def test_reward_model_recipe_leaves_what_pays(model: Path, pairs: str, prompts: str, tmp_path: Path) -> None:
    result = run(reward_model.main, small_reward_model(model, pairs, tmp_path / "run"))
    assert result["accuracy_after"] > 0.9
    folder = tmp_path / "run" / "model"
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_labels == 1
    config = small_config(model, tmp_path / "paid", data=prompts)
    config = custom_reward.Config(**{**vars(config), "reward": (str(folder),)})
    run(custom_reward.main, config)
    scores = [row["parts"] for row in read_lines(tmp_path / "paid" / "ppo" / "samples.jsonl") if "parts" in row]
    assert all(set(parts) == {"reward_model"} for parts in scores)
    assert len({parts["reward_model"] for parts in scores}) > 5


def test_reward_model_recipe_with_an_adapter_is_merged(model: Path, pairs: str, tmp_path: Path) -> None:
    run(reward_model.main, small_reward_model(model, pairs, tmp_path / "run", lora_rank=4, passes=5.0))
    weights = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").state_dict()
    base = AutoModelForCausalLM.from_pretrained(model).state_dict()
    name = "transformer.h.0.mlp.c_fc.weight"
    assert float((weights[name] - base[name]).abs().max()) > 1e-3
    assert torch.equal(weights["transformer.wte.weight"], base["transformer.wte.weight"])


def pipeline_config(model: Path, folder: Path, **changes: Any) -> rlhf_pipeline.Config:
    stage = rlhf_pipeline.Stage(rows_per_update=4, passes=4.0, optimize=FAST)
    given = {
        "held_out": 4,
        "max_new_tokens": 6,
        "clone": stage,
        "compare": stage,
        "improve": improve_config(),
        **changes,
    }
    return rlhf_pipeline.Config(model=str(model), output_dir=folder, **given)


def test_pipeline_goes_through_all_stages(model: Path, pairs: str, tmp_path: Path) -> None:
    shown = written(tmp_path / "shown.jsonl", [{"prompt": r["prompt"], "completion": r["chosen"]} for r in PAIRS])
    config = pipeline_config(model, tmp_path / "run", pairs=pairs, demonstrations=shown)
    result = run(rlhf_pipeline.main, config)
    assert result["loss_after"] < result["loss_before"]
    assert {"pair_accuracy", "score_mean_before", "score_mean_after", "kl_ref_per_episode_after"} <= set(result)
    assert {path.parent.name for path in (tmp_path / "run").glob("*/phase.json")} == {"clone", "reward_model", "ppo"}
    # PPO begins with what the first stage has made, and pays what the second has.
    rows = read_lines(tmp_path / "run" / "ppo" / "metrics.jsonl")
    assert rows[0]["eval_kl_ref_per_episode"] == pytest.approx(0.0, abs=1e-5)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / rlhf_pipeline.REWARD_MODEL)


def test_pipeline_measures_what_a_gold_judge_thinks_and_does_not_pay_it(
    model: Path, prompts: str, tmp_path: Path
) -> None:
    gold = f"{REWARDS}:count_a"
    improve = improve_config(updates=1)
    config = pipeline_config(
        model, tmp_path / "run", prompts=prompts, gold=gold, improve=improve, answers_each=12, max_new_tokens=12
    )
    result = run(rlhf_pipeline.main, config)
    assert {"gold_score_mean_before", "gold_score_mean_after"} <= set(result)
    assert "loss_after" not in result
    for row in read_lines(tmp_path / "run" / "ppo" / "samples.jsonl"):
        assert row["score"] == pytest.approx(row["parts"]["reward_model"], abs=1e-6)


def test_a_killed_pipeline_goes_on_where_it_was(model: Path, pairs: str, tmp_path: Path, monkeypatch: Any) -> None:
    whole = run(rlhf_pipeline.main, pipeline_config(model, tmp_path / "whole", pairs=pairs))
    real = rlhf_pipeline.save_reward_model

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rlhf_pipeline, "save_reward_model", killed)
    with pytest.raises(KeyboardInterrupt):
        run(rlhf_pipeline.main, pipeline_config(model, tmp_path / "parts", pairs=pairs))
    monkeypatch.setattr(rlhf_pipeline, "save_reward_model", real)
    again = run(rlhf_pipeline.main, pipeline_config(model, tmp_path / "parts", pairs=pairs, resume=True))
    assert {name: value for name, value in again.items() if name != "seconds"} == {
        name: value for name, value in whole.items() if name != "seconds"
    }


REFUSED = {
    "pairs that are equal": (
        ["dpo"],
        [{"prompt": "a", "chosen": "b", "rejected": "b"}],
        [],
        "row 0: chosen and rejected are equal",
    ),
    "no columns": (["dpo", "reward_model"], [{"text": "a"}] * 20, [], "preferences need chosen and rejected"),
    "labels for a reward model": (
        ["reward_model"],
        [{"prompt": f"{n}", "completion": " b", "label": n % 2} for n in range(20)],
        [],
        "reward_model learns from pairs, and",
    ),
    "too few": (["dpo", "reward_model"], PAIRS[:3], ["--held-out", "3"], "leave some to learn from"),
    "one answer to compare": (["dpo"], PROMPTS, ["--reward", "x.py:y", "--responses-per-prompt", "1"], "one answer"),
    "a reward that is not there": (["dpo"], PROMPTS, ["--reward", "x.py:y"], "there is no file"),
}


@pytest.mark.parametrize(("recipes", "rows", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_message_and_no_folder(
    recipes: list[str],
    rows: list[dict[str, Any]],
    options: list[str],
    words: str,
    model_without_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = written(tmp_path / "rows.jsonl", rows)
    for name in recipes:
        recipe = {"dpo": dpo, "reward_model": reward_model}[name]
        given = ["--model", str(model_without_weights), "--data", data, *options]
        assert outcome(monkeypatch, recipe, *given) == 2
        assert words in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "pairs and gold are both empty; give pairs that people compared"),
        (["--gold", "g.py:f"], "gold compares answers to prompts, and prompts is empty"),
    ],
)
def test_a_pipeline_needs_one_way_to_compare(
    options: list[str], words: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(monkeypatch, rlhf_pipeline, "--model", str(model), *options) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_rows_may_come_from_a_function(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def pairs():\n    return {PAIRS!r}\n\ndef nothing():\n    return 3\n")
    result = run(dpo.main, small_dpo(model, f"{file}:pairs", tmp_path / "run", passes=2.0))
    assert result["accuracy_after"] >= 0.0
    with pytest.raises(ValueError, match="returned int; it must return a list of rows"):
        run(dpo.main, small_dpo(model, f"{file}:nothing", tmp_path / "other"))
