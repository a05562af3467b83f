"""The code in the documentation runs as it stands there, does what the page says, and names files that there are."""

from __future__ import annotations

import ast
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import rlhf
from recipes import cartpole, custom_reward
from rlhf.control.policy import ControlPolicy, PolicyConfig, Spaces
from rlhf.lm.rewards import Rewards
from rlhf.runs import summary
from rlhf.runs.log import read_lines
from tests.documented import README, ROOT, YOUR_OWN, python_in, snippet
from tests.lm.servers import says, serving
from tests.lm.test_endpoint import samples_of
from tests.lm.words import TEMPLATE, word_tokenizer
from tests.recipes.small import ARGUMENTS, outcome, save_model

PAGES = sorted([ROOT / "README.md", ROOT / "recipes" / "README.md", *(ROOT / "docs").glob("*.md")])
DATA = [{"prompt": prompt} for prompt in ("a b", "c d", "b a", "d c") * 20]


def short(responses: list[str], **_: object) -> list[float]:
    return [-float(len(response)) for response in responses]


def test_code_of_the_page_of_algorithms_runs() -> None:
    (code,) = python_in(ROOT / "docs" / "algorithms.md")
    names: dict[str, Any] = {}
    exec(code, names)
    report, rollout = names["report"], names["rollout"]
    assert {"surrogate", "kl_old_new", "kl_new_old", "bound_estimate"} <= set(report)
    assert report["kl_old_new"] > 0.0
    # CartPole itself begins within 0.05.
    assert float(rollout.inputs["observations"][:, 0].abs().max()) > 0.05


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model") / "gpt2"))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A folder with the page's files in it, and the names that its snippets define, those before Bandit in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    # Drawing takes longer than all the rest.
    monkeypatch.setattr(summary, "write_report", lambda folder: None)
    for code in python_in(YOUR_OWN):
        if code.startswith("# "):
            Path(code.split()[1]).write_text(code)
    return tmp_path


def defined(*holding: str, **names: Any) -> SimpleNamespace:
    """What these snippets of the page define, run one after another."""
    names = {"rlhf": rlhf, "np": np, "torch": torch, **names}
    for text in holding:
        exec(snippet(YOUR_OWN, text), names)
    return SimpleNamespace(**names)


def test_the_reward_pays_for_right_answers_that_ended(model, page):
    found = defined("def right", 'rlhf.Prompts([{"prompt": "a b"')
    assert found.right(responses=["c", " c ", "c", "d"], answer=["c"] * 4, finished=[True, True, False, True]) == [
        *(1.0, 1.0, 0.0, 0.0)
    ]
    result = rlhf.train(rlhf.load_policy(model), found.task, rlhf.PPO(), rlhf.Optimize(learning_rate=1e-3), updates=2)
    assert 0.0 <= result.after["eval_score_mean"] <= 1.0


def test_a_reward_logs_what_it_likes() -> None:
    names = defined("def polite")
    found = Rewards([names.polite], None)(samples_of("Thank you, thanks.", "Thank you."))
    assert found.scores.tolist() == [0.0, 1.0]
    assert found.extra == {"thanks": [2, 1]}
    assert found.metrics == {"most_thanks": [(2.0, 2)]}


def test_a_judge_asks_what_the_page_says(monkeypatch) -> None:
    names = defined("helpful = rlhf.Judge")
    assert names.scorer.columns == ("answer",)
    helpful = names.helpful
    helpful.asked = None

    def judge(number, body):
        assert body["messages"][0]["content"].startswith("Prompt: prompt 0\nAnswer: yes\nHow helpful")
        return says({"choices": [{"message": {"content": "Well. Score: 7"}}]})

    with serving(judge) as server:
        monkeypatch.setattr(helpful.client, "url", server.url)
        assert Rewards([helpful], None)(samples_of("yes")).scores.tolist() == [7.0]


def test_a_task_is_watched_by_more_than_it_is_trained_on(model, page):
    task, longer = (
        rlhf.Prompts(DATA, short, max_new_tokens=length, held_out=2, prompts_per_rollout=4) for length in (2, 4)
    )
    names = {"rlhf": rlhf, "task": task, "longer": longer}
    exec(snippet(YOUR_OWN, "rlhf.Watched("), names)
    result = rlhf.train(rlhf.load_policy(model), names["watched"], rlhf.PPO(), updates=1)
    assert {"eval_score_mean", "eval_texts_loss", "eval_twice as long_score_mean"} <= result.after.keys()


