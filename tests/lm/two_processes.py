"""Run by test_lm_distributed.py, alone and under torchrun: collects and evaluates, and writes what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from rlhf.lm.evaluate import ResponseEvaluator
from rlhf.lm.generate import Sampling
from rlhf.lm.rewards import Rewards
from tests.lm.words import EOS, D, word_tokenizer
from tests.lm.worlds import length_and_bonus, word_collector, word_policy, word_prompts


def missing_for_one(bonus: list[int]) -> list[float | None]:
    return [None if number == 2 else 0.0 for number in bonus]


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
    if accelerator.is_main_process:
        (Path(sys.argv[1]) / "facts.json").write_text(json.dumps(facts))
    accelerator.end_training()


if __name__ == "__main__":
    main()
