"""Buffers of one size and dtype, used again and again: new memory takes longer to come than a step."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Buffers to take and give back.

    They are one allocation, which the C library keeps for the next draw where it would return many small ones.
    """

    def __init__(self, buffers: int, size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self._whole = torch.empty((buffers, size), dtype=dtype, device=device).unbind()
        self.renew()

    def renew(self) -> None:
        """Let all buffers be free again, and whole."""
        self._free = list(self._whole)

    def take(self, count: int) -> Tensor:
        """A buffer of `count` values; until they are renewed no count is more than the one before."""
        return self._free.pop()[:count]

    def give(self, *buffers: Tensor) -> None:
        """Take these back."""
        self._free.extend(buffers)
