"""Keras' scaled initializers: one engine, variance_scaling_, and the six names built on it.

What their arguments share with every other initializer is said at the top of `plain`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from torch_kinit import checks
from torch_kinit.initializers.axes import keras_shape, resolve_fans
from torch_kinit.initializers.plain import draw_
from torch_kinit.streams.generator import AnyGenerator
from torch_kinit.streams.laws import Law, Normal, TruncatedNormal, Uniform

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
        tensor: the weight to fill, of any shape.
        scale: a finite number greater than 0.
        mode: "fan_in", "fan_out" or "fan_avg".
        distribution: "truncated_normal", "untruncated_normal" or "uniform".
        fans: `(fan_in, fan_out)` in place of those of the shape (see `fans`). Each is an int, or the axes *in
            Keras' layout* whose sizes are multiplied, as Keras 3.15's input_axes and output_axes.
        layout: the order of the axes, "torch" (out, in, *spatial) or "keras" (*spatial, in, out).
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

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
    used = resolve_fans(fans, keras_shape(tensor.shape, layout))
    return draw_(tensor, scaled_law(used, scale, mode, distribution), layout, generator)


def scaled_law(fans: tuple[int, int], scale: float, mode: str, distribution: str) -> Law:
    """The law of variance scaling for a weight of these fans."""
    scale = checks.spread("scale", scale)
    if scale == 0:
        raise ValueError("`scale` must be greater than 0, got 0; for zeros use zeros_.")
    checks.choice("mode", mode, MODES)
    if distribution == "normal":
        raise ValueError(AMBIGUOUS_NORMAL)
    checks.choice("distribution", distribution, DISTRIBUTIONS)
    fan_in, fan_out = fans
    variance = scale / max(1.0, {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode])
    if distribution == "uniform":
        limit = math.sqrt(3.0 * variance)
        return Uniform(-limit, limit)
    if distribution == "untruncated_normal":
        return Normal(0.0, math.sqrt(variance))
    return TruncatedNormal(0.0, math.sqrt(variance) / TRUNCATED_STD, -2.0, 2.0)


def lecun_normal_(
    tensor: Tensor, *, fans: Fans | None = None, layout: str = "torch", generator: AnyGenerator = None
) -> Tensor:
    """Fill `tensor` from a normal law truncated at two standard deviations, of variance 1 / fan_in.

    With s = sqrt(1 / fan_in) / 0.8796 the law is N(0, s**2) given that the value lies in [-2*s, 2*s].
    The factor makes up for what truncation takes away: the values' own standard deviation is
    sqrt(1 / fan_in), and none is larger than 2.274 / sqrt(fan_in).

    Args:
        tensor: the weight to fill, of any shape.
        fans: `(fan_in, fan_out)` in place of those of the shape: ints, or axes as in `variance_scaling_`.
        layout: the order of the axes, "torch" (out, in, *spatial) or "keras" (*spatial, in, out).
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

    Raises:
        ValueError, TypeError: as `variance_scaling_(tensor, 1.0, "fan_in", "truncated_normal")`, which this is.

    Example:
        >>> import torch
        >>> w = lecun_normal_(torch.empty(256, 400))
        >>> bool(abs(w.std() - 400**-0.5) < 1e-3)
        True

    Source: `keras.initializers.LecunNormal`; LeCun et al., "Efficient BackProp", 1998.
    """
    return variance_scaling_(tensor, 1.0, "fan_in", "truncated_normal", fans=fans, layout=layout, generator=generator)


def lecun_uniform_(
    tensor: Tensor, *, fans: Fans | None = None, layout: str = "torch", generator: AnyGenerator = None
) -> Tensor:
    """Fill `tensor` from the uniform law U[-a, a] with a = sqrt(3 / fan_in).

    The variance is a**2 / 3 = 1 / fan_in. No value lies outside [-a, a].

    Args:
        tensor: the weight to fill, of any shape.
        fans: `(fan_in, fan_out)` in place of those of the shape: ints, or axes as in `variance_scaling_`.
        layout: the order of the axes, "torch" (out, in, *spatial) or "keras" (*spatial, in, out).
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

    Raises:
        ValueError, TypeError: as `variance_scaling_(tensor, 1.0, "fan_in", "uniform")`, which this is.

    Example:
        >>> import torch
        >>> bool(lecun_uniform_(torch.empty(8, 300)).abs().max() <= 0.1)
        True

    Source: `keras.initializers.LecunUniform`; LeCun et al., "Efficient BackProp", 1998.
    """
    return variance_scaling_(tensor, 1.0, "fan_in", "uniform", fans=fans, layout=layout, generator=generator)


def glorot_normal_(
    tensor: Tensor, *, fans: Fans | None = None, layout: str = "torch", generator: AnyGenerator = None
) -> Tensor:
    """Fill `tensor` from a normal law truncated at two standard deviations, of variance 2 / (fan_in + fan_out).

    With s = sqrt(2 / (fan_in + fan_out)) / 0.8796 the law is N(0, s**2) given that the value lies in [-2*s, 2*s].
    The factor makes up for what truncation takes away: the values' own standard deviation is
    sqrt(2 / (fan_in + fan_out)), and none is larger than 3.216 / sqrt(fan_in + fan_out).

    Args:
        tensor: the weight to fill, of any shape.
        fans: `(fan_in, fan_out)` in place of those of the shape: ints, or axes as in `variance_scaling_`.
        layout: the order of the axes, "torch" (out, in, *spatial) or "keras" (*spatial, in, out).
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

    Raises:
        ValueError, TypeError: as `variance_scaling_(tensor, 1.0, "fan_avg", "truncated_normal")`, which this is.

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
    tensor: Tensor, *, fans: Fans | None = None, layout: str = "torch", generator: AnyGenerator = None
) -> Tensor:
    """Fill `tensor` from the uniform law U[-a, a] with a = sqrt(6 / (fan_in + fan_out)).

    The variance is a**2 / 3 = 2 / (fan_in + fan_out). No value lies outside [-a, a].

    Args:
        tensor: the weight to fill, of any shape.
        fans: `(fan_in, fan_out)` in place of those of the shape: ints, or axes as in `variance_scaling_`.
        layout: the order of the axes, "torch" (out, in, *spatial) or "keras" (*spatial, in, out).
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

    Raises:
        ValueError, TypeError: as `variance_scaling_(tensor, 1.0, "fan_avg", "uniform")`, which this is.

    Example:
        >>> import torch
        >>> bool(glorot_uniform_(torch.empty(200, 400)).abs().max() <= 0.1)
        True

    Source: `keras.initializers.GlorotUniform`; Glorot and Bengio, "Understanding the difficulty of training deep
    feedforward neural networks", 2010.
    """
    return variance_scaling_(tensor, 1.0, "fan_avg", "uniform", fans=fans, layout=layout, generator=generator)


