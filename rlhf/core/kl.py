"""Kullback-Leibler divergences in nats, estimated from samples or exact."""

import torch
from jaxtyping import Float
from torch import Tensor

# Of |ratio - 1|. Rounding stays below: in float32 (3e-5 was seen) and in bfloat16 (of few actions 0.1).
OFF, FAR = 1e-3, 0.2


def k1(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Estimates KL(policy || ref) from actions of the policy: unbiased, of either sign (Schulman, 2020;
    http://joschu.net/blog/kl-approx.html).

    k1 = log p(a) - log ref(a).
    """
    return logprobs - ref_logprobs


def k3(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Estimates KL(policy || ref) from actions of the policy: unbiased, never negative (Schulman, 2020;
    http://joschu.net/blog/kl-approx.html).

    k3 = x - 1 - log x,  x = ref(a) / p(a).  Its gradient with respect to ref is, in expectation, that of the KL.
    """
    log_ratios = ref_logprobs - logprobs
    return torch.expm1(log_ratios) - log_ratios


def movement(
    logprobs: Float[Tensor, "*shape"], old_logprobs: Float[Tensor, "*shape"]
) -> dict[str, Float[Tensor, "*shape"]]:
    """How far the policy has moved from the one that acted, per action, under the names they are logged by.

    Samples come from the old policy, so k1 and k3 estimate KL(old || new), nats; `ratio_error_max` is |ratio - 1|,
    `ratio_off_fraction` 1 where that is above OFF, and `ratio_far_fraction` 1 where it is above FAR.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    errors = (ratio - 1.0).abs()
    return {
        "approx_kl_k1": k1(old_logprobs, logprobs),
        "approx_kl_k3": k3(old_logprobs, logprobs),
        "ratio_max": ratio,
        "ratio_error_max": errors,
        "ratio_off_fraction": (errors > OFF).to(errors),
        "ratio_far_fraction": (errors > FAR).to(errors),
    }


def categorical_kl(logits: Float[Tensor, "... V"], ref_logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """KL(softmax(logits) || softmax(ref_logits)) = sum_a p_a (log p_a - log ref_a) (Cover and Thomas, 2006, eq. 2.26).

    An action that the policy cannot take adds 0, one that only the reference cannot take makes it infinite.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    probs = logprobs.exp()
    log_ratios = logprobs - torch.log_softmax(ref_logits, dim=-1)
    # Where both logits are -inf, their difference is NaN.
    return (probs * log_ratios.masked_fill(probs == 0.0, 0.0)).sum(dim=-1)


def gaussian_kl(
    mean: Float[Tensor, "... A"],
    log_std: Float[Tensor, "... A"],
    ref_mean: Float[Tensor, "... A"],
    ref_log_std: Float[Tensor, "... A"],
) -> Float[Tensor, "..."]:
    """KL(policy || ref) of diagonal Gaussians, summed over the A axes of the action (Kullback, 1959, section 9.1).

    sum_a log_std_ref - log_std + 0.5 * (exp(2 (log_std - log_std_ref)) + ((mean - mean_ref) / std_ref)^2 - 1).
    """
    shrinkage = ref_log_std - log_std
    distances = (mean - ref_mean) * torch.exp(-ref_log_std)
    return (shrinkage + 0.5 * (torch.expm1(-2.0 * shrinkage) + distances.square())).sum(dim=-1)
