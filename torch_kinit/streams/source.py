"""What a source of random numbers is: it fills a tensor from a law."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from torch_kinit.streams.laws import Law


class Source(ABC):
    """Fills tensors from laws. `layout` is the order of axes that its numbers follow; None for that of the memory."""

    layout: str | None = "keras"
    whole_in_double = False  # whether orthogonal matrices are made in float64, whatever the tensor's dtype
    flushes = False  # whether subnormal numbers are zero where they are computed
    on_cpu = True  # whether values are computed on the CPU, wherever the tensor is

    @abstractmethod
    def draw(self, tensor: Tensor, law: Law) -> Tensor:
        """Fill `tensor`, of any strides, from `law`, and return it; refuses what `refuse` does.

        A tensor without storage or without elements stays as it is.
        """

    @property
    @abstractmethod
    def native_seed(self) -> int:
        """A seed for a torch.Generator, where values must come from one."""

    @property
    def argument(self) -> Any:
        """What an initializer gets as `generator` to draw from this source."""
        return self

    def refuse(self, law: Law, dtype: torch.dtype) -> None:
        """Raise a ValueError if `law` cannot be drawn for a tensor of `dtype`."""
        law.support(dtype)

    def for_name(self, name: str) -> Source:
        """The source for the tensor of this name in a model: here the same for each."""
        return self

    def for_block(self, index: int) -> Source:
        """The source for the `index`-th of several draws for one tensor: here the same for each."""
        return self

    def for_row(self, start: int, total: int) -> Source:
        """The source for a tensor that holds the values from flat index `start` on of a variable of `total`."""
        return _Stretch(self, start, total)


class _Stretch(Source):
    """A stretch of another source, which draws the whole and keeps that: for biases, which are short."""

    def __init__(self, whole: Source, start: int, total: int) -> None:
        self._whole, self._start, self._total = whole, start, total
        self.layout, self.whole_in_double = whole.layout, whole.whole_in_double

    @property
    def native_seed(self) -> int:
        return self._whole.native_seed

    def refuse(self, law: Law, dtype: torch.dtype) -> None:
        self._whole.refuse(law, dtype)

    def draw(self, tensor: Tensor, law: Law) -> Tensor:
        device = tensor.device if tensor.is_meta else "cpu"
        values = self._whole.draw(torch.empty(self._total, dtype=tensor.dtype, device=device), law)
        return tensor.copy_(values[self._start : self._start + tensor.numel()].view(tensor.shape))


class LawFinder(Source):
    """Fills nothing: keeps the law that an initializer asks for, to look at a plan before it is carried out."""

    layout = None
    on_cpu = False
    law: Law | None = None
    native_seed = 0

    def draw(self, tensor: Tensor, law: Law) -> Tensor:
        self.refuse(law, tensor.dtype)
        self.law = law
        return tensor

    def for_row(self, start: int, total: int) -> Source:
        return self
