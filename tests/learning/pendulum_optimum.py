"""What the best controller of Pendulum-v1 gets, by dynamic programming on a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium
import numpy as np
import torch
from torch import Tensor

NUM_ANGLES, NUM_SPEEDS, NUM_TORQUES, HORIZON = 181, 161, 41, 200
MAX_SPEED, MAX_TORQUE, DT = 8.0, 2.0, 0.05
TORQUES = torch.linspace(-MAX_TORQUE, MAX_TORQUE, NUM_TORQUES, dtype=torch.float64)


def step(angles: Tensor, speeds: Tensor, torques: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gymnasium's Pendulum-v1 (g 10, m 1, l 1): next angle, next speed, reward."""
    wrapped = (angles + math.pi) % (2 * math.pi) - math.pi
    rewards = -(wrapped.square() + 0.1 * speeds.square() + 0.001 * torques.square())
    speeds = (speeds + (15.0 * angles.sin() + 3.0 * torques) * DT).clamp(-MAX_SPEED, MAX_SPEED)
    return angles + speeds * DT, speeds, rewards


def interpolate(table: Tensor, angles: Tensor, speeds: Tensor) -> Tensor:
    """Bilinear; the angle's axis is a circle whose first and last grid lines are the same."""
    x = ((angles + math.pi) % (2 * math.pi)) / (2 * math.pi) * (NUM_ANGLES - 1)
    y = (speeds + MAX_SPEED) / (2 * MAX_SPEED) * (NUM_SPEEDS - 1)
    i, j = x.long().clamp(max=NUM_ANGLES - 2), y.long().clamp(max=NUM_SPEEDS - 2)
    u, v = x - i, y - j
    flat, corner = table.flatten(), i * NUM_SPEEDS + j
    low = flat[corner] * (1 - v) + flat[corner + 1] * v
    high = flat[corner + NUM_SPEEDS] * (1 - v) + flat[corner + NUM_SPEEDS + 1] * v
    return low * (1 - u) + high * u


def value_tables() -> list[Tensor]:
    """Undiscounted values with n steps to go, n = 0 .. HORIZON - 1."""
    angles = torch.linspace(-math.pi, math.pi, NUM_ANGLES, dtype=torch.float64).view(-1, 1, 1)
    speeds = torch.linspace(-MAX_SPEED, MAX_SPEED, NUM_SPEEDS, dtype=torch.float64).view(1, -1, 1)
    next_angles, next_speeds, rewards = torch.broadcast_tensors(*step(angles, speeds, TORQUES))
    tables = [torch.zeros(NUM_ANGLES, NUM_SPEEDS, dtype=torch.float64)]
    for _ in range(HORIZON - 1):
        tables.append((rewards + interpolate(tables[-1], next_angles, next_speeds)).amax(-1))
    return tables


def optimal_return(seeds: Sequence[int]) -> float:
    """Mean return over the episodes that start from these seeds, acting by one-step lookahead on the tables."""
    env = gymnasium.make("Pendulum-v1")
    starts = []
    for seed in seeds:
        env.reset(seed=seed)
        starts.append(env.unwrapped.state)
    angles, speeds = torch.as_tensor(np.array(starts)).unbind(1)
    total = torch.zeros(len(starts), dtype=torch.float64)
    for table in reversed(value_tables()):
        next_angles, next_speeds, rewards = step(angles.unsqueeze(1), speeds.unsqueeze(1), TORQUES)
        best = (rewards + interpolate(table, *torch.broadcast_tensors(next_angles, next_speeds))).argmax(1)
        angles, speeds, rewards = step(angles, speeds, TORQUES[best])
        total += rewards
    return float(total.mean())
