"""The recipe end to end on a made-up data set: what it leaves behind, and that a finished run is only read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from recipes import movie_reviews
from recipes.settings.language import CloneConfig, ImproveConfig
from rlhf import optimize
from rlhf.algorithms import ppo
from rlhf.errors import InputError
from rlhf.lm import collect
from rlhf.lm.classify import ClassifierConfig
from rlhf.training import Duration

GOOD, BAD = ("a fine and touching film", "a warm story well told"), ("a dull and empty film", "a cold story badly told")


LONG = " ".join(["a winding review of a film that goes on and on"] * 60)


def write_data(folder: Path, *more: tuple[str, int], columns: tuple[str, str] = ("text", "label")) -> str:
    folder.mkdir()
    for split, count in (("train", 60), ("test", 12)):
        rows = [
            (f"{(BAD, GOOD)[i % 2][i // 2 % 2]} about {'abcdefg'[i % 7]} number {i} .", i % 2) for i in range(count)
        ]
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in [*rows, *more]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    return str(folder)


def tiny(tmp_path: Path, data: str, *, resume: bool = False) -> movie_reviews.Config:
    return movie_reviews.Config(
        data=data,
        output_dir=tmp_path / "run",
        resume=resume,
        vocabulary=300,
        hidden_size=16,
        max_new_tokens=8,
        classifier=ClassifierConfig(epochs=2),
        clone=CloneConfig(
            rows_per_update=20,
            train=Duration(updates=3, eval_every=0),
            optimize=optimize.Optimize(epochs=1, whiten="none"),
        ),
        improve=ImproveConfig(
            collect=collect.CollectResponses(prompts_per_rollout=10),
            method=ppo.PPO(kl_coef=0.1),
            train=Duration(updates=2),
            optimize=optimize.Optimize(epochs=1),
        ),
    )


def test_movie_reviews_end_with_every_figure_and_resume_reads_them_again(tmp_path: Path):
    # One review is too long to be read, and the first words of the other leave no room to go on: they are left out.
    data = write_data(tmp_path / "data", (LONG, 1), (f"see {'x' * 200} for more of it", 0))
    result = movie_reviews.main(tiny(tmp_path, data))
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == result
    assert (tmp_path / "run" / "report.html").exists()
    figures = ("positive", "second_classifier", "distinct2", "length")
    names = {f"{figure}_{when}" for figure in figures for when in ("before", "after")}
    assert set(result) == names | {f"real_{figure}" for figure in figures} | {
        "kl_per_response",
        "classifier_accuracy",
        "second_classifier_accuracy",
        "seconds",
    }
    assert result["second_classifier_accuracy"] == 1.0
    # Every prompt is four words; six of twelve tests are positive, each longer than 8 tokens with its end.
    assert result["real_length"] == 8.0
    assert movie_reviews.main(tiny(tmp_path, data, resume=True)) == result


def test_movie_reviews_refuse_data_that_are_missing_or_lack_columns(tmp_path: Path):
    with pytest.raises(InputError, match="no_such_folder"):
        movie_reviews.main(tiny(tmp_path, str(tmp_path / "no_such_folder")))
    data = write_data(tmp_path / "data", columns=("text", "stars"))
    with pytest.raises(InputError, match=r"label must be 1 for positive and 0 for negative .* there is None"):
        movie_reviews.main(tiny(tmp_path, data))
    assert not (tmp_path / "run").exists()


def rewrite(folder: str, split: str, rows: list[tuple[str, int]]) -> None:
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
    (Path(folder) / f"{split}.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("split", "rows", "text"),
    [
        ("train", [(f"{LONG} {i}", i % 2) for i in range(60)], "0 of 60 reviews have less than 384 tokens"),
        ("test", [(f"{LONG} {i}", i % 2) for i in range(12)], "0 of 12 reviews have less than 384 tokens"),
        ("test", [(LONG, 1), *[(BAD[0], 0)] * 5], "5 of 6 reviews have less than 384 tokens"),
        ("test", [("so good", 1), *[(BAD[0], 0)] * 5], r"longer than prompt_words \(4\)"),
        ("train", [(f"{GOOD[i % 2]} {i}", i % 2) for i in range(12)], "there are 12 demonstrations"),
        (
            "train",
            [(f"{GOOD[i % 2]} {i}" if i < 8 else f"good {i}", i // 2 % 2) for i in range(40)],
            "there are 8 prompts",
        ),
    ],
)
def test_reviews_that_would_fail_later_are_refused_before_anything_is_trained(
    tmp_path: Path, split: str, rows: list[tuple[str, int]], text: str
):
    data = write_data(tmp_path / "data")
    rewrite(data, split, rows)
    with pytest.raises(InputError, match=text):
        movie_reviews.main(tiny(tmp_path, data))
    assert not (tmp_path / "run").exists()


def test_without_a_kl_charge_there_is_no_kl_to_report(tmp_path: Path):
    """No reference is made, so the summary at the very end must not ask for the KL to it."""
    config = tiny(tmp_path, write_data(tmp_path / "data"))
    improve = replace(config.improve, method=ppo.PPO(kl_coef=0.0))
    result = movie_reviews.main(replace(config, improve=improve))
    assert result["kl_per_response"] is None
    assert 0.0 <= result["positive_after"] <= 1.0


def test_one_option_chooses_another_method_and_all_that_goes_with_it(tmp_path: Path):
    chosen, small = movie_reviews.default_config("grpo"), tiny(tmp_path, write_data(tmp_path / "data"))
    assert (chosen.critic, chosen.improve.optimize.whiten) == ("none", "none")
    assert (chosen.improve.collect.prompts_per_rollout, chosen.improve.collect.responses_per_prompt) == (96, 8)
    assert chosen.improve.method.kl_coef == 0.08
    acting = replace(chosen.improve.collect, prompts_per_rollout=5, responses_per_prompt=2)
    improve = replace(chosen.improve, collect=acting, train=Duration(updates=2))
    movie_reviews.main(replace(small, critic=chosen.critic, improve=improve))
    assert (tmp_path / "run" / "grpo" / "final" / "policy" / "model").is_dir()
