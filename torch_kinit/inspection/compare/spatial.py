"""The arithmetic of padding: where the windows of convolutions and pooling layers stand on both sides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from torch_kinit.inspection.compare.keras_graph import Unit

Sizes = tuple[int | None, ...]
PADDING = (
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)


class Axis(NamedTuple):
    """One spatial axis of a layer with a window."""

    size: int | None  # of the inputs
    window: int
    stride: int
    dilation: int = 1

    @property
    def span(self) -> int:
        """How far the window reaches."""
        return self.dilation * (self.window - 1) + 1


class Windows(NamedTuple):
    """Where windows stand: the first begins `start` before the inputs, and there are so many."""

    start: int
    number: int


def rank_of(class_name: str) -> int:
    """2 for Conv2DTranspose; 0 for a layer without spatial axes."""
    return next((int(c) for c, d in itertools.pairwise(class_name) if c in "123" and d == "D"), 0)


def several(value: Any, rank: int) -> tuple[Any, ...]:
    """A value for each axis."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * rank


def pairs(value: Any, rank: int) -> list[tuple[int, int]]:
    """What ZeroPadding or Cropping has for each axis, before and after."""
    if rank == 1 and isinstance(value, Sequence) and value and not isinstance(value[0], Sequence):
        value = [value]
    found = [several(own, 2) for own in several(value, rank)]
    return [(int(low), int(high)) for low, high in found]


# --- sizes ------------------------------------------------------------------------------------------------------------


def inputs_of(unit: Unit) -> Sizes | None:
    """The spatial sizes of a layer's inputs; None if there are none, or nothing is known of them."""
    if unit.shape:
        return tuple(unit.shape[2:] if unit.channels_first else unit.shape[1:-1])
    return _outputs_of(unit.inputs[0]) if unit.inputs else None


def _outputs_of(unit: Unit) -> Sizes | None:
    sizes, rank, name = inputs_of(unit), rank_of(unit.class_name), unit.class_name
    if sizes is None or not rank:
        return None if name in ("Flatten", "Reshape", "Permute", "") else sizes
    if len(sizes) != rank or name.startswith("Global"):
        return None
    if name.startswith(("ZeroPadding", "Cropping")):
        key, sign = ("padding", 1) if name[0] == "Z" else ("cropping", -1)
        pads = pairs(unit.get(key, 1), rank)
        return tuple(n and n + sign * (low + high) for n, (low, high) in zip(sizes, pads, strict=True))
    if name.startswith("UpSampling"):
        return tuple(n and n * f for n, f in zip(sizes, several(unit.get("size", 2), rank), strict=True))
    if name.endswith("Transpose"):
        return tuple(n and transposed(unit, axis).number for n, axis in zip(sizes, axes_of(unit), strict=True))
    if not name.startswith(("Conv", "Depthwise", "Separable", "MaxPool", "AveragePool")):
        return sizes
    same = unit.get("padding", "valid")
    return tuple(None if axis.size is None else keras_windows(axis, same).number for axis in axes_of(unit))


def axes_of(unit: Unit) -> list[Axis]:
    """The spatial axes of a convolution or pooling layer by its config."""
    rank = rank_of(unit.class_name)
    pooling = "Pooling" in unit.class_name
    window = several(unit.get("pool_size" if pooling else "kernel_size", 2), rank)
    stride = several(unit.get("strides") or (window if pooling else 1), rank)
    sizes = inputs_of(unit) or (None,) * rank
    sizes = sizes if len(sizes) == rank else (None,) * rank
    return [Axis(*own) for own in zip(sizes, window, stride, several(unit.get("dilation_rate", 1), rank), strict=True)]


# --- Keras ------------------------------------------------------------------------------------------------------------


def same_padding(axis: Axis) -> tuple[int, int]:
    """What "same" adds before and after: as much as gives ceil(size / stride) windows, the odd one after."""
    assert axis.size is not None
    total = max((math.ceil(axis.size / axis.stride) - 1) * axis.stride + axis.span - axis.size, 0)
    return total // 2, total - total // 2


def keras_padding(axis: Axis, padding: str) -> tuple[int, int]:
    """What a Keras layer pads by itself, of inputs of a known size."""
    return same_padding(axis) if padding == "same" else (axis.span - 1, 0) if padding == "causal" else (0, 0)


def keras_windows(axis: Axis, padding: str, extra: tuple[int, int] = (0, 0)) -> Windows:
    """Where the windows of a Keras layer stand; `extra` is a ZeroPadding before it, part of the axis' size."""
    assert axis.size is not None
    low, high = keras_padding(axis, padding)
    return Windows(low + extra[0], (axis.size + low + high - axis.span) // axis.stride + 1)


def transposed(unit: Unit, axis: Axis) -> Windows:
    """What Keras keeps of the whole of a transposed convolution: from where on, and how much."""
    assert axis.size is not None
    if unit.get("padding") == "same":
        return Windows(max(axis.span - axis.stride, 0) // 2, axis.size * axis.stride)
    return Windows(0, (axis.size - 1) * axis.stride + max(axis.span, axis.stride))


# --- torch ------------------------------------------------------------------------------------------------------------


def torch_padding(module: Any, axes: Sequence[Axis]) -> list[tuple[int, int]]:
    """What a torch layer pads by itself, on each axis."""
    if module.padding == "same":
        return [((axis.span - 1) // 2, axis.span - 1 - (axis.span - 1) // 2) for axis in axes]
    given = several(0 if module.padding == "valid" else module.padding, len(axes))
    return [(own, own) for own in given]


def torch_windows(axis: Axis, low: int, high: int, ceil: bool) -> Windows:
    """Where the windows of a torch layer stand."""
    assert axis.size is not None
    room = axis.size + low + high - axis.span
    count = room // axis.stride + 1
    if ceil and room % axis.stride and count * axis.stride < axis.size + low:  # the last must begin within
        count += 1
    return Windows(low, count)


def padding_of(module: Any, rank: int) -> list[tuple[int, int]]:
    """What a padding module adds on each axis, the first first."""
    given = several(module.padding, 2 * rank)
    return [(given[2 * i], given[2 * i + 1]) for i in reversed(range(rank))]


def as_torch_padding(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """In the order of torch's padding modules, the last axis first."""
    return tuple(size for pair in reversed(pads) for size in pair)


def fill_of(module: nn.Module) -> float | None:
    """The value that a padding module pads with; None for one that repeats its inputs."""
    if type(module).__name__.startswith("ZeroPad"):
        return 0.0
    value = getattr(module, "value", None)
    return None if value is None else float(value)
