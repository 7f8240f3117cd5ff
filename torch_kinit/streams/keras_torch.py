"""What Keras' torch backend draws on the CPU: torch's Mersenne Twister, and four normals for each truncated one.

The twister cannot jump, so pieces come in turn from one generator. `out` of 16 values or more may be a piece of a
larger draw, if every piece before it had a multiple of 16: torch makes normals in groups of that many.

Source: keras/src/backend/torch/random.py, Keras 3.15.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 15  # values drawn at a time: their candidates stay in cache
_CANDIDATES = 4


def uniform(out: Tensor, generator: torch.Generator, low: float, high: float) -> None:
    """Fill `out` from U[low, high)."""
    out.uniform_(0, 1, generator=generator).mul_(high - low).add_(low)


def normal(out: Tensor, generator: torch.Generator, mean: float, std: float) -> None:
    """Fill `out` from N(mean, std**2)."""
    out.normal_(mean, std, generator=generator)


def truncated_normal(out: Tensor, generator: torch.Generator, mean: float, std: float) -> None:
    """Fill `out` from N(mean, std**2), nearly always within two standard deviations.

    Each value is the first of four normals that lies inside; where none does, 4 times in a million, the first.
    """
    candidates = out.new_empty((out.numel(), _CANDIDATES)).normal_(0, 1, generator=generator)
    out.copy_(candidates[:, 0])
    (outside,) = torch.where(out.abs().ge_(2))  # one in 22, for which the rest is worth looking at
    candidates = candidates[outside]
    first = (candidates.abs() < 2).max(-1, keepdim=True).indices
    out[outside] = candidates.gather(-1, first).squeeze(-1)
    out.mul_(std).add_(mean)