def sequence_terms(gspo: Any, output: Any, batch: Any) -> list[float]:
    """-min(s A, clip(s) A) of each row that has actions, s = (product of new / old) ** (1 / length)."""
    terms = []
    for row in range(len(batch.mask)):
        cells = batch.mask[row].nonzero().flatten().tolist()
        if cells:
            moved = [float(output.logprobs[row, cell]) - float(batch.logprobs[row, cell]) for cell in cells]
            ratio, advantage = math.exp(sum(moved) / len(moved)), float(batch.advantages[row, cells[0]])
            clipped = min(max(ratio, 1.0 - gspo.clip), 1.0 + gspo.clip)
            terms.append(-min(ratio * advantage, clipped * advantage))
    return terms


def watched(gspo: type[rlhf.Method], seen: list[tuple[float, int]]) -> rlhf.Method:
    """The method, whose terms are compared with those by hand at every call; `seen` gets how far a ratio was from 1."""

    class Watched(gspo):
        def loss(self, output, batch, state):
            terms, metrics = super().loss(output, batch, state)
            output = output._replace(logprobs=output.logprobs.detach())
            with_actions = batch.mask.any(1)
            expected = torch.tensor(sequence_terms(self, output, batch), dtype=torch.float64)
            assert torch.allclose(terms.detach().double()[with_actions, 0], expected, atol=1e-5, rtol=1e-5)
            # Every action of a row has its row's term, and all of them together count once.
            assert torch.equal(terms[batch.mask], terms[:, :1].expand_as(terms)[batch.mask])
            assert torch.allclose(batch.weights.sum(1), with_actions.to(batch.weights))
            lengths = batch.mask.sum(1)
            moved = (output.logprobs - batch.logprobs).masked_fill(~batch.mask, 0.0).sum(1) / lengths.clamp(min=1)
            seen.append((float(moved.abs().max()), int(lengths.unique().numel())))
            return terms, metrics

    return Watched()


def test_gspo_is_right_on_cartpole(page):
    seen: list[tuple[float, int]] = []
    task = rlhf.Envs("CartPole-v1", episodes=8, episodes_per_start=4)
    settings = rlhf.Optimize(learning_rate=3e-3, epochs=2, minibatches=2)
    rlhf.train(task.policy(), task, watched(defined("class GSPO").GSPO, seen), settings, updates=2)
    assert max(far for far, _ in seen) > 1e-3
    assert max(lengths for _, lengths in seen) > 1


def test_gspo_is_right_on_a_language_model(model, page):
    seen: list[tuple[float, int]] = []
    task = rlhf.Prompts(DATA, short, max_new_tokens=6, prompts_per_rollout=8, responses_per_prompt=4)
    settings = rlhf.Optimize(learning_rate=1e-3, epochs=2, minibatches=2)
    method = watched(defined("class GSPO").GSPO, seen)
    result = rlhf.train(rlhf.load_policy(model), task, method, settings, updates=5)
    assert max(far for far, _ in seen) > 1e-2
    assert max(lengths for _, lengths in seen) > 1
    assert result.after["eval_score_mean"] > result.before["eval_score_mean"]


def test_advantages_of_gspo_are_standardised_in_their_groups(page):
    found = defined("class GSPO")
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    rewards = torch.tensor([[0.0, 0, 3], [1, 0, 0], [0, 5, 0], [0, 0, 5]])
    rollout = rolled(mask, rewards, groups=torch.tensor([4, 4, 7, 7]))
    batch, _ = found.GSPO().estimate(rollout, {})
    # 3 and 1 are 1 from their mean, and their deviation is sqrt((1 + 1) / (2 - 1)); the equal scores of the other group
    # teach nothing.
    one = 1.0 / (2.0**0.5 + 1e-4)
    assert batch.advantages[:, 0].tolist() == pytest.approx([one, -one, 0.0, 0.0], abs=1e-6)
    third = 1.0 / 3.0
    assert torch.allclose(
        batch.weights, torch.tensor([[third, third, third], [1, 0, 0], [0.5, 0.5, 0], [third, third, third]])
    )


