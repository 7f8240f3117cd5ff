"""Draws of a Key or KerasSeed in graphs of torch.compile and torch.export: one operator, which no compiler looks into.

A compiler would fuse a draw's hundred operations and round some of them otherwise; the operator has the eager values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torch_kinit.streams.laws import LAWS, Law
from torch_kinit.streams.source import Source

SOURCES: dict[str, Callable[[Sequence[int]], Source]] = {}  # by kind, what makes a source of its numbers


def draw(kind: str, numbers: Sequence[int], tensor: Tensor, law: Law) -> Tensor:
    """Let the graph that is being made fill `tensor` from the source of a kind and numbers."""
    arguments = [float(getattr(law, name)) for name in type(law).__match_args__]  # type: ignore[attr-defined]
    with torch.no_grad():
        _draw(tensor, kind, list(numbers), type(law).__name__, arguments)
    return tensor


@torch.library.custom_op("torch_kinit::draw", mutates_args={"tensor"})
def _draw(tensor: Tensor, kind: str, numbers: Sequence[int], law: str, arguments: Sequence[float]) -> None:
    SOURCES[kind](numbers).draw(tensor, LAWS[law](*arguments))
