"""Keras' plain initializers, in place: constants, uniform, normal and truncated normal of given numbers.

What these functions and those of `scaled` and `structured` share, said once:

* They fill `tensor` in place, without recording gradients, and return it. It may have any strided floating
  dtype, memory format and device; zero-size tensors and tensors on `meta` are left as they are.
* `layout` says how the axes of `tensor` are ordered: "torch", (out, in, *spatial), or "keras", (*spatial, in, out).
  To laws without fans it matters only for the numbers of a KerasSeed or Key, which go by index.
* `generator` is a torch.Generator on the tensor's device or on the CPU (then values are drawn there and
  copied), a Key or KerasSeed, or None for torch's global generator of the tensor's device. All but a
  torch.Generator can be traced by torch.compile(fullgraph=True): torch breaks the graph there (pytorch issues
  88576 and 93737).
* Wrong arguments raise a ValueError or TypeError that names them, and nothing is changed: NaN, a negative std,
  an unknown mode, an integer, complex, sparse or overlapping tensor, a generator of another accelerator.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.initializers.axes import LAYOUTS, in_layout, keras_view
from torch_kinit.shards import by_the_whole
from torch_kinit.streams.generator import AnyGenerator, source_for
from torch_kinit.streams.laws import Constant, Law, Normal, TruncatedNormal, Uniform
from torch_kinit.streams.source import Source


def draw_(tensor: Tensor, law: Law, layout: str, generator: AnyGenerator) -> Tensor:
    """Fill a tensor that can be filled from `law`: the one way from every initializer to every source."""
    checks.choice("layout", layout, LAYOUTS)
    source = source_for(generator, tensor)
    source.draw(in_layout(tensor, layout, source.layout), law)
    return tensor


def constant_(tensor: Tensor, value: Any = 0.0, *, layout: str = "torch") -> Tensor:
    """Fill `tensor` with `value`: a number, or an array that broadcasts to the tensor's shape in Keras' layout.

    Args:
        tensor: what to fill.
        value: a finite number; or a tensor, NumPy array or nested list of finite numbers.
        layout: the layout of `tensor`; matters only for an array.

    Raises:
        ValueError: `value` is not finite, does not fit in the dtype, or does not broadcast.

    Example:
        >>> import torch
        >>> constant_(torch.empty(2, 3), 0.5)
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
        >>> constant_(torch.empty(2, 3), [1.0, 2.0])                  # along Keras' last axis, the outputs
        tensor([[1., 1., 1.],
                [2., 2., 2.]])

    Source: `keras.initializers.Constant`.
    """
    checks.tensor(tensor)
    checks.choice("layout", layout, LAYOUTS)
    if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided):
        kind = "on the meta device and has no numbers to fill with" if value.is_meta else f"a {value.layout} tensor"
        raise ValueError(f"`value` is {kind}.")
    if hasattr(value, "__float__") and not getattr(value, "shape", ()):
        law = Constant(value.item() if hasattr(value, "item") else value)
        law.support(tensor.dtype)
        with torch.no_grad():
            return tensor.fill_(law.value)
    try:
        values = checks.array(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"`value` must be a number or an array of numbers, got {checks.short(value)}.") from None
    return _fill_with_array(tensor, values, layout)


@by_the_whole
def _fill_with_array(tensor: Tensor, values: Tensor, layout: str) -> Tensor:
    view = keras_view(tensor, layout)
    if values.is_complex() or not bool(torch.isfinite(values).all()):
        raise ValueError("`value` must be an array of finite real numbers.")
    if values.numel() and float(values.double().abs().max()) > torch.finfo(tensor.dtype).max:
        raise ValueError(f"`value` holds numbers that do not fit in {tensor.dtype}.")
    try:
        values = values.expand(view.shape)
    except RuntimeError:
        raise ValueError(
            f"`value` of shape {tuple(values.shape)} does not broadcast to the tensor's shape in Keras' layout, "
            f"{tuple(view.shape)}."
        ) from None
    with torch.no_grad():
        view.copy_(values)
    return tensor


@by_the_whole
def array_(tensor: Tensor, value: Any, *, layout: str = "torch") -> Tensor:
    """Fill `tensor` with an array of exactly its shape (in Keras' layout, if `layout` says so)."""
    shape, wanted = tuple(checks.array(value).shape), tuple(checks.tensor(tensor).shape)
    if shape != wanted:
        where = "the parameter's" if layout == "torch" else "Keras' variable's"
        raise ValueError(f"the array has shape {shape}, {where} is {wanted}.")
    return constant_(tensor, value, layout="keras")


def zeros_(tensor: Tensor) -> Tensor:
    """Fill `tensor` with zeros.

    Example:
        >>> import torch
        >>> zeros_(torch.ones(3))
        tensor([0., 0., 0.])

    Source: `keras.initializers.Zeros`.
    """
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill `tensor` with ones.

    Example:
        >>> import torch
        >>> ones_(torch.zeros(3))
        tensor([1., 1., 1.])

    Source: `keras.initializers.Ones`.
    """
    return constant_(tensor, 1.0)


def unit_forget_bias_(
    tensor: Tensor, others: Callable[..., object] | None = None, *, generator: AnyGenerator = None
) -> Tensor:
    """Fill an LSTM's bias of size 4n with 1 in the forget gate's block, `[n:2n]`, and 0 elsewhere.

    The gates are ordered input, forget, cell, output, in torch as in Keras. torch adds two biases; give this to
    one and zeros to the other, or the forget gate starts at 2.

    Args:
        tensor: what to fill.
        others: an in-place initializer for the other blocks in place of zeros. It is called twice, for the first block
            and for the last two, as Keras calls its `bias_initializer`.
        generator: what `others` draws from, as in `random_normal_`.

    Raises:
        ValueError: `tensor` is not a vector of a size divisible by four.

    Example:
        >>> import torch
        >>> unit_forget_bias_(torch.empty(8))
        tensor([0., 0., 1., 1., 0., 0., 0., 0.])

    Source: `unit_forget_bias=True` of `keras.layers.LSTM`; Jozefowicz et al., "An Empirical Exploration of
    Recurrent Network Architectures", 2015.
    """
    checks.tensor(tensor)
    if tensor.ndim != 1 or tensor.shape[0] % 4:
        raise ValueError(f"`tensor` must be a vector of four equal blocks, got shape {tuple(tensor.shape)}.")
    if others is not None and not callable(others):
        raise TypeError(f"`others` must be a function that fills a tensor, got {checks.short(others)}.")
    source = source_for(generator, tensor) if others is not None else None
    return _fill_gates(tensor, others, source)


@by_the_whole
def _fill_gates(tensor: Tensor, others: Callable[..., object] | None, source: Source | None) -> Tensor:
    units = tensor.shape[0] // 4
    with torch.no_grad():
        if others is None or source is None:
            tensor.zero_()
        else:
            takes = "generator" in inspect.signature(others).parameters
            for i, part in enumerate((tensor[:units], tensor[2 * units :])):
                others(part, **{"generator": source.for_block(i).argument} if takes else {})
        tensor[units : 2 * units].fill_(1.0)
    return tensor


def random_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 0.05, *, layout: str = "torch", generator: AnyGenerator = None
) -> Tensor:
    """Fill `tensor` from the normal law N(mean, std**2).

    Args:
        tensor: what to fill.
        mean: the mean.
        std: the standard deviation, 0 or more.
        layout: the axes' order, "torch" or "keras".
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

    Raises:
        ValueError: an argument is NaN, infinite or negative, or the law does not fit in the tensor's dtype.

    Example:
        >>> import torch
        >>> w = random_normal_(torch.empty(1000, 100), generator=torch.Generator().manual_seed(0))
        >>> bool(abs(w.std() - 0.05) < 0.001)
        True

    Source: `keras.initializers.RandomNormal`.
    """
    checks.tensor(tensor)
    return draw_(tensor, Normal(mean, std), layout, generator)


def random_uniform_(
    tensor: Tensor, low: float = -0.05, high: float = 0.05, *, layout: str = "torch", generator: AnyGenerator = None
) -> Tensor:
    """Fill `tensor` from the uniform law U[low, high].

    Args:
        tensor: what to fill.
        low: the least value.
        high: the greatest value, more than `low`.
        layout: the axes' order, "torch" or "keras".
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

    Raises:
        ValueError: an argument is not finite, `low >= high`, or no value of the dtype lies between them.

    Example:
        >>> import torch
        >>> w = random_uniform_(torch.empty(5, dtype=torch.bfloat16), 0.1, 0.3)
        >>> bool((w >= 0.1).all() and (w <= 0.3).all())
        True

    Source: `keras.initializers.RandomUniform`, whose minval and maxval these are.
    """
    checks.tensor(tensor)
    return draw_(tensor, Uniform(low, high), layout, generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 0.05,
    *,
    lower: float = -2.0,
    upper: float = 2.0,
    layout: str = "torch",
    generator: AnyGenerator = None,
) -> Tensor:
    """Fill `tensor` from N(mean, std**2) conditioned on `mean + lower*std <= x <= mean + upper*std`.

    `std` is the standard deviation before truncation, as in Keras: at two, that of the values is 0.8796 * std.
    `lower` and `upper` count standard deviations, where torch.nn.init's `a` and `b` are absolute; they are
    keyword-only so that a call written for torch fails loudly.

    Args:
        tensor: what to fill.
        mean: the mean before truncation.
        std: the standard deviation before truncation, 0 or more.
        lower: the lower bound in standard deviations from the mean; -inf for none.
        upper: the upper bound likewise, more than `lower`. Both may lie far out in one tail.
        layout: the axes' order, "torch" or "keras".
        generator: a torch.Generator of the tensor's device or the CPU; a `Key` or `KerasSeed`; or None for torch's own.

    Raises:
        ValueError: an argument is NaN or negative, `lower >= upper`, or the law does not fit in the dtype.

    Example:
        >>> import torch
        >>> w = trunc_normal_(torch.empty(1000, 100), std=0.5)
        >>> bool(w.abs().max() <= 1.0)
        True
        >>> tail = trunc_normal_(torch.empty(1000), std=1.0, lower=8, upper=float("inf"))
        >>> bool((tail >= 8).all() and (tail < 11).all())
        True

    Source: `keras.initializers.TruncatedNormal`. Keras' torch backend leaks: 4 values in a million fall outside
    the bounds; here none does.
    """
    checks.tensor(tensor)
    return draw_(tensor, TruncatedNormal(mean, std, lower, upper), layout, generator)
