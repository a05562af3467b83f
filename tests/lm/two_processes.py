"""Run by test_lm_distributed.py, alone and under torchrun: collects, evaluates and learns; writes what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

import rlhf
from rlhf import acting, optimize
from rlhf.algorithms import a2c, grpo, impala, off_policy
from rlhf.algorithms.actor_critic import Critic
from rlhf.lm.engine import Sampling
from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.rewards import Rewards
from rlhf.loop import framed
from rlhf.runs.evaluate import Evaluation
from rlhf.runs.launch import leave
from tests.learners import learner_of
from tests.lm.words import EOS, D, word_tokenizer
from tests.lm.worlds import (
    all_but_one,
    length_and_bonus,
    none_for_one_prompt,
    word_collector,
    word_policy,
    word_prompts,
)

METHODS: dict[str, Any] = {
    "a2c": a2c.A2C(kl_coef=0.1, critic=Critic(epochs=2)),
    "grpo": grpo.GRPO(kl_coef=0.1),
    "impala": impala.Impala(kl_coef=0.1),
    "off_policy": off_policy.OffPolicy(kl_coef=0.1),
}


def learned(name: str, accelerator: Accelerator) -> dict[str, Any]:
    """What three updates do to the weights, by actors that lag behind by one where the method corrects for it."""
    method, policy = METHODS[name], word_policy()
    policy.make_reference()
    collector = word_collector(length_and_bonus, accelerator=accelerator, use_reference=True)
    lag = acting.Lag(1 if method.corrects_lag else 0)
    settings = optimize.Optimize(
        learning_rate=0.1, epochs=1 if method.single_step else 2, whiten="none", micro_batch_cost=20
    )
    # Not Adam, which would make steps of rounding errors.
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    start = {key: p.detach().clone() for key, p in policy.named_parameters() if p.requires_grad}
    wrapped, _ = accelerator.prepare(policy, optimizer)
    state, metrics = method.initial_state(), []
    for update in range(3):
        with lag.acting(policy):
            rollout, _, _ = collector.collect(policy, update)
        rollout, _ = acting.completed(
            policy,
            rollout,
            accelerator=accelerator,
            micro_batch_cost=20,
            importance_cap=2.0,
            importance_floor=0.0,
            weighs=False,
            lags=lag.updates > 0,
        )
        batch, _ = method.estimate(rollout, state)
        learner = learner_of(wrapped, settings, optimizer=optimizer, accelerator=accelerator, update_index=update)
        metrics.append(method.update(learner, rollout, framed(method, policy, rollout, batch), state)[0])
    moved = {key: p.detach() - start[key] for key, p in policy.named_parameters() if p.requires_grad}
    return {"metrics": metrics, "moved": {key: x.flatten().tolist() for key, x in moved.items()}}


def watched(accelerator: Accelerator) -> Evaluation:
    """Prompts beside which three texts are read, of which one process has two."""
    policy = word_policy()
    policy.tokenizer, policy.temperature = word_tokenizer(), 0.7
    prompts = rlhf.Prompts(
        [{"prompt": text} for text in ("a b", "c", "b a d", "d", "a")],
        lambda responses: [len(each) for each in responses],
        max_new_tokens=4, held_out=3, prompts_per_rollout=2,
    )  # fmt: skip
    texts = rlhf.Texts([{"text": text} for text in ("a b c", "d", "a b c d b a")])
    task = rlhf.Watched(prompts, {"texts": texts})
    method, settings = rlhf.PPO(kl_coef=0.1), optimize.Optimize(micro_batch_cost=20)
    here = rlhf.Here(accelerator, 0, method, settings, None)
    task.require(policy, method, settings, accelerator)
    task.prepare(policy, here)
    return task.evaluate(policy, here)


def main() -> None:
    accelerator = Accelerator(cpu=True)
    policy = word_policy()
    policy.make_reference()
    collector = word_collector(
        all_but_one,
        none_for_one_prompt,
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
    facts["watched"] = list(watched(accelerator))
    facts |= {f"learned by {name}": learned(name, accelerator) for name in METHODS}
    if accelerator.is_main_process:
        (Path(sys.argv[1]) / "facts.json").write_text(json.dumps(facts))
    leave(0)


if __name__ == "__main__":
    main()
