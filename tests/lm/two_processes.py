"""Run by test_lm_distributed.py, alone and under torchrun: collects, evaluates and learns; writes what came of it."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf import optimize
from rlhf.algorithms import a2c, grpo, impala, off_policy
from rlhf.algorithms.actor_critic import Critic
from rlhf.algorithms.catalogue import algorithm_of
from rlhf.lag import LaggedCollector
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.generate import Sampling
from rlhf.lm.rewards import Rewards
from rlhf.runs.launch import leave
from tests.learners import learner_of
from tests.lm.words import EOS, D, word_tokenizer
from tests.lm.worlds import length_and_bonus, word_collector, word_policy, word_prompts


def missing_for_one(bonus: list[int]) -> list[float | None]:
    return [None if number == 2 else 0.0 for number in bonus]


METHODS: dict[str, Any] = {
    "a2c": a2c.Config(kl_coef=0.1, critic=Critic(epochs=2)),
    "grpo": grpo.Config(kl_coef=0.1),
    "impala": impala.Config(kl_coef=0.1),
    "off_policy": off_policy.Config(kl_coef=0.1),
}


def learned(name: str, accelerator: Accelerator) -> dict[str, Any]:
    """What three updates do to the weights, by actors that lag behind by one where the method corrects for it."""
    config, policy = METHODS[name], word_policy()
    algorithm = algorithm_of(config)
    policy.make_reference()
    collector: Any = word_collector(length_and_bonus, accelerator=accelerator, use_reference=True)
    if hasattr(algorithm, "CORRECTS_LAG"):
        collector = LaggedCollector(collector, lag=1, accelerator=accelerator, micro_batch_cost=20)
    settings = optimize.Config(
        learning_rate=0.1, epochs=1 if hasattr(algorithm, "SINGLE_STEP") else 2, whiten="none", micro_batch_cost=20
    )
    # Not Adam, which would make steps of rounding errors.
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    start = {key: p.detach().clone() for key, p in policy.named_parameters() if p.requires_grad}
    wrapped, _ = accelerator.prepare(policy, optimizer)
    state, metrics = algorithm.initial_state(config), []
    for update in range(3):
        rollout, _, _ = collector.collect(policy, update)
        batch, _ = algorithm.estimate(rollout, state, config)
        learner = learner_of(wrapped, settings, optimizer=optimizer, accelerator=accelerator, update_index=update)
        if hasattr(algorithm, "update"):
            metrics.append(algorithm.update(learner, rollout, batch, state, config)[0])
        else:
            metrics.append(optimize.update(learner, batch, partial(algorithm.loss, state=state, config=config)))
    moved = {key: p.detach() - start[key] for key, p in policy.named_parameters() if p.requires_grad}
    return {"metrics": metrics, "moved": {key: x.flatten().tolist() for key, x in moved.items()}}


def main() -> None:
    accelerator = Accelerator(cpu=True)
    policy = word_policy()
    policy.make_reference()
    collector = word_collector(
        length_and_bonus,
        missing_for_one,
        accelerator=accelerator,
        allow_none=True,
        normalise_scores=True,
        missing_eos_penalty=1.0,
        use_reference=True,
    )
    facts: dict[str, Any] = {"num_processes": accelerator.num_processes, "updates": []}
    for update in range(3):
        rollout, metrics, samples = collector.collect(policy, update)
        rows = [
            {
                "sample": sample,
                "group": int(rollout.groups[i]),
                "tokens": rollout.inputs["tokens"][i, : rollout.inputs["lengths"][i]].tolist(),
                "rewards": rollout.rewards[i, : sample["length"]].tolist(),
                "logprobs": rollout.logprobs[i, : sample["length"]].tolist(),
            }
            for i, sample in enumerate(samples)
        ]
        all_rows = gather_object(rows) if accelerator.num_processes > 1 else rows
        facts["updates"].append({"metrics": metrics, "rows": all_rows})
    facts["state"] = collector.state_dict()
    for count in (5, 1):
        evaluate = ResponseEvaluator(
            word_prompts()[:count],
            word_tokenizer(),
            Rewards([length_and_bonus]),
            sampling=Sampling(max_new_tokens=6, stop_tokens=(EOS, D)),
            seed=0,
            accelerator=accelerator,
            micro_batch_cost=20,
            use_reference=True,
        )
        facts[f"evaluation of {count}"] = evaluate(policy)
    facts |= {f"learned by {name}": learned(name, accelerator) for name in METHODS}
    if accelerator.is_main_process:
        (Path(sys.argv[1]) / "facts.json").write_text(json.dumps(facts))
    leave(0)


if __name__ == "__main__":
    main()
