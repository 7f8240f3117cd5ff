"""Draws on accelerators, of a Key or of Keras on JAX: a launch of a Triton kernel for a tensor or a box of a DTensor.

What the kernels cannot fill is left to whoever asks, with the same values: tensors behind a mode, a transform or a
subclass, and all of them where Triton is missing or its kernel cannot be built.
"""

from __future__ import annotations

import collections
import functools
import struct
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.numerics import threefry
from torch_kinit.streams import keras_jax
from torch_kinit.streams.inverse import CENTRAL, InverseCdf
from torch_kinit.streams.laws import Law, TruncatedNormal, Uniform
from torch_kinit.streams.pieces import is_plain, joined_axes, note_write

_BLOCK = 1024  # values of a program; of 4 warps, 8 each thread
_MOST_AXES = 4  # that the kernels take, after those that lie in one line are joined
_MOST_VALUES = 1 << 32  # of a launch: ROCm takes 2**32 threads at most, of which a program has 256
_MOST_NARROW = (1 << 32) - _BLOCK  # up to which positions are divided as 32-bit numbers, which is faster
_ATTEMPTS = 3  # failures in a row, without lack of memory, after which a kernel is not tried again
DEVICES = ("cuda", "xpu")  # ROCm's are called cuda, too
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_failures: collections.Counter[tuple[str, torch.dtype, str]] = collections.Counter()  # in a row
_warned: set[str] = set()  # of what was warned once


def fill(tensor: Tensor, index: Tensor, key: threefry.Key, inverse: InverseCdf) -> bool:
    """Draw `tensor` in a kernel, at the flat indices that a view `index` tells; False leaves that to an eager draw."""
    if inverse.scale == 0 or not _fits(tensor, (*_DTYPES, torch.float64)):
        return False
    law = "UNIFORM"
    if inverse.normal:
        law = "TAIL" if inverse.tail else "CENTRAL" if inverse.largest <= CENTRAL else "NORMAL"
    return _try_launch("draw", law, tensor, index, key, _numbers(inverse, tensor.dtype))


def fill_as_jax(tensor: Tensor, index: Tensor, key: threefry.Key, law: Law) -> bool:
    """Draw `tensor` likewise with the values of `keras_jax`; False leaves that to the CPU."""
    if not _fits(tensor, _DTYPES):
        return False
    kind = "UNIFORM" if isinstance(law, Uniform) else "TRUNCATED" if isinstance(law, TruncatedNormal) else "NORMAL"
    return _try_launch("draw_as_jax", f"JAX_{kind}", tensor, index, key, keras_jax.numbers(law, tensor.dtype))


def _fits(tensor: Tensor, dtypes: Sequence[torch.dtype]) -> bool:
    """Whether a kernel can fill `tensor`."""
    fits = tensor.device.type in DEVICES and tensor.dtype in dtypes and is_plain(tensor)
    return fits and _kernels() is not None


def _numbers(inverse: InverseCdf, dtype: torch.dtype) -> Sequence[float]:
    """What the kernel `draw` takes of an inverse CDF; of float64 the bits."""
    factor, *others = inverse.numbers()
    tail = inverse.tail
    others += [0.0] * 4 if tail is None else [tail.lower, tail.hazard, 2 * tail.slope, tail.hazard**2]
    if dtype != torch.float64:
        return [factor, *others]
    factor *= 2.0**-32 if inverse.normal else 1.0  # it is for 64 bits then
    return struct.unpack("=12q", struct.pack("=12d", factor, *others))


@functools.cache
def _kernels() -> Any:
    """The file of the kernels; None without Triton, which comes with torch's builds for accelerators."""
    # https://github.com/tensorflow/tensorflow/issues/124205: TensorFlow's LLVM takes the place of Triton's.
    if "tensorflow" in sys.modules and "triton" not in sys.modules:
        _warn_once(
            "tensorflow",
            "Triton crashes where it is imported after TensorFlow, so draws on accelerators go without its kernels: "
            "they take longer, and their values are the same. Import triton before tensorflow.",
        )
        return None
    try:
        import triton  # noqa: F401
    except ImportError:
        return None
    try:
        from torch_kinit.streams import fused_kernels
    except Exception as error:  # of a Triton that lacks what the kernels are made of
        _warn_once("kernels", _failure("Triton's kernels for draws cannot be loaded", error))
        return None
    return fused_kernels


def _try_launch(
    kernel: str, law: str, tensor: Tensor, index: Tensor, key: threefry.Key, numbers: Sequence[float]
) -> bool:
    """Launch a kernel and say whether that went well; one that fails time and again is not tried any more."""
    device, which = tensor.device.type, (tensor.device.type, tensor.dtype, law)
    if _failures[which] >= _ATTEMPTS:
        return False
    try:
        launch(kernel, law, tensor.detach(), index, key, numbers)
    except Exception as error:  # of as many types as compilers and drivers have ways to fail
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "out of memory" not in str(error):
            _failures[which] += 1
            _warn_once(device, _failure(f"Triton's kernel for draws on {device} cannot be built or launched", error))
        return False
    _failures[which] = 0
    note_write(tensor)
    return True


def _failure(what: str, error: Exception) -> str:
    reason = f"{type(error).__name__}: {textwrap.shorten(str(error), 200)}"
    return f"{what} ({reason}). Draws without it take longer; their values are the same."


def _warn_once(what: str, message: str) -> None:
    if what not in _warned:
        _warned.add(what)
        checks.warn(message)


def launch(kernel: str, law: str, tensor: Tensor, index: Tensor, key: threefry.Key, numbers: Sequence[float]) -> None:
    """Draw `tensor` in one launch; of more than four axes that nothing joins, in one for each index of the first."""
    axes = joined_axes(tensor, index)
    if len(axes) > _MOST_AXES:
        axis = _longest_stride(tensor)
        for part, where in zip(tensor.unbind(axis), index.unbind(axis), strict=True):
            launch(kernel, law, part, where, key, numbers)
        return
    first_axis, *others = axes
    missing = [(1, 0, 0)] * (_MOST_AXES - len(axes))
    sizes, to, at = zip(first_axis, *others, *missing, strict=True)
    count, kernels = tensor.numel(), _kernels()
    options = {
        "LAW": getattr(kernels, law).value,
        "AXES": 0 if count == 1 or (len(axes) == 1 and axes[0][1:] == (1, 1)) else len(axes),
        "NARROW": count <= _MOST_NARROW,
        "BLOCK": _BLOCK,
        "enable_fp_fusion": False,
    }
    run: Callable[..., Any] = getattr(kernels, kernel)
    with _current(tensor.device):
        for first in range(0, count, _MOST_VALUES):
            stop = min(count, first + _MOST_VALUES)
            run[(-(-(stop - first) // _BLOCK),)](  # type: ignore[index]
                tensor, first, stop, int(index.storage_offset()), *map(threefry.signed, key), *sizes[1:], *to, *at,
                *numbers, **options,
            )  # fmt: skip


def _longest_stride(tensor: Tensor) -> int:
    return max(range(tensor.ndim), key=lambda axis: (tensor.shape[axis] > 1, tensor.stride(axis)))


def _current(device: torch.device) -> Any:
    """A context in which launches go to this device."""
    return torch.get_device_module(device).device(device) if device.type != "cpu" else torch.no_grad()
