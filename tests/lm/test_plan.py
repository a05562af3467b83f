"""What a run will take: parts by their definitions, times and peaks as multiples of what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf
from rlhf.errors import InputError
from rlhf.lm import calibration
from rlhf.lm import plan as planning
from rlhf.lm.calibration import Planned, measured
from rlhf.lm.load import ModelConfig, load_model_config, load_policy
from rlhf.lm.plan import plan, require_fits
from rlhf.lm.policy import CausalLM
from rlhf.lm.settings import CollectResponses
from tests.lm.tiny import save_tiny
from tests.lm.words import word_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = save_tiny("llama", tmp_path_factory.mktemp("plan") / "model")
    word_tokenizer().save_pretrained(there)
    return there


def planned(folder: Path, *, method: rlhf.Method | None = None, **changes: Any) -> Planned:
    model = ModelConfig(model=str(folder), **{name: changes.pop(name) for name in list(changes) if name in MODEL})
    given = Planned(
        model=model,
        method=method or rlhf.PPO(kl_coef=0.1),
        collect=CollectResponses(prompts_per_rollout=8),
        optimize=rlhf.Optimize(epochs=2, minibatches=2, micro_batch_cost=20),
        mixed_precision="no",
        prompt_tokens=6,
        max_new_tokens=4,
        response_tokens=3,
        processes=1,
    )
    return replace(given, **changes)


MODEL = ("critic", "lora_rank", "quantize", "reference_dtype", "gradient_checkpointing")


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(("lora_rank", "quantize"), [(0, "none"), (4, "none"), (4, "nf4")])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_what_stays_is_what_a_policy_of_that_model_holds(
    folder: Path, critic: str, lora_rank: int, quantize: str
) -> None:
    how = {"critic": critic, "lora_rank": lora_rank, "quantize": quantize}
    memory = plan(planned(folder, **how), CPU).memory
    policy = load_policy(str(folder), **how)
    assert memory["weights"] == size([*policy.model.parameters(), *policy.model.buffers()])
    assert memory["critic"] == size(policy.critic_parameters())
    trained = size(parameter for parameter in policy.parameters() if parameter.requires_grad)
    # AdamW keeps two moments.
    assert (memory["gradients"], memory["optimizer"]) == (trained, 2 * trained)
    adapter = size(parameter for name, parameter in policy.named_parameters() if "lora" in name)
    assert memory["reference"] == (adapter if lora_rank else size(policy.model.parameters()))


def test_a_reference_in_half_precision_takes_half(folder: Path) -> None:
    whole, half = (plan(planned(folder, reference_dtype=each), CPU) for each in ("float32", "bfloat16"))
    assert half.memory["reference"] == whole.memory["reference"] / 2
    assert plan(planned(folder, method=rlhf.PPO(kl_coef=0.0)), CPU).memory["reference"] == 0


def test_nothing_but_the_config_is_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    expected = plan(planned(folder), CPU).memory
    found = plan(planned(tmp_path), CPU).memory
    assert {name: found[name] for name in STAYING} == {name: expected[name] for name in STAYING}


STAYING = ("weights", "critic", "reference", "optimizer", "gradients")


def test_a_large_model_is_measured_by_few_of_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stays is linear in layers, so it comes out exactly."""
    folder = save_tiny("gemma2", tmp_path / "model", num_hidden_layers=9)
    whole = plan(planned(folder), CPU)
    monkeypatch.setattr(planning, "_WHOLE", 0)
    layers = []

    def noted(given: Planned, config: Any, device: torch.device) -> dict[str, float]:
        layers.append(config.num_hidden_layers)
        return measured(given, config, device)

    monkeypatch.setattr(planning, "measured", noted)
    few = plan(planned(folder), CPU)
    assert layers == [2, 4]
    assert {name: few.memory[name] for name in STAYING} == {name: whole.memory[name] for name in STAYING}
    assert few.largest == whole.largest


def test_passes_are_those_of_a_minibatch_under_the_budget(folder: Path) -> None:
    """Eight rows of 6 + 3 tokens, of which the last is not read; packed two by two in 20; in two minibatches."""
    found = measured(planned(folder), load_model_config(str(folder)), CPU)
    assert (found["scored"], found["scored passes"]) == (8 * 8, 4)
    assert (found["learned"], found["learned passes"]) == (4 * 8, 2)
    # Where responses are as long as they can be.
    assert found["largest"] == 2 * 9
    # Keys and values of two layers with two heads of 8, in float32.
    assert found["cache of a token"] == 2 * 2 * 2 * 8 * 4


def test_rows_of_a_group_share_their_prompt_where_the_run_does(folder: Path) -> None:
    """Two prompts of 6 with four responses, of which 2 tokens are read: 6 + 4 x 2 in a row."""
    groups = CollectResponses(prompts_per_rollout=2, responses_per_prompt=4)
    given = planned(
        folder, method=rlhf.GRPO(kl_coef=0.1), critic="none", collect=groups, optimize=rlhf.Optimize(epochs=1)
    )
    found = measured(given, load_model_config(str(folder)), CPU)
    assert found["learned"] == found["scored"] == 2 * (6 + 4 * 2)


