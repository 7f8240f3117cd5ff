"""Whether a tensor of a port is what Keras has, in whatever order of axes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NOISE = 1e-5  # float32 arithmetic in another order, of the largest value
_MOST_NOISE = 1e-3
_GROWTH = 5.0  # by which a layer may enlarge the noise of its inputs


@dataclass(frozen=True)
class Distance:
    """How far a tensor is from Keras'."""

    largest: float  # difference of two values
    scale: float  # the largest value of Keras'

    @property
    def relative(self) -> float:
        return self.largest / self.scale if self.scale else self.largest

    def within(self, noise: float) -> bool:
        """Whether it is no more than rounding, after layers whose outputs were off by `noise`."""
        return self.relative <= min(_MOST_NOISE, max(NOISE, _GROWTH * noise))


def distance(found: Tensor, keras: Tensor, valid: Tensor | None = None) -> Distance | None:
    """How far `found` is from `keras` in the order of axes that fits best; None if none fits.

    `valid` is a mask of the steps that count; what a masked step holds, nobody reads.
    """
    keras = as_float(keras)
    steps = valid if valid is not None and valid.shape == keras.shape[:2] and bool(valid.any()) else ...
    scale = float(keras[steps].abs().max()) if keras.numel() else 0.0
    ways = [(way - keras)[steps].abs().nan_to_num(math.inf).max() for way in arranged(found, tuple(keras.shape))]
    return Distance(min(map(float, ways)), scale) if ways else None


def closest(found: Tensor, keras: Tensor) -> Tensor:
    """`found` in the order of axes that fits best."""
    return min(arranged(found, tuple(keras.shape)), key=lambda way: float((way - as_float(keras)).abs().max()))


def as_float(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def arranged(found: Tensor, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """A tensor in each order of axes that can be Keras' of this shape: as it is, channels last, time second."""
    found = as_float(found)
    if found.numel() != math.prod(shape) or not found.numel():
        return
    orders = {tuple(range(found.ndim))}
    if found.ndim > 2:
        orders.add((0, *range(2, found.ndim), 1))
    if found.ndim == 3:
        orders.add((1, 0, 2))
    for order in sorted(orders):
        moved = found.permute(order)
        if _bare(tuple(moved.shape)) == _bare(shape) or order == tuple(range(found.ndim)):
            yield moved.reshape(shape)


def in_layout_of(keras: Tensor, found: Tensor) -> Iterator[Tensor]:
    """Keras' tensor in each order of axes that has the shape of `found`."""
    orders = {tuple(range(keras.ndim))}
    if keras.ndim > 2:
        orders.add((0, keras.ndim - 1, *range(1, keras.ndim - 1)))
    if keras.ndim == 3:
        orders.add((1, 0, 2))
    for order in sorted(orders, reverse=True):
        if tuple(keras.permute(order).shape) == tuple(found.shape):
            yield keras.permute(order)


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
