"""Draws on accelerators, of a Key or of Keras on JAX: a launch of a Triton kernel for a tensor or a box of a DTensor,
or, of a Key, for many small ones.

What the kernels cannot fill is left to whoever asks, with the same values: tensors behind a mode, a transform or a
subclass, and all of them where Triton is missing or its kernel cannot be built.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import struct
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.numerics import threefry
from torch_kinit.streams import keras_jax
from torch_kinit.streams.inverse import CENTRAL, InverseCdf
from torch_kinit.streams.laws import Law, TruncatedNormal, Uniform
from torch_kinit.streams.pieces import Axis, is_plain, joined_axes, note_write

_BLOCK = 1024  # values of a program; of 4 warps, 8 each thread
_MOST_AXES = 4  # that the kernels take, after those that lie in one line are joined
_MOST_VALUES = 1 << 32  # of a launch: ROCm takes 2**32 threads at most, of which a program has 256
_MOST_NARROW = (1 << 32) - _BLOCK  # up to which positions are divided as 32-bit numbers, which is faster
_FEW = 8  # views up to which a launch for each takes less time than to build one more kernel
_MOST_ROWS = 1 << 14  # of views drawn together, in a table of 2 to 4 MiB
_ATTEMPTS = 3  # failures in a row, without lack of memory, after which a kernel is not tried again
DEVICES = ("cuda", "xpu")  # ROCm's are called cuda, too
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_failures: collections.Counter[tuple[str, torch.dtype, str, str]] = collections.Counter()  # in a row
_warned: set[str] = set()  # of what was warned once


def fill(tensor: Tensor, index: Tensor, key: threefry.Key, inverse: InverseCdf) -> bool:
    """Draw `tensor` in a kernel, at the flat indices that a view `index` tells; False leaves that to an eager draw."""
    if inverse.scale == 0 or not _fits(tensor, (*_DTYPES, torch.float64)):
        return False
    law, numbers = _law(inverse), _numbers(inverse, tensor.dtype, tensor.dtype == torch.float64)
    return _launched("draw", law, [tensor], lambda: launch("draw", law, tensor.detach(), index, key, numbers))


def fill_as_jax(tensor: Tensor, index: Tensor, key: threefry.Key, law: Law) -> bool:
    """Draw `tensor` likewise with the values of `keras_jax`; False leaves that to the CPU."""
    if not _fits(tensor, _DTYPES):
        return False
    kind = "UNIFORM" if isinstance(law, Uniform) else "TRUNCATED" if isinstance(law, TruncatedNormal) else "NORMAL"
    kernel, numbers = ("draw_as_jax", f"JAX_{kind}"), keras_jax.numbers(law, tensor.dtype)
    return _launched(*kernel, [tensor], lambda: launch(*kernel, tensor.detach(), index, key, numbers))


class View(NamedTuple):
    """A tensor, or a box of a DTensor, to be drawn with others, as `fill` would draw it."""

    tensor: Tensor
    where: Tensor  # whose strides and offset tell the flat indices
    key: threefry.Key
    inverse: InverseCdf


def fits_together(tensor: Tensor) -> bool:
    """Whether a kernel can fill what this process holds of `tensor`, beside others."""
    return _fits(tensor, (*_DTYPES, torch.float64)) and not _is_capturing(tensor.device)


def fill_together(views: Sequence[View]) -> list[int]:
    """Draw small tensors in few launches; gives the places in `views` of those that are left to a draw of their own."""
    left, alike = [], collections.defaultdict[tuple[torch.device, torch.dtype, str, int], list[int]](list)
    for place, (tensor, index, _, inverse) in enumerate(views):
        axes = _axes(joined_axes(tensor, index))
        if inverse.scale == 0 or axes > _MOST_AXES:
            left.append(place)
        else:
            alike[tensor.device, tensor.dtype, _law(inverse), axes].append(place)
    for (*_, law, axes), places in alike.items():
        for first in range(0, len(places), _MOST_ROWS):
            some = places[first : first + _MOST_ROWS]
            group = [views[place] for place in some]
            go = functools.partial(_launch_together, law, axes, group)
            if len(some) <= _FEW or not _launched("draw_together", law, [view.tensor for view in group], go):
                left += some
    return left


def _is_capturing(device: torch.device) -> bool:
    """Whether launches are recorded in a graph, whose replays must not depend on a table in other memory."""
    asked = getattr(torch.get_device_module(device), "is_current_stream_capturing", None)
    return asked is not None and bool(asked())


def _law(inverse: InverseCdf) -> str:
    """What the kernels call it."""
    if not inverse.normal:
        return "UNIFORM"
    return "TAIL" if inverse.tail else "CENTRAL" if inverse.largest <= CENTRAL else "NORMAL"


def _fits(tensor: Tensor, dtypes: Sequence[torch.dtype]) -> bool:
    """Whether a kernel can fill `tensor`."""
    fits = tensor.device.type in DEVICES and tensor.dtype in dtypes and is_plain(tensor)
    return fits and _kernels() is not None


def _numbers(inverse: InverseCdf, dtype: torch.dtype, as_bits: bool) -> Sequence[float]:
    """What the kernels take of an inverse CDF, or the bits of that, as integers."""
    factor, *others = inverse.numbers()
    tail, wide = inverse.tail, dtype == torch.float64
    if wide and inverse.normal:
        factor *= 2.0**-32  # it is for 64 bits then
    others += [0.0] * 4 if tail is None else [tail.lower, tail.hazard, 2 * tail.slope, tail.hazard**2]
    numbers = [factor, *others]
    if not as_bits:
        return numbers
    return struct.unpack("=12q" if wide else "=12i", struct.pack("=12d" if wide else "=12f", *numbers))


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


def _launched(kernel: str, law: str, tensors: Sequence[Tensor], go: Callable[[], None]) -> bool:
    """Whether `go` could launch a kernel for tensors of a dtype; one that fails time and again is not tried again."""
    device = tensors[0].device.type
    which = (device, tensors[0].dtype, kernel, law)
    if _failures[which] >= _ATTEMPTS:
        return False
    try:
        go()
    except Exception as error:  # of as many types as compilers and drivers have ways to fail
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "out of memory" not in str(error):
            _failures[which] += 1
            _warn_once(device, _failure(f"Triton's kernel for draws on {device} cannot be built or launched", error))
        return False
    _failures[which] = 0
    for tensor in tensors:
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
    count, kernels = tensor.numel(), _kernels()
    options = {
        "LAW": getattr(kernels, law).value,
        "AXES": _axes(axes),
        "NARROW": count <= _MOST_NARROW,
        "BLOCK": _BLOCK,
        "enable_fp_fusion": False,
    }
    run: Callable[..., Any] = getattr(kernels, kernel)
    with _current(tensor.device):
        for first in range(0, count, _MOST_VALUES):
            stop = min(count, first + _MOST_VALUES)
            run[(-(-(stop - first) // _BLOCK),)](  # type: ignore[index]
                tensor, first, stop, int(index.storage_offset()), *map(threefry.signed, key), *_sizes_and_strides(axes),
                *numbers, **options,
            )  # fmt: skip


def _launch_together(law: str, axes: int, views: Sequence[View]) -> None:
    """Draw views of one device, dtype, law and number of axes in one launch."""
    first, rows, kernels = views[0].tensor, list[list[Any]](), _kernels()
    for tensor, index, key, inverse in views:
        numbers = _numbers(inverse, first.dtype, as_bits=True)
        row = [tensor.data_ptr(), tensor.numel(), int(index.storage_offset()), *key, *numbers]
        rows.append(row + _sizes_and_strides(joined_axes(tensor, index)) if axes else row)
    longest = max(tensor.numel() for tensor, *_ in views)
    with _current(first.device):
        kernels.draw_together[(len(rows), -(-longest // _BLOCK))](
            _sent([number for row in rows for number in row], first.device), first.detach(),
            LAW=getattr(kernels, law).value, AXES=axes, WIDTH=len(rows[0]), BLOCK=_BLOCK, enable_fp_fusion=False,
        )  # fmt: skip


def _sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """64-bit integers on a device, without waiting for what it does."""
    here = torch.frombuffer(bytearray(struct.pack(f"={len(numbers)}q", *numbers)), dtype=torch.int64)
    with contextlib.suppress(RuntimeError):  # where the system locks no memory
        here = here.pin_memory()
    return here.to(device, non_blocking=True)


def _axes(axes: Sequence[Axis]) -> int:
    """For how many axes a kernel is built: none where elements lie in one line in memory and in the whole."""
    lies_in_line = axes[0] == (1, 0, 0) or (len(axes) == 1 and axes[0][1:] == (1, 1))
    return 0 if lies_in_line else len(axes)


def _sizes_and_strides(axes: Sequence[Axis]) -> list[int]:
    """What the kernels take of up to four axes: the sizes but the first, the strides in memory, those in the whole."""
    sizes, to, at = zip(*axes, *[(1, 0, 0)] * (_MOST_AXES - len(axes)), strict=True)
    return [*sizes[1:], *to, *at]


def _longest_stride(tensor: Tensor) -> int:
    return max(range(tensor.ndim), key=lambda axis: (tensor.shape[axis] > 1, tensor.stride(axis)))


def _current(device: torch.device) -> Any:
    """A context in which launches go to this device."""
    return torch.get_device_module(device).device(device) if device.type != "cpu" else torch.no_grad()
