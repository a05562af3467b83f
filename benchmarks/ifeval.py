"""IFEval's prompts answered greedily by a model and by what training made of it: strict accuracy, paired by prompt.

    PYTHONPATH=. python benchmarks/ifeval.py --data prompts.jsonl --before models/SmolLM2-135M-Instruct \
        --after runs/instruction_following/ppo/final/policy

On 270 of IFEval's prompts, SmolLM2-135M-Instruct before and after recipes/instruction_following.py, seed 0 (bf16, 192
tokens; in brackets the 95 % interval of the change; 4 to 9 minutes a model on one CPU core):

    before        by prompt .174, by instruction .297, 93 words, 43 % end by themselves
    PPO           .244 (+.026 to +.115), .385 (+.046 to +.130), 80 words, 45 %
    GRPO          .263 (+.041 to +.133), .385 (+.044 to +.129), 94 words, 38 %
    PPO, seed 1   .244 (+.022 to +.119), .382 (+.047 to +.126), 75 words, 56 %
    GRPO, seed 1  .248 (+.026 to +.126), .390 (+.047 to +.140), 88 words, 50 %
    GRPO, seed 2  .278 (+.052 to +.156), .400 (+.056 to +.149), 88 words, 46 %
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import tyro

from rlhf.lm.data import Data, prompt_rows
from rlhf.lm.engine import Sampling
from rlhf.lm.generate import Decoder
from rlhf.lm.load import load_policy
from rlhf.lm.texts import response_texts
from rlhf.lm.verifiers.compared import paired, read_ifeval
from rlhf.lm.verifiers.instructions import strict_verdicts
from rlhf.settings import Count, Location, Settings


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """IFEval before and after."""

    data: Location
    """IFEval's prompts, with its columns."""
    before: Location
    """Model, adapter or saved policy."""
    after: Location
    max_new_tokens: Count = 192
    rows: Count = 54
    """Answered at once."""


def answered(model: str, data: Data, config: Config) -> list[dict[str, Any]]:
    """Verdicts on each row's answer, its words, and whether it ended by itself."""
    # Adapter or not, in bf16 as in training.
    policy = load_policy(model, critic="none")
    policy.compute_in("bf16")
    prompts = prompt_rows(data, policy.tokenizer, max_new_tokens=config.max_new_tokens, context=policy.context)
    sampling = Sampling(max_new_tokens=config.max_new_tokens, stop_tokens=policy.stop_tokens)
    # Those of a length together.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    found: dict[int, dict[str, Any]] = {}
    for start in range(0, len(order), config.rows):
        chosen = order[start : start + config.rows]
        with torch.autocast(policy.device.type, torch.bfloat16), policy.sampling_mode():
            given = Decoder(policy.tokenizer).generate(
                policy, [prompts[i].tokens for i in chosen], sampling=sampling, uniforms=None
            )
        tokens = [row[:length].tolist() for row, length in zip(given.tokens, given.lengths.tolist(), strict=True)]
        texts = response_texts(policy.tokenizer, tokens, [data.rows[i]["prompt"] for i in chosen])
        for i, text, ended in zip(chosen, texts, given.finished.tolist(), strict=True):
            row = data.rows[i]
            verdicts = strict_verdicts(text, row["instruction_id_list"], row["kwargs"])
            found[i] = {"verdicts": verdicts, "words": len(text.split()), "ended": ended}
    return [found[i] for i in range(len(prompts))]


def main(config: Config) -> None:
    data = read_ifeval(config.data)
    before, after = (answered(model, data, config) for model in (config.before, config.after))
    pairs = list(zip(before, after, strict=True))
    whole = [1.0] * len(pairs)
    tables = {
        "by_prompt": ([[float(all(one["verdicts"])) for one in pair] for pair in pairs], whole),
        "by_instruction": (
            [[float(sum(one["verdicts"])) for one in pair] for pair in pairs],
            [float(len(pair[0]["verdicts"])) for pair in pairs],
        ),
        "words": ([[float(one["words"]) for one in pair] for pair in pairs], whole),
        "ended": ([[float(one["ended"]) for one in pair] for pair in pairs], whole),
    }
    for name, (sums, weights) in tables.items():
        for key, value in paired(name, sums, weights, seed=0).items():
            print(f"{key:28} {value:.3f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
