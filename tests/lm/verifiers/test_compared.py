"""What changed, paired by prompt: means and intervals by hand, the loss of a text by its definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import InputError
from rlhf.lm.data import load_data
from rlhf.lm.verifiers.compared import compared, losses_on, paired, read_ifeval, show
from tests.unmoved import policy_of


def test_means_and_interval_of_pairs() -> None:
    """Every prompt gains the same, so whatever is drawn again gains it too; unpaired, 0 to 9 would swamp it."""
    result = paired("x", [(float(i), i + 0.5) for i in range(10)], seed=0)
    assert result == {
        "x_before": 4.5,
        "x_after": 5.0,
        "x_change_low": pytest.approx(0.5),
        "x_change_high": pytest.approx(0.5),
    }


def test_a_mean_over_numbers_weighs_prompts_by_how_many_they_have() -> None:
    """3 of 4, and 0 of 1: 3 of 5 before; all after."""
    result = paired("x", [(3.0, 4.0), (0.0, 1.0)], [4, 1], seed=0)
    assert (result["x_before"], result["x_after"]) == (0.6, 1.0)
    # Drawn twice, the first gains a quarter and the second 1.
    assert result["x_change_low"] == pytest.approx(0.25)
    assert result["x_change_high"] == pytest.approx(1.0)


def test_the_loss_of_a_text_is_that_of_its_tokens_but_the_first() -> None:
    policy = policy_of()
    texts = load_data([{"text": "a b c"}, {"text": "d"}, {"text": "a b c d e f"}])
    losses = losses_on(policy, texts, token_budget=8)
    for text, (loss, count) in zip(("a b c", "d", "a b c d e f"), losses, strict=True):
        tokens = torch.tensor(policy.tokenizer(text)["input_ids"] + [policy.tokenizer.eos_token_id])
        logprobs = policy.model(input_ids=tokens[None]).logits[0].detach().log_softmax(-1)
        assert count == len(tokens) - 1
        assert loss == pytest.approx(-float(logprobs[:-1].gather(1, tokens[1:, None]).sum()), rel=1e-5)


def record(update: int, row: int, **parts: float) -> dict[str, Any]:
    told = {"response": f"r{update}", "length": 10.0 * (update + 1), "finished": True, "kl": float(update)}
    return {"update": update, "kind": "evaluation", "row": row, "parts": parts, "greedy_parts": parts, **told}


def test_answers_to_one_prompt_count_together(tmp_path: Path) -> None:
    """Two answers to each of two prompts, and one kind that was not trained."""
    asked = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rows = [
        {"prompt": [{"role": "user", "content": name}], "trained": name != "c", **asked}
        for name in ("a", "a", "b", "b", "c")
    ]
    scores = {0: [0.0, 1.0, 0.0, 0.0, 1.0], 3: [1.0, 1.0, 1.0, 0.0, 0.0]}
    lines = [
        record(update, row, share_followed=each[row], all_followed=each[row])
        for update, each in scores.items()
        for row in range(5)
    ]
    lines.append({"update": 3, "kind": "training", "row": 0})
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = compared(tmp_path / "samples.jsonl", rows, seed=0)
    assert (result["followed_before"], result["followed_after"]) == (0.25, 0.75)
    # Both prompts gain one half.
    assert result["followed_change_low"] == result["followed_change_high"] == pytest.approx(0.5)
    assert (result["untrained_followed_before"], result["untrained_followed_after"]) == (1.0, 0.0)
    assert (result["length_before"], result["length_after"], result["kl_per_response"]) == (10.0, 40.0, 3.0)
    assert "relevance_before" not in result
    show(tmp_path / "samples.jsonl", rows, tmp_path / "answers.md", seed=0)
    shown = (tmp_path / "answers.md").read_text()
    assert shown.count("    r0") == shown.count("    r3") == 5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "kwargs": [{}]}, "no column instruction_id_list"),
        ({"prompt": "a", "instruction_id_list": ["none"], "kwargs": [{}]}, "row 0: there is no instruction 'none'"),
    ],
)
def test_rows_that_cannot_be_checked_are_refused_by_number(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        read_ifeval(str(tmp_path / "rows.jsonl"))
