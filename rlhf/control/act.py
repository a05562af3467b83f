"""A trained policy used: an observation in, an action out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rlhf.control.policy import ControlPolicy
from rlhf.control.twin_policy import TwinPolicy


def act(policy: ControlPolicy | TwinPolicy, observation: np.ndarray) -> Any:
    """The likeliest action for one observation, the vector `(O,)` that the policy was trained on, in the form that the
    environment's `step` takes.
    """
    actions, _, _ = policy.act(torch.as_tensor(np.asarray(observation)).unsqueeze(0), None)
    return policy.for_env(actions)[0]
