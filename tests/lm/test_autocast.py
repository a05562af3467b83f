"""bf16: autocast's casts never outlive the weights, whoever wrote them, and decoding rounds as scoring does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rlhf
from rlhf import optimize
from rlhf.acting import Lag, completed
from rlhf.algorithms import natural
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.model import trunk_of
from tests.lm.tiny import disturb, random_inputs, random_prompts, random_uniforms, tiny_policy
from tests.lm.worlds import half_precision, word_collector, word_policy
from tests.unmoved import policy_of, train


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def step(policy: Any, folder: Path) -> None:
    optimizer = optimize.make_optimizer(policy, optimize.Optimize(learning_rate=0.1))
    policy(random_inputs()).logprobs.sum().backward()
    optimizer.step()


def load(policy: Any, folder: Path) -> None:
    own = [parameter.detach().clone() for parameter in policy.parameters()]
    disturb(policy.parameters(), 0.3)
    policy.save(folder)
    for parameter, before in zip(policy.parameters(), own, strict=True):
        parameter.data = before
    policy.load(folder)


def search_along_a_line(policy: Any, folder: Path) -> None:
    actor = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    direction = natural.flat([torch.full_like(parameter, 0.05).detach() for parameter in actor])
    losses = iter((1.0, 0.0))

    def measure() -> dict[str, float]:
        policy(random_inputs())
        return {"policy_loss": next(losses), "kl_old_new": 0.0}

    moved = natural.line_search(actor, direction, measure, max_kl=1.0, shrinkage=0.5, num_tries=1)
    assert moved["step_share"] == 1.0


def act_with_lag(policy: Any, folder: Path) -> None:
    lag = Lag(1)
    for _ in range(2):
        with lag.acting(policy):
            policy(random_inputs())
        disturb(policy.parameters(), 0.1)


@torch.no_grad()
def follow_softly(policy: Any, folder: Path) -> None:
    for parameter in policy.parameters():
        parameter.lerp_(torch.ones_like(parameter), 0.1)


def write_to_data(policy: Any, folder: Path) -> None:
    for parameter in policy.parameters():
        parameter.data.mul_(1.5)


def change_the_reference(policy: Any, folder: Path) -> None:
    for _ in range(2):
        disturb(policy.parameters(), 0.1)
        policy.make_reference()
        policy.reference_logprobs(random_inputs())


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    each.__name__: each
    for each in (
        step,
        load,
        search_along_a_line,
        act_with_lag,
        follow_softly,
        write_to_data,
        change_the_reference,
    )
}


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("writer", WRITERS)
def test_casts_of_weights_do_not_outlive_them(tiny_folder, tmp_path: Path, writer: str, lora_rank: int) -> None:
    policy, inputs = tiny_policy(tiny_folder("llama"), lora_rank=lora_rank), random_inputs()
    prompts, sampling = random_prompts(), Sampling(max_new_tokens=4)
    draws = random_uniforms(len(prompts), 4)

    def said() -> list[Tensor]:
        with torch.no_grad():
            reference = [policy.reference_logprobs(inputs)] if writer == change_the_reference.__name__ else []
            drawn = Decoder().generate(policy, prompts, sampling=sampling, uniforms=draws)
            return [*policy(inputs), *reference, drawn.tokens, drawn.logprobs]

    with half():
        before = policy(inputs).logprobs.detach()
        WRITERS[writer](policy, tmp_path)
        held = said()
    with half():
        fresh = said()
    assert all(map(torch.equal, held, fresh))
    assert not torch.equal(before, fresh[0])


def test_the_learner_is_scored_with_its_own_weights_where_actors_lag() -> None:
    policy, collector, lag = word_policy(dtype=torch.float32), word_collector(accelerator=half_precision()), Lag(1)
    for update in range(3):
        with half(), lag.acting(policy):
            rollout = collector.collect(policy, update).rollout
        options = {
            "micro_batch_cost": 50,
            "importance_cap": 2.0,
            "importance_floor": 0.0,
            "weighs": False,
            "lags": True,
        }
        rollout, _ = completed(policy, rollout, accelerator=half_precision(), **options)
        with half(), torch.no_grad():
            own = policy(rollout.inputs).logprobs
        torch.testing.assert_close(rollout.logprobs, own, rtol=0, atol=1e-2)
        far = (rollout.logprobs - rollout.behaviour_logprobs)[rollout.mask].abs().mean()
        assert (far > 0.1) == (update > 0)
        disturb(policy.parameters(), 1.0)


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_what_was_cast_without_gradients_gets_them_later(tiny_folder, critic: str) -> None:
    policy, inputs = tiny_policy(tiny_folder("llama"), critic=critic), random_inputs()

    def gradients() -> list[Tensor]:
        policy.zero_grad()
        output = policy(inputs)
        (output.logprobs + output.values).sum().backward()
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.parameters()]

    with half():
        expected = gradients()
    with half():
        with policy.sampling_mode():
            policy(inputs)
        assert all(map(torch.equal, gradients(), expected))


def test_a_reward_that_learns_in_half_precision_learns() -> None:
    """Its own casts are gone with its own autocast, since none is on around it."""
    scorer = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(scorer.parameters(), lr=1.0)
    scored = []

    def learns(completions: list[str]) -> list[float]:
        for _ in range(2):
            with torch.enable_grad(), half():
                loss = scorer(torch.ones(1, 4)).sum()
            scored.append(float(loss))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [0.0 for _ in completions]

    word_collector(learns, accelerator=half_precision()).collect(word_policy(dtype=torch.float32), 0)
    assert scored[1] == pytest.approx(scored[0] - 5.0, abs=0.05)  # four weights and a bias, each by 1


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "gpt2"])
def test_decoding_and_scoring_in_half_precision_take_the_head_alike(tiny_folder, architecture, lora_rank) -> None:
    """A first token after prompts of one length: both see the same states to the bit, and so say the same of them."""
    policy = tiny_policy(tiny_folder(architecture), lora_rank=lora_rank, temperature=0.7)
    prompts = random_prompts((5,) * 8)
    with half(), torch.no_grad():
        drawn = Decoder().generate(
            policy, prompts, sampling=Sampling(max_new_tokens=1), uniforms=random_uniforms(len(prompts), 1)
        )
        inputs = {
            "tokens": torch.cat([torch.tensor(prompts), drawn.tokens], dim=1),
            "lengths": torch.full((8,), 6),
            "actions": torch.full((8, 1), 5),
        }
        scored = policy(inputs)
    assert drawn.logprobs.dtype == torch.float32
    torch.testing.assert_close(drawn.logprobs, scored.logprobs, rtol=0, atol=1e-6)


def test_a_second_phase_learns_in_half_precision_as_the_first() -> None:
    policy = policy_of()
    halved: list[bool] = []

    def note(*_: Any) -> None:
        if torch.is_grad_enabled():
            halved.append(torch.is_autocast_enabled("cpu"))

    trunk_of(policy.model).register_forward_pre_hook(note)
    for _ in range(2):
        halved.clear()
        train(
            policy,
            rlhf.PPO(),
            optimize.Optimize(),
            lambda responses: [float(len(x)) for x in responses],
            mixed_precision="bf16",
        )
        assert halved
        assert all(halved)
