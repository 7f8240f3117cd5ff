"""What Keras' torch backend draws on the CPU: torch's Mersenne Twister, and four normals for each truncated one.

The twister cannot jump, so pieces come in turn from one generator. `out` of 16 values or more may be a piece of a
larger draw, if every piece before it had a multiple of 16: torch makes normals in groups of that many.

Source: keras/src/backend/torch/random.py, Keras 3.15.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torch_kinit.streams.laws import Law, TruncatedNormal, Uniform
from torch_kinit.streams.pieces import SERIAL

CHUNK = SERIAL  # values drawn at a time: their candidates stay in cache
_CANDIDATES = 4


def draw(out: Tensor, generator: torch.Generator, law: Law) -> None:
    """Fill `out` from `law`: uniform, normal or truncated normal."""
    if isinstance(law, Uniform):
        out.uniform_(0, 1, generator=generator).mul_(law.high - law.low).add_(law.low)
    elif isinstance(law, TruncatedNormal):
        _truncated_(out, generator)
        out.mul_(law.scale).add_(law.loc)
    else:
        out.normal_(law.mean, law.std, generator=generator)


def _truncated_(out: Tensor, generator: torch.Generator) -> None:
    """Fill `out` with standard normal values, nearly always within two.

    Each value is the first of four normals that lies inside; where none does, 4 times in a million, the first.
    """
    candidates = out.new_empty((out.numel(), _CANDIDATES)).normal_(0, 1, generator=generator)
    out.copy_(candidates[:, 0])
    (rows,) = torch.where(out.abs().ge_(2))  # one in 22, for which the rest is worth looking at
    candidates = candidates.index_select(0, rows)
    chosen = candidates[:, 0]
    for column in reversed(candidates.unbind(1)):
        chosen = torch.where(column.abs() < 2, column, chosen)
    out.index_copy_(0, rows, chosen)