def rolled(mask: torch.Tensor, rewards: torch.Tensor, **fields: Any) -> rlhf.Rollout:
    """A rollout of whole episodes, each to the end of its mask."""
    rows, steps = mask.shape
    zeros = torch.zeros(rows, steps)
    return rlhf.Rollout(
        inputs={"observations": torch.zeros(rows, steps, 1)},
        behaviour_logprobs=zeros, logprobs=zeros, values=zeros, next_values=zeros, rewards=rewards,
        dones=torch.arange(steps) == mask.sum(1, keepdim=True) - 1, mask=mask,
        sample_ids=torch.arange(rows), costs=mask.sum(1), **fields,
    )  # fmt: skip


def test_gspo_runs_from_both_command_lines(model, page, monkeypatch):
    options = ("--collect.episodes", "8", "--collect.episodes-per-start", "4", "--steps", "300")
    few = ("--evaluate.episodes", "4", "--evaluate.sampled-episodes", "0", "--output-dir", "control")
    assert outcome(monkeypatch, cartpole, "--method", "gspo.py:GSPO", *options, *few) == 0
    own = ("--method", "gspo.py:GSPO", "--improve.method.clip", "0.1")
    given = ("--model", model, *ARGUMENTS, "--output-dir", "language", *own)
    assert outcome(monkeypatch, custom_reward, *given) == 0
    for folder in ("control", "language"):
        rows = read_lines(page / folder / "gspo" / "metrics.jsonl")
        assert len(rows) > 1
        assert all(row["gradient_norm"] >= 0.0 and "policy_loss" in row for row in rows[1:])
        assert rows[1]["ratio_error_max"] < 1e-5


def test_the_loss_of_pairs_is_that_of_dpo(page):
    pairs = defined("class Pairs").Pairs(beta=0.5)
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [0, 0], [0, 0]], dtype=torch.bool)
    rewards = torch.tensor([[0.0, 1], [3, 0], [0, 2], [0, 2], [0, 0], [0, 0]])
    ref_logprobs = torch.tensor([[-1.0, -2], [-1, 0], [-1, -1], [-2, -2], [0, 0], [0, 0]])
    logprobs = torch.tensor([[-1.5, -2], [-0.5, 9], [-1, -3], [-2, -1], [7, 7], [7, 7]])
    rollout = rolled(mask, rewards, groups=torch.tensor([0, 0, 1, 1, 2, 2]), ref_logprobs=ref_logprobs)
    batch, _ = pairs.estimate(rollout, {})
    output = rlhf.PolicyOutput(logprobs, torch.zeros(6, 2), torch.zeros(6, 2))
    terms, _ = pairs.loss(output, batch, {})
    # The second answer is the better one and gained 0.5 nats, the first lost 0.5: -log sigmoid(0.5 * (0.5 + 0.5)).
    one = math.log(1.0 + math.exp(-0.5))
    assert float((batch.weights * terms).sum()) == pytest.approx(one, abs=1e-6)
    # Two pairs were answered; of one, neither answer is better.
    assert float(batch.units.sum()) == pytest.approx(2.0)
    assert torch.isfinite(terms).all()


def test_pairs_learn_what_is_paid_better_however_they_are_cut(model, page):
    found = defined("class Pairs")
    task = rlhf.Prompts(DATA, short, max_new_tokens=4, prompts_per_rollout=16, responses_per_prompt=2)
    # A pair has up to 12 tokens: each micro-batch holds two or three pairs, and never half of one.
    settings = rlhf.Optimize(learning_rate=1e-3, epochs=1, minibatches=2, micro_batch_cost=30)
    results, policies = [], []
    for each in (settings, rlhf.Optimize(learning_rate=1e-3, epochs=1, minibatches=2)):
        policies.append(rlhf.load_policy(model))
        results.append(rlhf.train(policies[-1], task, found.Pairs(), each, updates=5))
    assert results[0].after["eval_score_mean"] > results[0].before["eval_score_mean"] + 0.5
    assert results[0].after["eval_score_mean"] == pytest.approx(results[1].after["eval_score_mean"], abs=1e-4)


def test_the_guessing_game_is_held_and_paid(page, tmp_path) -> None:
    model = save_model(tmp_path / "chat")
    word_tokenizer(template=TEMPLATE).save_pretrained(model)
    names = defined("class Guess", "Guess, max_turns=3")
    found = rlhf.train(rlhf.load_policy(str(model)), names.task, rlhf.PPO(), updates=1, evaluations=1)
    assert 1.0 <= found.after["eval_turns_mean"] <= 3.0
    game = names.Guess()
    assert game.reset(number=4) == [{"role": "user", "content": "guess"}]
    assert game.step({"content": "2"}) == ([{"role": "user", "content": "up"}], 0.0, False)
    assert game.step({"content": "7"}) == ([{"role": "user", "content": "down"}], 0.0, False)
    assert game.step({"content": " 4"})[1:] == (1.0, True)


