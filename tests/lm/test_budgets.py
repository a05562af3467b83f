"""No forward pass takes more tokens than its budget, padding included, but for a row that alone is longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf import acting, optimize
from rlhf.algorithms import ppo, trpo
from rlhf.algorithms.clone import BehaviourCloning
from rlhf.lm.demonstrations import _loss
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.packing import Layouts, Sequences, cells
from rlhf.lm.scoring import response_inputs
from rlhf.rollout import Rollout
from rlhf.task import Here
from tests import unmoved
from tests.learners import learner_of
from tests.lm.tiny import VOCABULARY, random_prompts, random_uniforms, save_tiny, tiny_policy
from tests.lm.words import WORDS
from tests.lm.worlds import half_precision, word_collector

CPU = Accelerator(cpu=True)
BUDGET = 64
# One row that is long, one that alone is over the budget, and many that are short: padded to the longest, 10 times as
# many tokens as there are.
PROMPTS = random_prompts((40, 60, *[2, 3, 4] * 8))
STEPS = 6


@contextmanager
def passes(*trunks: Any) -> Iterator[list[tuple[int, int]]]:
    """The shape of every batch of tokens that these read meanwhile."""
    seen: list[tuple[int, int]] = []
    handles = [
        trunk.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(tuple((args[0] if args else kwargs["input_ids"]).shape)),
            with_kwargs=True,
        )
        for trunk in trunks
        if trunk is not None
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def trunks_of(policy: Any) -> tuple[Any, ...]:
    frozen = policy._frozen[0] if policy._frozen else None
    return policy.model.base_model, policy.critic_trunk, frozen and frozen.base_model


def rollout_of(policy: Any) -> Rollout:
    """Responses of random tokens, in rows as collectors make them."""
    tokens = torch.randint(VOCABULARY, (len(PROMPTS), STEPS), generator=torch.Generator().manual_seed(5))
    lengths = torch.arange(len(PROMPTS)) % STEPS + 1
    inputs = response_inputs(PROMPTS, tokens, lengths)
    mask, zeros = inputs["actions"] > 0, torch.zeros(tokens.shape)
    return Rollout(
        inputs=inputs,
        behaviour_logprobs=zeros,
        rewards=torch.ones(tokens.shape),
        dones=torch.arange(STEPS) == lengths.unsqueeze(1) - 1,
        mask=mask,
        sample_ids=torch.arange(len(PROMPTS)),
        costs=inputs["lengths"],
    )


def scored(policy: Any) -> Rollout:
    return acting.rescored(policy, rollout_of(policy), accelerator=CPU, micro_batch_cost=BUDGET)


def train(policy: Any, method: Any) -> None:
    state = method.initial_state() | {"progress": torch.tensor(0.0), "update": torch.tensor(0)}
    rollout = scored(policy)
    settings = optimize.Optimize(epochs=1, minibatches=1, micro_batch_cost=BUDGET)
    method.update(learner_of(policy, settings), rollout, method.estimate(rollout, state)[0], state)


def evaluate_demonstrations(policy: Any) -> None:
    settings = optimize.Optimize(micro_batch_cost=BUDGET)
    _loss(policy, rollout_of(policy), Here(CPU, 0, BehaviourCloning(), settings, None))


def decode(policy: Any) -> None:
    sampling = Sampling(max_new_tokens=4, token_budget=BUDGET)
    Decoder().generate(policy, PROMPTS, sampling=sampling, uniforms=random_uniforms(len(PROMPTS), 4))


def refer(policy: Any) -> None:
    policy.make_reference()
    with passes(*trunks_of(policy)) as seen:
        acting.reference_logprobs(policy, rollout_of(policy).inputs, None, accelerator=CPU, max_tokens=BUDGET)
    require_kept(seen)


PATHS: dict[str, Callable[[Any], object]] = {
    "rescored": scored,
    "learned by PPO": lambda policy: train(policy, ppo.PPO()),
    "learned by TRPO": lambda policy: train(policy, trpo.TRPO(cg_iterations=1, backtracks=1)),
    "scored": lambda policy: acting.scored(policy, rollout_of(policy).inputs, accelerator=CPU, max_tokens=BUDGET),
    "reference": refer,
    "demonstrations": evaluate_demonstrations,
    "decoded": decode,
}


def require_kept(seen: list[tuple[int, int]]) -> None:
    assert seen
    assert all(rows * width <= BUDGET or rows == 1 for rows, width in seen), seen


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("architecture", ["llama", "opt", "lfm2"])
def test_no_pass_takes_more_than_the_budget(tiny_folder, architecture: str, critic: str, path: str) -> None:
    policy = tiny_policy(tiny_folder(architecture), critic=critic)
    with passes(*trunks_of(policy)) as seen:
        PATHS[path](policy)
    require_kept(seen)


@pytest.mark.parametrize("accelerator", [CPU, half_precision()], ids=["float32", "bf16"])
def test_a_separate_critic_reads_a_rollout_under_the_budget(tmp_path: Path, accelerator: Any) -> None:
    policy = tiny_policy(save_tiny("gpt2", tmp_path, vocab_size=len(WORDS)), critic="separate")
    collector = word_collector(accelerator=accelerator)
    with passes(policy.critic_trunk) as seen:
        rollout = collector.collect(policy, 0).rollout
    assert seen
    assert all(rows * width <= collector.micro_batch_cost or rows == 1 for rows, width in seen)
    with torch.no_grad(), accelerator.autocast():
        torch.testing.assert_close(rollout.values, policy(rollout.inputs).values, rtol=0, atol=1e-2)
    assert float(rollout.values.abs().max()) > 0.05


def test_parts_are_whole_and_as_few_as_halving_finds(tiny_folder) -> None:
    policy = tiny_policy(tiny_folder("opt"))
    rollout = rollout_of(policy)
    for budget in (1, 17, 64, 200, 1500, 10_000):
        parts = acting.micro_batches(rollout.costs, budget, passed=acting.passed_by(policy, rollout.inputs))
        assert torch.cat(parts).tolist() == list(range(len(PROMPTS)))
    assert len(parts) == 1
    short = rollout.rows(torch.arange(2, 26))
    # Rows of 2 to 10 tokens, of which any six fit.
    parts = acting.micro_batches(short.costs, BUDGET, passed=acting.passed_by(policy, short.inputs))
    assert all(len(part) >= 6 for part in parts[:-1])


def test_cells_are_those_of_the_layout() -> None:
    sizes = [5, 9, 1, 4, 4, 8, 2]
    apart = Sequences(sizes, range(7), [1] * 7)
    assert cells(apart, Layouts(packs=False, most_shared=0)) == 7 * 9
    # 9 | 8, 1 | 5, 4 | 4, 2
    assert cells(apart, Layouts(packs=True, most_shared=0)) == 4 * 9
    assert cells(Sequences([4000, 2100, 2050], range(3), [1] * 3), Layouts(packs=True, most_shared=9999)) == 3 * 4000
    # The prompt of 4 once, before 1, 5, 0, 4; and 1 and 2 together on a row of 14.
    shared = Sequences([5, 9, 1, 4, 8, 2], [7, 7, 8, 7, 7, 9], [4, 4, 1, 4, 4, 2])
    assert cells(shared, Layouts(packs=True, most_shared=9)) == 2 * 14
    assert cells(shared, Layouts(packs=True, most_shared=8)) == 4 * 9


def test_a_pass_over_packed_rows_is_counted_with_what_packing_leaves_empty(tiny_folder) -> None:
    """[34, 18, 17] are 69 tokens, and 102 cells, since no two of them share a row of 34."""
    policy = tiny_policy(tiny_folder("llama"))
    assert policy.abilities.layouts.packs
    lengths = torch.tensor([35, 19, 18])
    tokens = torch.ones(3, 35, dtype=torch.int64)
    inputs: dict[str, Tensor] = {"tokens": tokens, "lengths": lengths, "actions": (lengths - 1).unsqueeze(1)}
    parts = acting.micro_batches(lengths, 80, passed=acting.passed_by(policy, inputs))
    assert [part.tolist() for part in parts] == [[0, 1], [2]]


def test_a_run_goes_on_where_memory_ends_for_an_update_and_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The same steps as with room for all: to rounding, which Adam does not enlarge where its epsilon is large."""
    settings = optimize.Optimize(epochs=2, adam_eps=1e-3, learning_rate=0.05)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    weights, fits = [], []
    for room in (10_000, 20):
        policy = unmoved.policy_of()
        with little_memory(policy.model.base_model, room):
            rows = unmoved.train(policy, ppo.PPO(), settings, reward)
        weights.append(unmoved.weights_of(policy))
        fits.append([row.get("micro_batch_cost") for row in rows])
    assert fits[0] == [None] * 3
    assert fits[1] == sorted(fits[1], reverse=True)
    assert max(fits[1]) <= 20
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)
    # Another run of the same policy begins with what fits, and has nothing to say.
    with little_memory(policy.model.base_model, 20):
        again = unmoved.train(policy, ppo.PPO(), settings, reward)
    assert [row["micro_batch_cost"] for row in again] == [min(fits[1])] * 3
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("memory ended for micro_batch_cost 16384, so rows were cut into smaller parts") == len(
        set(fits[1])
    )


@contextmanager
def little_memory(trunk: Any, room: int) -> Iterator[None]:
    """As of an accelerator that holds so many tokens of what is learned from."""

    def end(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and (args[0] if args else kwargs["input_ids"]).numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    handle = trunk.register_forward_pre_hook(end, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