def he_normal_(
    tensor: Tensor, *, fans: Fans | None = None, layout: str = "torch", generator: AnyGenerator = None
) -> Tensor:
    """Fill `tensor` from a normal law truncated at two standard deviations, of variance 2 / fan_in.

    With s = sqrt(2 / fan_in) / 0.8796 the law is N(0, s**2) given that the value lies in [-2*s, 2*s].
    The factor makes up for what truncation takes away: the values' own standard deviation is
    sqrt(2 / fan_in), and none is larger than 3.216 / sqrt(fan_in).

    Args:
        tensor: the weight to fill, of any shape.
        fans: `(fan_in, fan_out)` in place of those of the shape: ints, or axes as in `variance_scaling_`.
        layout: the order of the axes, "torch" (out, in, *spatial) or "keras" (*spatial, in, out).
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

    Raises:
        ValueError, TypeError: as `variance_scaling_(tensor, 2.0, "fan_in", "truncated_normal")`, which this is.

    Example:
        >>> import torch
        >>> w = he_normal_(torch.empty(100, 8, 10, 10))
        >>> bool(abs(w.std() - 0.05) < 1e-3)
        True

    Source: `keras.initializers.HeNormal`; He et al., "Delving Deep into Rectifiers", 2015.
    """
    return variance_scaling_(tensor, 2.0, "fan_in", "truncated_normal", fans=fans, layout=layout, generator=generator)


def he_uniform_(
    tensor: Tensor, *, fans: Fans | None = None, layout: str = "torch", generator: AnyGenerator = None
) -> Tensor:
    """Fill `tensor` from the uniform law U[-a, a] with a = sqrt(6 / fan_in).

    The variance is a**2 / 3 = 2 / fan_in. No value lies outside [-a, a].

    Args:
        tensor: the weight to fill, of any shape.
        fans: `(fan_in, fan_out)` in place of those of the shape: ints, or axes as in `variance_scaling_`.
        layout: the order of the axes, "torch" (out, in, *spatial) or "keras" (*spatial, in, out).
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

    Raises:
        ValueError, TypeError: as `variance_scaling_(tensor, 2.0, "fan_in", "uniform")`, which this is.

    Example:
        >>> import torch
        >>> bool(he_uniform_(torch.empty(8, 600)).abs().max() <= 0.1)
        True

    Source: `keras.initializers.HeUniform`; He et al., "Delving Deep into Rectifiers", 2015.
    """
    return variance_scaling_(tensor, 2.0, "fan_in", "uniform", fans=fans, layout=layout, generator=generator)