FOUND = {
    "weights": 100.0,
    "critic": 0.0,
    "reference": 10.0,
    "trained": 20.0,
    "cache of a token": 1.0,
    "learned": 32.0,
    "learned passes": 2.0,
    "scored": 64.0,
    "scored passes": 4.0,
    "largest": 18.0,
    "reading bytes": 7.0,
    "step bytes": 5.0,
    "reading seconds": 1.0,
    "step seconds": 2.0,
    **{f"{name} seconds of a pass": 0.5 for name in ("score", "refer", "learn")},
    **{f"{name} seconds of a token": 0.25 for name in ("score", "refer", "learn")},
    "learn bytes of a pass": 50.0,
    "learn bytes of a token": 3.0,
}


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "measured", lambda *_: dict(FOUND))


@pytest.mark.usefixtures("by_hand")
def test_the_rest_is_multiplication(folder: Path) -> None:
    found = plan(planned(folder), CPU)
    assert found.memory["learning"] == 50 + 3 * 18
    # Eight rows of 6 + 4 tokens, more than the 7 of reading.
    assert found.memory["collecting"] == 8 * 10 * 1 + 5
    assert found.peak - found.memory["libraries"] == 100 + 10 + 2 * 20 + 20 + (50 + 3 * 18)
    # Two epochs of two minibatches.
    assert found.seconds["learning"] == 4 * (2 * 0.5 + 32 * 0.25)
    assert found.seconds["reference"] == 4 * 0.5 + 64 * 0.25
    assert found.seconds["scoring"] == 4 * 0.5 + 64 * 0.25
    # The first of three tokens comes of reading.
    assert (found.seconds["reading"], found.seconds["responding"]) == (1.0, 2 * 2.0)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, ["learn", "refer"]),
        ({"method": rlhf.PPO(kl_coef=0.0)}, ["learn"]),
        ({"critic": "separate"}, ["critic", "learn", "refer"]),
        ({"mixed_precision": "bf16"}, ["learn", "refer", "score"]),
    ],
    ids=str,
)
def test_only_passes_that_a_run_makes_are_counted(
    folder: Path, changes: dict[str, Any], passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder's own probabilities are those of training, unless these are computed in half precision."""
    made: list[str] = []
    names = {"forward": "score", "reference_logprobs": "refer", "critic_values": "critic"}

    def noting(name: str) -> Any:
        own = getattr(CausalLM, name)

        def call(self: CausalLM, *arguments: Any, **keywords: Any) -> Any:
            # A gradient is a pass of its own, and a whole pass asks the critic itself.
            learns = name == "forward" and torch.is_grad_enabled()
            made.append("learn" if learns else names[name])
            before = len(made)
            output = own(self, *arguments, **keywords)
            del made[before:]
            return output

        return call

    for name in names:
        monkeypatch.setattr(CausalLM, name, noting(name))
    plan(planned(folder, **changes), CPU)
    assert sorted(set(made)) == passes


def test_a_context_that_is_too_short_is_refused(folder: Path) -> None:
    """Of 64 tokens."""
    plan(planned(folder, prompt_tokens=60, max_new_tokens=4), CPU)
    plan(planned(folder, prompt_tokens=60, max_new_tokens=1, response_tokens=1), CPU)
    with pytest.raises(InputError, match="the model's context is 64"):
        plan(planned(folder, prompt_tokens=61, max_new_tokens=4), CPU)


@pytest.mark.usefixtures("by_hand")
def test_processes_share_the_rows_and_hold_the_gradient_twice(folder: Path) -> None:
    one, two = (plan(planned(folder, processes=number), CPU) for number in (1, 2))
    assert two.memory["gradients"] == 2 * one.memory["gradients"]
    assert two.memory["collecting"] == 4 * 10 * 1 + 5
    with pytest.raises(InputError, match="prompts_per_rollout is 8, which 3 processes cannot share"):
        planned(folder, processes=3)


@pytest.mark.usefixtures("by_hand")
def test_what_does_not_fit_is_refused_with_a_setting_that_does(folder: Path) -> None:
    given = planned(folder)
    found = plan(given, CPU)
    require_fits(given, found, found.peak)
    with pytest.raises(InputError, match=r"micro_batch_cost 13; gradient_checkpointing; lora_rank.*reference_dtype"):
        require_fits(given, found, found.peak - 15)
    # 15 bytes at 3 each.
    assert found._replace(memory={**found.memory, "learning": 50.0 + 3 * 13}).peak == found.peak - 15
    with pytest.raises(InputError, match="micro_batch_cost 10, which is one row;"):
        require_fits(given, found, found.peak - 40)
    small = replace(given, model=replace(given.model, lora_rank=4, gradient_checkpointing=True))
    with pytest.raises(InputError, match=r"What saves memory: micro_batch_cost 13\.$"):
        require_fits(small, found, found.peak - 15)


@pytest.mark.usefixtures("by_hand")
def test_where_acting_takes_most_fewer_prompts_are_offered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FOUND, "cache of a token", 10.0)
    given = planned(folder)
    found = plan(given, CPU)
    assert found.memory["collecting"] == 805
    with pytest.raises(InputError, match="prompts_per_rollout 3;"):
        require_fits(given, found, found.peak - 450)


def test_a_peak_is_the_most_that_was_held_at_once() -> None:
    def run() -> None:
        one = torch.ones(1000)
        two = one + 1.0
        del one
        del two
        torch.ones(500)

    # Numbers that the sums take are held too.
    assert calibration._peak(CPU, run) == pytest.approx(8000, abs=64)


def test_a_line_goes_through_both_points() -> None:
    assert calibration._line("x", [(2, 7.0), (4, 11.0)]) == {"x of a pass": 3.0, "x of a token": 2.0}
    assert calibration._line("x", [(2, 7.0)]) == {"x of a pass": 0.0, "x of a token": 3.5}
