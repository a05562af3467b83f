"""Run by test_distributed.py, alone and under torchrun: one program, its batch spread unevenly over the ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf import optimize
from rlhf.algorithms import ppo
from rlhf.lm.policy import CausalLM
from rlhf.rollout import Batch
from rlhf.runs.launch import leave
from tests.batches import make_batch, make_rollout, ppo_loss
from tests.cramped import Cramped
from tests.learners import learner_of
from tests.tabular import TabularPolicy

ROWS, STEPS, UPDATES = 11, 5, 10


def control(dtype: torch.dtype) -> tuple[nn.Module, Batch]:
    policy = TabularPolicy(4, 3, dtype=dtype)
    return policy, make_batch(policy, rows=ROWS, steps=STEPS)


def language_model(dtype: torch.dtype) -> tuple[nn.Module, Batch]:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=7, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=2)
    policy = CausalLM(GPT2LMHeadModel(config).to(dtype), temperature=1.0, critic="shared").to(dtype)
    template = make_rollout(TabularPolicy(4, 3, dtype=dtype), rows=ROWS, steps=STEPS)
    lengths = template.costs + 3
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 7, (ROWS, 3 + STEPS), generator=generator)
    inputs = {"tokens": tokens, "lengths": lengths, "actions": (torch.arange(STEPS) + 3) * template.mask}
    with torch.no_grad():
        output = policy(inputs)
    batch, _ = ppo.PPO().estimate(template, ppo.PPO().initial_state())
    batch = batch._replace(inputs=inputs, logprobs=output.logprobs, values=output.values.masked_fill(~batch.mask, 0))
    return policy, batch


def cramped(accelerator: Accelerator) -> tuple[nn.Module, Batch]:
    """Memory ends for two rows at once, on the second of two processes alone."""
    policy = Cramped(1 if accelerator.process_index else 99)
    return policy, make_batch(Cramped(99), rows=ROWS, steps=STEPS)


def main() -> None:
    output = Path(sys.argv[1])
    accelerator = Accelerator()
    compute(accelerator, output / "cramped-float64", *cramped(accelerator))
    for name, make in (("control", control), ("lm", language_model)):
        for dtype in (torch.float32, torch.float64):
            compute(accelerator, output / f"{name}-{str(dtype).removeprefix('torch.')}", *make(dtype))
    leave(0)


def compute(accelerator: Accelerator, output: Path, policy: nn.Module, whole: Batch) -> None:
    """Writes the unclipped gradient, the change of every weight over ten updates, and metrics."""
    # Rank 0 of two holds the first three rows, rank 1 the other eight: no two ranks do the same work.
    bounds = [0, 3, ROWS] if accelerator.num_processes == 2 else [0, ROWS]
    mine = torch.arange(bounds[accelerator.process_index], bounds[accelerator.process_index + 1])
    batch = whole.rows(mine)
    config = optimize.Optimize(learning_rate=0.01, epochs=1, minibatches=3, micro_batch_cost=9, whiten="minibatch")
    optimizer = optimize.make_optimizer(policy, config)
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    wrapped, _ = accelerator.prepare(policy, optimizer)
    optimize.gradient(
        wrapped, batch, batch.rows(torch.tensor([0])), ppo_loss(), accelerator=accelerator, micro_batch_cost=9
    )
    result = {f"gradient/{name}": p.grad.clone() for name, p in policy.named_parameters()}
    for update in range(UPDATES):
        learner = learner_of(wrapped, config, optimizer=optimizer, accelerator=accelerator, update_index=update)
        metrics = optimize.update(learner, _rescored(policy, batch), ppo_loss())
    result |= {f"change/{name}": tensor - start[name] for name, tensor in policy.state_dict().items()}
    if accelerator.is_main_process:
        output.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in result.items()}, output / "result.safetensors")
        facts = {
            "num_processes": accelerator.num_processes,
            "distributed_type": accelerator.distributed_type.value,
            "wrapped": type(wrapped).__name__,
            "fits": metrics.pop("micro_batch_cost", None),
            "metrics": metrics,
        }
        (output / "facts.json").write_text(json.dumps(facts))


def _rescored(policy: nn.Module, batch: Batch) -> Batch:
    with torch.no_grad():
        return batch._replace(logprobs=policy(batch.inputs).logprobs.masked_fill(~batch.mask, 0.0))


if __name__ == "__main__":
    main()
