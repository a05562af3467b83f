"""Eligibility traces: what each past gradient still counts for when an error comes in."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def accumulate(
    gradients: Float[Tensor, "B T P"],
    errors: Float[Tensor, "B T"],
    dones: Bool[Tensor, "B T"],
    traces: Float[Tensor, "B P"],
    *,
    decay: Float[Tensor, " P"],
) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]]:
    """Accumulating traces and the updates they give, weights held (Sutton and Barto, 2018, section 13.6;
    http://incompleteideas.net/book).

    z_t = decay * z_{t-1} + g_t,  update = sum_t error_t * z_t;  z starts at 0 after an episode's end.

    Args:
        gradients: Of what is to grow where the error is positive, as log pi(a_t | s_t) or V(s_t).
        errors: TD errors; 0 where nothing was done.
        dones: True at an episode's last step, terminated or cut.
        traces: What earlier calls returned; 0 at the start.
        decay: gamma * lambda of each parameter.

    Returns:
        The updates, and the traces to go on with.
    """
    updates = torch.zeros_like(traces)
    for gradient, error, done in zip(gradients.unbind(1), errors.unbind(1), dones.unbind(1), strict=True):
        traces = torch.addcmul(gradient, decay, traces)
        updates = torch.addcmul(updates, error.unsqueeze(-1), traces)
        traces = traces.masked_fill(done.unsqueeze(-1), 0.0)
    return updates, traces
