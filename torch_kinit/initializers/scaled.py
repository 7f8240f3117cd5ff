"""Keras' scaled initializers: one engine, variance_scaling_, and the six names built on it.

What their arguments share with every other initializer is said at the top of `_elementary`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from torch_kinit import checks
from torch_kinit.initializers.axes import LAYOUTS, fans_by_axes, fans_of, shape_of
from torch_kinit.initializers.plain import in_order
from torch_kinit.streams import draw
from torch_kinit.streams.stream import AnyGenerator, source

Fans = tuple[int | Iterable[int], int | Iterable[int]]

# The standard deviation of a standard normal truncated at two: scipy.stats.truncnorm.std(-2, 2), with Keras' digits.
TRUNCATED_STD = 0.87962566103423978

MODES = ("fan_in", "fan_out", "fan_avg")
DISTRIBUTIONS = ("truncated_normal", "untruncated_normal", "uniform")
AMBIGUOUS_NORMAL = (
    "`distribution`='normal' means a truncated normal in Keras and an untruncated one elsewhere; "
    "write 'truncated_normal' or 'untruncated_normal'."
)


def variance_scaling_(
    tensor: Tensor,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "truncated_normal",
    *,
    fans: Fans | None = None,
    layout: str = "torch",
    generator: AnyGenerator = None,
) -> Tensor:
    """Fill `tensor` with values of mean 0 and variance scale / n, with n set by the layer's fans.

    n is `fan_in`, `fan_out` or, for "fan_avg", their mean; never less than 1. With s = scale / n the law is
    "truncated_normal", N(0, s / 0.8796**2) truncated at two of its standard deviations, so that the values'
    own variance is s; "untruncated_normal", N(0, s); or "uniform", U[-sqrt(3*s), sqrt(3*s)].

    Args:
        tensor: what to fill.
        scale: a finite number greater than 0.
        mode: "fan_in", "fan_out" or "fan_avg".
        distribution: "truncated_normal", "untruncated_normal" or "uniform".
        fans: `(fan_in, fan_out)` in place of those of the shape (see `fans`). Each is an int, or the axes *in
            Keras' layout* whose sizes are multiplied, as Keras 3.15's input_axes and output_axes.
        layout: the axes' order, "torch" or "keras".
        generator: a torch.Generator of the tensor's device or the CPU; a Key or KerasSeed; or None for torch's own.
            torch.compile with fullgraph=True takes only None: torch breaks the graph at a Generator (pytorch 93737).

    Raises:
        ValueError: `scale` is not positive and finite; an unknown `mode`, `distribution` or `layout`; `fans` that
            are not a pair. The bare word "normal" is refused: Keras means the truncated law by it, everyone
            else the untruncated.

    Example:
        >>> import torch
        >>> w = variance_scaling_(torch.empty(64, 32, 3, 3), 2.0, "fan_out", "uniform")
        >>> bool(w.abs().max() <= (6 / (64 * 9)) ** 0.5)
        True

    Source: `keras.initializers.VarianceScaling`.
    """
    checks.tensor(tensor)
    scale = checks.spread("scale", scale)
    if scale == 0:
        raise ValueError("`scale` must be greater than 0, got 0; for zeros use zeros_.")
    checks.choice("mode", mode, MODES)
    if distribution == "normal":
        raise ValueError(AMBIGUOUS_NORMAL)
    checks.choice("distribution", distribution, DISTRIBUTIONS)
    checks.choice("layout", layout, LAYOUTS)
    generator = source(generator, tensor)
    variance = scaled_variance(resolve_fans(fans, _keras_shape(tensor, layout)), scale, mode)
    ordered = in_order(tensor, layout, generator)
    if distribution == "uniform":
        limit = math.sqrt(3.0 * variance)
        draw.uniform_(ordered, -limit, limit, generator)
    elif distribution == "untruncated_normal":
        draw.normal_(ordered, 0.0, math.sqrt(variance), generator)
    else:
        draw.trunc_normal_(ordered, 0.0, math.sqrt(variance) / TRUNCATED_STD, -2.0, 2.0, generator)
    return tensor


def _keras_shape(tensor: Tensor, layout: str) -> tuple[int, ...]:
    """The global shape, in Keras' order; no view of a DTensor is made."""
    shape = tuple(tensor.shape)
    return shape if layout == "keras" or len(shape) < 2 else (*shape[2:], shape[1], shape[0])


def scaled_variance(fans: tuple[int, int], scale: float, mode: str) -> float:
    """The variance that variance scaling aims at."""
    fan_in, fan_out = fans
    n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    return scale / max(1.0, n)


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
            f"Keras-layout shape {shape}; got {fans!r}."
        ) from error


