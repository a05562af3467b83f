"""Log-probabilities and entropy of given tokens, from hidden states or from logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# exp of it is 0 in every precision, and unlike with an infinity 0 times it is 0.
_NEVER = -1e30
# Logits that are held at a time: 64 MB in float32. Fewer make thin matrix products (half the speed at 2**20 and a
# vocabulary of 50k).
_CHUNK_ELEMENTS = 2**24


def known_only(logits: Tensor, unknown: Tensor | None) -> Tensor:
    """`(..., V)` logits, or a head's bias, by which tokens that are `unknown` (V,) have probability 0; None: as is."""
    return logits if unknown is None else logits.masked_fill(unknown, _NEVER)


def head_logprobs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, without ever holding all `(N, V)` logits.

    With z = (hidden @ weight.T + bias) / temperature and p = softmax(z): log p_target and H = -sum p log p. Gradients:
    d log p_target / dz = onehot - p and dH / dz = -p (log p + H). The logits are computed again in the backward pass,
    except where they fit one chunk. All of it runs in float32 at least, under autocast too.

    Args:
        hidden: `(N, d)`.
        weight: `(V, d)` of the LM head, frozen or not.
        targets: `(N,)` token ids.
    """
    logprobs, entropy = _HeadLogprobs.apply(hidden, weight, bias, targets, temperature)
    return logprobs, entropy


def head_logits(hidden: Tensor, head: Any) -> Tensor:
    """The `(B, V)` logits of which `head_logprobs` takes the softmax, in the same precision."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.to(dtype), head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype))


def logits_logprobs(logits: Tensor, targets: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """The same of `(N, V)` logits, for heads that do more than multiply by a matrix."""
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    logprobs = scaled.log_softmax(dim=-1)
    return logprobs.gather(1, targets.unsqueeze(1)).squeeze(1), -(logprobs.exp() * logprobs).sum(dim=-1)


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        rows = max(1, _CHUNK_ELEMENTS // weight.shape[0])
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(hidden.shape[0], dtype=dtype)
        entropy = torch.empty_like(logprobs)
        kept = None
        with torch.autocast(hidden.device.type, enabled=False):
            head = (weight.to(dtype), None if bias is None else bias.to(dtype))
            for start in range(0, hidden.shape[0], rows):
                chunk = slice(start, start + rows)
                kept = _log_softmax(hidden[chunk].to(dtype), *head, temperature)
                logprobs[chunk] = kept.gather(1, targets[chunk].unsqueeze(1)).squeeze(1)
                entropy[chunk] = -torch.linalg.vecdot(kept.exp(), kept)
        ctx.save_for_backward(hidden, weight, bias, targets, entropy, kept if hidden.shape[0] <= rows else None)
        ctx.temperature = temperature
        ctx.rows = rows
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy, kept = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        dtype = entropy.dtype
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if needs_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = (weight.to(dtype), None if bias is None else bias.to(dtype))
            for start in range(0, hidden.shape[0], ctx.rows):
                chunk = slice(start, start + ctx.rows)
                states = hidden[chunk].to(dtype)
                logprobs = _log_softmax(states, *head, ctx.temperature) if kept is None else kept
                ahead, aside = grad_logprobs[chunk] / ctx.temperature, grad_entropy[chunk] / ctx.temperature
                grad = torch.addcmul((-ahead - aside * entropy[chunk]).unsqueeze(1), logprobs, -aside.unsqueeze(1))
                grad.mul_(logprobs.exp()).scatter_add_(1, targets[chunk].unsqueeze(1), ahead.unsqueeze(1))
                if grad_hidden is not None:
                    grad_hidden[chunk] = grad @ head[0]
                if grad_weight is not None:
                    grad_weight.addmm_(grad.T, states)
                if grad_bias is not None:
                    grad_bias += grad.sum(dim=0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _log_softmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    return (logits if temperature == 1.0 else logits.div_(temperature)).log_softmax(dim=-1)
