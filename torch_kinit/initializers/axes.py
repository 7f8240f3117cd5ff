"""The order of axes in torch and in Keras, and the fan_in and fan_out of a shape."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from torch_kinit import checks
from torch_kinit.shards import permuted

LAYOUTS = ("torch", "keras")


def keras_axes(ndim: int) -> tuple[int, ...]:
    """The axes of a tensor in torch's layout, (out, in, *spatial), in the order of Keras', (*spatial, in, out)."""
    return (*range(2, ndim), 1, 0) if ndim > 1 else tuple(range(ndim))


def torch_axes(ndim: int) -> tuple[int, ...]:
    """The axes of a tensor in Keras' layout in the order of torch's."""
    return (ndim - 1, ndim - 2, *range(ndim - 2)) if ndim > 1 else tuple(range(ndim))


def keras_shape(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """A shape in Keras' layout."""
    return tuple(shape) if layout == "keras" else tuple(shape[axis] for axis in keras_axes(len(shape)))


def torch_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape in Keras' layout as torch has it."""
    return tuple(shape[axis] for axis in torch_axes(len(shape)))


def keras_view(tensor: Tensor, layout: str) -> Tensor:
    """`tensor` as a view in Keras' layout."""
    return in_layout(tensor, layout, "keras")


def in_layout(tensor: Tensor, layout: str, wanted: str | None) -> Tensor:
    """A tensor in `layout` as a view in another; None for any."""
    if wanted is None or wanted == layout or tensor.ndim < 2:
        return tensor
    return permuted(tensor, keras_axes(tensor.ndim) if wanted == "keras" else torch_axes(tensor.ndim))


def fans(tensor_or_shape: Any, layout: str = "torch") -> tuple[int, int]:
    """The `(fan_in, fan_out)` that the scaled initializers use for a weight of this shape.

    In Keras' layout `(*spatial, in, out)` they are `in * prod(spatial)` and `out * prod(spatial)`; torch's
    layout `(out, in, *spatial)` gives the same numbers for the same layer. A scalar has `(1, 1)` and a vector of
    n values `(n, n)`, as in Keras, where `torch.nn.init` refuses both.

    Args:
        tensor_or_shape: a tensor, or its shape as a sequence of ints.
        layout: how the axes are ordered, `"torch"` or `"keras"`.

    Raises:
        ValueError: `layout` is neither of the two, a size is negative, or the tensor is a lazy parameter.
        TypeError: it is neither a tensor nor a sequence of ints.

    Example:
        >>> fans((8, 4, 3, 5)), fans((3, 5, 4, 8), layout="keras")      # a Conv2d from 4 to 8 channels, kernel 3x5
        ((60, 120), (60, 120))
        >>> fans((10,)), fans(())
        ((10, 10), (1, 1))

    Source: `compute_fans` in keras/src/initializers/random_initializers.py, Keras 3.15.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"`layout` must be 'torch' or 'keras', got {checks.short(layout)}.")
    shape = shape_of(tensor_or_shape)
    if len(shape) < 2:
        n = math.prod(shape)
        return n, n
    shape = keras_shape(shape, layout)
    receptive_field = math.prod(shape[:-2])
    return shape[-2] * receptive_field, shape[-1] * receptive_field


def fans_by_axes(shape: Sequence[int], input_axes: Iterable[int], output_axes: Iterable[int]) -> tuple[int, int]:
    """The products of the sizes along Keras 3.15's `input_axes` and `output_axes` of a Keras-layout shape."""
    try:
        return math.prod(shape[a] for a in input_axes), math.prod(shape[a] for a in output_axes)
    except IndexError:
        raise ValueError(
            f"`input_axes`={checks.short(input_axes)}, `output_axes`={checks.short(output_axes)} name an axis that "
            f"shape {tuple(shape)} lacks."
        ) from None


def shape_of(tensor_or_shape: Any) -> tuple[int, ...]:
    """The shape of a tensor, or a sequence of sizes, as a tuple of ints."""
    try:
        shape = tuple(operator.index(size) for size in getattr(tensor_or_shape, "shape", tensor_or_shape))
    except RuntimeError as error:  # torch's, from a lazy parameter
        raise ValueError(f"A lazy parameter has no shape yet: run one forward pass first. ({error})") from None
    except TypeError:
        raise TypeError(
            f"Expected a tensor or a shape (a sequence of ints), got {checks.short(tensor_or_shape)}."
        ) from None
    if any(size < 0 for size in shape):
        raise ValueError(f"A shape has no negative sizes, got {checks.short(shape)}.")
    return shape


fans_of = fans  # for functions that have an argument `fans`


def resolve_fans(fans: Any, keras_shape: Iterable[int]) -> tuple[int, int]:
    """`fans` as two ints: given as such, by axes of the Keras-layout shape, or, if None, by that shape itself."""
    shape = tuple(keras_shape)
    if fans is None:
        return fans_of(shape, "keras")
    try:
        inputs, outputs = fans
        if hasattr(inputs, "__index__") and hasattr(outputs, "__index__"):
            fan_in, fan_out = shape_of(fans)
            return fan_in, fan_out
        return fans_by_axes(shape, inputs, outputs)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`fans` must be (fan_in, fan_out), two ints that are not negative or two tuples of axes of the "
            f"Keras-layout shape {shape}; got {checks.short(fans)}."
        ) from error