def lecun_normal_(
    tensor: Tensor,
    *,
    fans: Fans | None = None,
    layout: str = "torch",
    generator: AnyGenerator = None,
) -> Tensor:
    """Fill `tensor` from a normal truncated at two, with variance 1 / fan_in.

    Args and Raises: as `variance_scaling_(tensor, 1.0, "fan_in", "truncated_normal")`, which this is.

    Example:
        >>> import torch
        >>> w = lecun_normal_(torch.empty(256, 400))
        >>> bool(abs(w.std() - 400**-0.5) < 1e-3)
        True

    Source: `keras.initializers.LecunNormal`; LeCun et al., "Efficient BackProp", 1998.
    """
    return variance_scaling_(tensor, 1.0, "fan_in", "truncated_normal", fans=fans, layout=layout, generator=generator)


def lecun_uniform_(
    tensor: Tensor,
    *,
    fans: Fans | None = None,
    layout: str = "torch",
    generator: AnyGenerator = None,
) -> Tensor:
    """Fill `tensor` from U[-a, a] with a = sqrt(3 / fan_in).

    Args and Raises: as `variance_scaling_(tensor, 1.0, "fan_in", "uniform")`, which this is.

    Example:
        >>> import torch
        >>> bool(lecun_uniform_(torch.empty(8, 300)).abs().max() <= 0.1)
        True

    Source: `keras.initializers.LecunUniform`; LeCun et al., "Efficient BackProp", 1998.
    """
    return variance_scaling_(tensor, 1.0, "fan_in", "uniform", fans=fans, layout=layout, generator=generator)


def glorot_normal_(
    tensor: Tensor,
    *,
    fans: Fans | None = None,
    layout: str = "torch",
    generator: AnyGenerator = None,
) -> Tensor:
    """Fill `tensor` from a normal truncated at two, with variance 2 / (fan_in + fan_out).

    Args and Raises: as `variance_scaling_(tensor, 1.0, "fan_avg", "truncated_normal")`, which this is.

    Example:
        >>> import torch
        >>> w = glorot_normal_(torch.empty(300, 500))
        >>> bool(abs(w.std() - 0.05) < 1e-3)
        True

    Source: `keras.initializers.GlorotNormal`; Glorot and Bengio, "Understanding the difficulty of training deep
    feedforward neural networks", 2010.
    """
    return variance_scaling_(tensor, 1.0, "fan_avg", "truncated_normal", fans=fans, layout=layout, generator=generator)


def glorot_uniform_(
    tensor: Tensor,
    *,
    fans: Fans | None = None,
    layout: str = "torch",
    generator: AnyGenerator = None,
) -> Tensor:
    """Fill `tensor` from U[-a, a] with a = sqrt(6 / (fan_in + fan_out)).

    Args and Raises: as `variance_scaling_(tensor, 1.0, "fan_avg", "uniform")`, which this is.

    Example:
        >>> import torch
        >>> bool(glorot_uniform_(torch.empty(200, 400)).abs().max() <= 0.1)
        True

    Source: `keras.initializers.GlorotUniform`; Glorot and Bengio, "Understanding the difficulty of training deep
    feedforward neural networks", 2010.
    """
    return variance_scaling_(tensor, 1.0, "fan_avg", "uniform", fans=fans, layout=layout, generator=generator)


def he_normal_(
    tensor: Tensor,
    *,
    fans: Fans | None = None,
    layout: str = "torch",
    generator: AnyGenerator = None,
) -> Tensor:
    """Fill `tensor` from a normal truncated at two, with variance 2 / fan_in.

    Args and Raises: as `variance_scaling_(tensor, 2.0, "fan_in", "truncated_normal")`, which this is.

    Example:
        >>> import torch
        >>> w = he_normal_(torch.empty(100, 8, 10, 10))
        >>> bool(abs(w.std() - 0.05) < 1e-3)
        True

    Source: `keras.initializers.HeNormal`; He et al., "Delving Deep into Rectifiers", 2015.
    """
    return variance_scaling_(tensor, 2.0, "fan_in", "truncated_normal", fans=fans, layout=layout, generator=generator)


def he_uniform_(
    tensor: Tensor,
    *,
    fans: Fans | None = None,
    layout: str = "torch",
    generator: AnyGenerator = None,
) -> Tensor:
    """Fill `tensor` from U[-a, a] with a = sqrt(6 / fan_in).

    Args and Raises: as `variance_scaling_(tensor, 2.0, "fan_in", "uniform")`, which this is.

    Example:
        >>> import torch
        >>> bool(he_uniform_(torch.empty(8, 600)).abs().max() <= 0.1)
        True

    Source: `keras.initializers.HeUniform`; He et al., "Delving Deep into Rectifiers", 2015.
    """
    return variance_scaling_(tensor, 2.0, "fan_in", "uniform", fans=fans, layout=layout, generator=generator)
