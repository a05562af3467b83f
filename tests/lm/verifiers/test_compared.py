"""What changed, paired by prompt: means and intervals by hand; refused where the two evaluations do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import InputError
from rlhf.lm.verifiers.compared import Evaluations, of_generated, of_ifeval, paired, read_ifeval, shown

COMMA, TITLE = "punctuation:no_comma", "detectable_format:title"


def test_means_and_interval_of_pairs() -> None:
    """Every prompt gains the same, so whatever is drawn again gains it too; unpaired, 0 to 9 would swamp it."""
    result = paired("x", [(float(i), i + 0.5) for i in range(10)], [1.0] * 10, seed=0)
    assert result == {
        "x_before": 4.5,
        "x_after": 5.0,
        "x_change_low": pytest.approx(0.5),
        "x_change_high": pytest.approx(0.5),
    }


def test_a_mean_over_numbers_weighs_prompts_by_how_many_they_have() -> None:
    """3 of 4, and 0 of 1: 3 of 5 before; all after."""
    result = paired("x", [(3.0, 4.0), (0.0, 1.0)], [4.0, 1.0], seed=0)
    assert (result["x_before"], result["x_after"]) == (0.6, 1.0)
    # Drawn twice, the first gains a quarter and the second 1.
    assert result["x_change_low"] == pytest.approx(0.25)
    assert result["x_change_high"] == pytest.approx(1.0)


def record(update: int, row: int, prompt: str, greedy: float = 0.25, **parts: float) -> dict[str, Any]:
    return {
        "update": update,
        "kind": "evaluation",
        "row": row,
        "prompt": prompt,
        "response": f"r{update}",
        "parts": parts,
        "greedy_parts": dict.fromkeys(parts, greedy),
        "length": 10.0 * (update + 1),
        "finished": True,
        "kl": float(update),
    }


def written(folder: Path, records: list[dict[str, Any]]) -> Path:
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    return folder / "samples.jsonl"


def rows_of(prompts: str, trained: str = "ab", kinds: tuple[str, ...] = (COMMA,)) -> list[dict[str, Any]]:
    asked = {"instruction_id_list": list(kinds), "kwargs": [{}] * len(kinds)}
    return [{"prompt": [{"role": "user", "content": name}], "trained": name in trained, **asked} for name in prompts]


def test_answers_to_one_prompt_count_together(tmp_path: Path) -> None:
    """Two answers to each of two prompts, and one kind that was not trained."""
    scores = {0: [0.0, 1.0, 0.0, 0.0, 1.0], 3: [1.0, 1.0, 1.0, 0.0, 0.0]}
    lines = [
        record(update, row, "aabbc"[row], greedy=update / 4, share_followed=each[row], all_followed=each[row])
        for update, each in scores.items()
        for row in range(5)
    ]
    # What another task was evaluated on, and what was trained on, is none of it.
    lines += [{**record(3, 0, "z", share_followed=9.0, all_followed=9.0), "of": "ifeval"}]
    lines += [{"update": 3, "kind": "training", "row": 0}]
    found = Evaluations(written(tmp_path, lines), rows_of("aabbc"))
    result = of_generated(found, seed=0)
    assert (result["followed_before"], result["followed_after"]) == (0.25, 0.75)
    assert (result["followed_greedy_before"], result["followed_greedy_after"]) == (0.0, 0.75)
    # Both prompts gain one half.
    assert result["followed_change_low"] == result["followed_change_high"] == pytest.approx(0.5)
    assert (result["untrained_followed_before"], result["untrained_followed_after"]) == (1.0, 0.0)
    assert (result["length_before"], result["length_after"], result["kl_per_response"]) == (10.0, 40.0, 3.0)
    assert "relevance_before" not in result
    text = shown(found, seed=0)
    assert text.count("    r0") == text.count("    r3") == 5


def test_ifeval_is_counted_by_prompt_and_by_instruction_of_greedy_answers(tmp_path: Path) -> None:
    """Of two instructions one is followed, of one none; then all."""
    rows = rows_of("a", kinds=(COMMA, TITLE)) + rows_of("b")
    shares = {0: ((0.5, 0.0), (0.0, 0.0)), 2: ((1.0, 1.0), (1.0, 1.0))}
    lines = [
        {
            **record(update, row, "ab"[row], share_followed=0.125, all_followed=0.125),
            "of": "ifeval",
            "greedy_parts": {"share_followed": share, "all_followed": every},
        }
        for update, each in shares.items()
        for row, (share, every) in enumerate(each)
    ]
    result = of_ifeval(Evaluations(written(tmp_path, lines), rows, of="ifeval"), seed=0)
    assert (result["ifeval_by_prompt_before"], result["ifeval_by_prompt_after"]) == (0.0, 1.0)
    assert result["ifeval_by_instruction_before"] == pytest.approx(1 / 3)
    assert result["ifeval_by_instruction_after"] == 1.0


def test_relevance_is_not_asked_of_answers_in_other_languages(tmp_path: Path) -> None:
    lines = [
        record(update, row, "ab"[row], share_followed=0.0, all_followed=0.0, relevance=relevance)
        for update in (0, 1)
        for row, relevance in enumerate((0.5, 0.0))
    ]
    rows = rows_of("a") + rows_of("b", kinds=("language:response_language",))
    assert of_generated(Evaluations(written(tmp_path, lines), rows), seed=0)["relevance_after"] == 0.5


@pytest.mark.parametrize("after", [["a", "c"], ["a"], ["b", "a"]])
def test_evaluations_on_other_prompts_are_not_compared(tmp_path: Path, after: list[str]) -> None:
    lines = [record(0, row, prompt, share_followed=1.0) for row, prompt in enumerate("ab")]
    lines += [record(1, row, prompt, share_followed=1.0) for row, prompt in enumerate(after)]
    with pytest.raises(InputError, match="on other prompts than the first"):
        Evaluations(written(tmp_path, lines), rows_of("ab"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "kwargs": [{}]}, "no column 'instruction_id_list'"),
        ({"instruction_id_list": [COMMA], "kwargs": [{}]}, "no column 'prompt'"),
        ({"prompt": 5, "instruction_id_list": [COMMA], "kwargs": [{}]}, "prompt of row 0 is 5"),
        ({"prompt": "a", "instruction_id_list": ["none"], "kwargs": [{}]}, "row 0: there is no instruction 'none'"),
    ],
)
def test_rows_that_cannot_be_checked_are_refused_by_number(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        read_ifeval(str(tmp_path / "rows.jsonl"))
