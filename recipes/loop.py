"""PPO on a language model with every step written out, for readers: acting, estimates, loss, steps.

    python recipes/loop.py --model gpt2

It is what `rlhf.train` does with PPO and these settings, to the last digit (a test holds it to that), less what makes a
run of it: several processes, half precision, micro-batches, updates whose scores are all alike (there the policy stays
as it is), logs, evaluation, checkpoints. To run one, copy custom_reward.py; to see or to change what happens in it,
read on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf.deferred import deferred
from rlhf.optimize import require_rows
from rlhf.runs.launch import launch
from rlhf.settings import Count, Location, Positive, Seed, Settings, Size, Total

with deferred():
    import torch
    from accelerate import Accelerator

    from rlhf.core import kl, losses
    from rlhf.core.advantages import gae
    from rlhf.core.epochs import epoch_rows
    from rlhf.core.random import hashed_orders, uniforms
    from rlhf.lm.data import load_data, prompt_rows
    from rlhf.lm.engine import Sampling
    from rlhf.lm.generate import Decoder
    from rlhf.lm.load import load_policy
    from rlhf.lm.policy import CausalLM
    from rlhf.lm.scoring import response_inputs
    from rlhf.lm.texts import decoded
    from rlhf.reduce import global_whiten

PROMPTS = [{"prompt": f"{start} {what}"} for start in ("The story of", "I sing of") for what in ("winter", "the sea")]


def alliteration(responses: list[str]) -> list[float]:
    """The reward: the share of words that begin with the letter s."""
    words = [response.lower().split() for response in responses]
    return [sum(word.startswith("s") for word in each) / max(len(each), 1) for each in words]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """PPO, step by step."""

    model: Location
    """Hub id or folder of a causal language model, or a .gguf file."""
    updates: Total = 40
    """Times that responses are sampled and learned from."""
    seed: Seed = 0
    """Everything random follows from it."""
    prompts: Count = 4
    """Prompts of each update."""
    responses: Count = 8
    """Responses to each prompt."""
    max_new_tokens: Count = 24
    """Longest response, in tokens."""
    learning_rate: Positive = 1e-5
    """Step size of AdamW."""
    epochs: Count = 2
    """Passes over the responses of an update."""
    minibatches: Count = 2
    """Optimizer steps of each pass."""
    kl_coef: Size = 0.01
    """Charge per nat of log p(token) - log p_reference(token)."""

    def __post_init__(self) -> None:
        require_rows(self.prompts * self.responses, self.minibatches)


def train(policy: CausalLM, data: list[dict[str, str]], reward: Callable[[list[str]], list[float]], c: Config) -> None:
    """Trains the policy in place."""
    prompts = prompt_rows(load_data(data), policy.tokenizer, max_new_tokens=c.max_new_tokens, context=policy.context)
    sampling = Sampling(max_new_tokens=c.max_new_tokens, stop_tokens=policy.stop_tokens)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=c.learning_rate, weight_decay=0.0, fused=True)
    policy.make_reference()
    here = Accelerator()
    ids = torch.arange(c.prompts * c.responses)
    for update in range(c.updates):
        # Act: so many responses to each of the next prompts.
        drawn = epoch_rows(c.seed, "prompts", num_rows=len(prompts), start=update * c.prompts, count=c.prompts)
        asked = [prompts[row].tokens for row in drawn.tolist() for _ in range(c.responses)]
        draws = uniforms(c.seed, "responses", update, ids, c.max_new_tokens)
        given = Decoder().generate(policy, asked, sampling=sampling, uniforms=draws)
        steps, last = torch.arange(given.tokens.shape[1]), given.lengths.unsqueeze(1) - 1
        mask, dones = steps <= last, steps == last
        written = [row[:length] for row, length in zip(given.tokens.tolist(), given.lengths.tolist(), strict=True)]
        texts = decoded(policy.tokenizer, written, follows=True, skip_special_tokens=True)
        # The score is paid on the last token, less the charge for leaving the reference on every one.
        rewards = torch.where(dones, torch.tensor(reward(texts)).unsqueeze(1), 0.0)
        inputs = response_inputs(asked, given.tokens, given.lengths)
        # At first the policy is the reference: two passes would differ by rounding, which whitening below blows up.
        reference = policy.reference_logprobs(inputs) if update else given.logprobs
        rewards = rewards - c.kl_coef * kl.k1(given.logprobs, reference)
        # Estimate: what each token was worth beyond what the critic expected, and what the critic should have said.
        values: Any = given.values
        next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1).masked_fill(dones, 0.0)
        advantages = gae(rewards, values, next_values, dones, gamma=1.0, gae_lambda=0.95).masked_fill(~mask, 0.0)
        returns = advantages + values
        advantages = global_whiten(here, advantages, mask, returns, values)
        # Learn: a few steps on these responses, none of which gains by moving a token's probability beyond the clip.
        passes = [f"minibatches of epoch {epoch}" for epoch in range(c.epochs)]
        for order in hashed_orders(c.seed, passes, update, ids):
            for rows in order.tensor_split(c.minibatches):
                output = policy({name: tensor[rows] for name, tensor in inputs.items()})
                terms = losses.clipped_surrogate_loss(output.logprobs, given.logprobs[rows], advantages[rows], clip=0.2)
                terms = terms + 0.5 * losses.value_loss(output.values, returns[rows])
                loss = terms.masked_fill(~mask[rows], 0.0).sum() * (1.0 / mask[rows].sum().double()).to(terms)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimizer.step()
        print(f"update {update + 1}: score {sum(reward(texts)) / len(texts):.3f}")


def main(config: Config) -> None:
    policy = load_policy(config.model, seed=config.seed)
    train(policy, PROMPTS, alliteration, config)


if __name__ == "__main__":
    launch(main, Config)
