"""One thread a process: test workers share the cores, and initial weights (a QR) round with the number of threads."""

from __future__ import annotations

import os

import torch

# Also for the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