def test_the_tool_of_the_page_is_described_and_called() -> None:
    names = defined("def weather")
    task = names.asking([{"prompt": "a", "answer": "sun"}] * 4)
    assert task.schemas()[0]["function"]["name"] == "weather"
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    assert task.make().step({"role": "assistant", "tool_calls": [call]}).messages[0]["content"] == "sun"
    assert names.names_it(responses=["The sun."], answer=["sun"]) == [1.0]


def test_the_corridor_is_learned_by_object_and_by_path(page, monkeypatch):
    found = defined("class Corridor", "rlhf.Envs(Corridor()")
    for cell in range(3):
        assert rlhf.act(found.policy, np.eye(4)[cell]) == 1
    options = ("--env-id", "corridor.py:Corridor", "--steps", "2000", "--eval-every-steps", "2000")
    few = ("--evaluate.episodes", "4", "--evaluate.sampled-episodes", "0", "--output-dir", "run")
    assert outcome(monkeypatch, cartpole, *options, *few) == 0
    assert read_lines(page / "run" / "ppo" / "metrics.jsonl")[-1]["eval_return_mean"] == 1.0


def test_the_task_of_two_arms_is_learned(page):
    policy = ControlPolicy(Spaces(observation_size=1, num_actions=2), PolicyConfig(), seed=0)
    task = defined("class Bandit").Bandit()
    result = rlhf.train(policy, task, rlhf.PPO(), rlhf.Optimize(learning_rate=1e-2), updates=20)
    assert result.before["eval_second_arm"] == pytest.approx(0.5, abs=0.05)
    assert result.after["eval_second_arm"] > 0.9


def test_the_engine_draws_what_our_decoder_draws(model, page):
    found = defined("class Plain", "engine=Plain()", data=DATA, reward=short)
    ours = rlhf.Prompts(DATA, short, max_new_tokens=4, prompts_per_rollout=16)
    results = []
    for task in (found.task, ours):
        results.append(rlhf.train(rlhf.load_policy(model), task, rlhf.PPO(), rlhf.Optimize(), updates=2))
    assert results[0].before == pytest.approx(results[1].before, abs=1e-5)
    assert results[0].after == pytest.approx(results[1].after, abs=1e-4)


def test_every_snippet_of_the_readme_is_run_by_the_tests_of_the_face():
    examples = [snippet(README, text) for text in ("rlhf.GRPO()", "rlhf.Envs(")]
    assert python_in(README) == examples


def test_every_snippet_of_the_page_is_run_here():
    source = Path(__file__).read_text(encoding="utf-8")
    texts = (
        "helpful = rlhf.Judge",
        "rows, Guess, max_turns=3",
        "rlhf.Envs(Corridor()",
        "rlhf.Watched(",
        "engine=Plain()",
    )
    tested = re.findall("|".join([r'"(?:def|class) \w+"', *(re.escape(f'"{text}"') for text in texts)]), source)
    held = {text.strip('"') for text in tested} | {'rlhf.Prompts([{"prompt": "a b"'}
    for code in python_in(YOUR_OWN):
        assert any(text in code for text in held), code


FILES = re.compile(
    r"\b(?:rlhf|recipes|theory|tests|benchmarks|docs)/(?![\w/]*(?:NAME|RECIPE))[\w./]+\.(?:py|md|yaml)\b"
)
TESTS = re.compile(r"`((?:tests/)?[\w/]*test_\w+\.py)(?:::(\w+))?`|`::(\w+)`")


def names_of_tests(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_tests_that_a_page_names_are_there(path):
    text = path.read_text(encoding="utf-8")
    missing = [name for name in FILES.findall(text) if not (ROOT / name).exists()]
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        if not (path.parent / link).exists():
            missing.append(link)
    file = Path()
    for named, function, same_file in TESTS.findall(text):
        file = ROOT / "tests" / named.removeprefix("tests/") if named else file
        wanted = function or same_file
        if not file.exists() or (wanted and wanted not in names_of_tests(file)):
            missing.append(f"{named or file.name}::{wanted}")
    assert missing == []
