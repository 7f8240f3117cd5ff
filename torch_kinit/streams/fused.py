"""A Key's draws on accelerators: one launch of a Triton kernel for a tensor or a box of a DTensor."""

from __future__ import annotations

import functools
import textwrap
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks, torch_internals
from torch_kinit.numerics import threefry
from torch_kinit.streams.inverse import CENTRAL, InverseCdf
from torch_kinit.streams.pieces import joined_axes

_BLOCK = 1024  # values of a program; of 4 warps, 8 each thread
_MOST_AXES = 4  # that the kernel takes, after those that lie in one line are joined
DEVICES = ("cuda", "xpu")  # ROCm's are called cuda, too
_broken: set[str] = set()  # the types of devices on which Triton cannot build the kernel


def fill(tensor: Tensor, index: Tensor, key: threefry.Key, inverse: InverseCdf) -> bool:
    """Draw `tensor` in a kernel, at the flat indices that a view `index` tells; False leaves that to an eager draw."""
    if not _fits(tensor, inverse):
        return False
    try:
        launch(tensor.detach(), index, key, inverse)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of as many types as compilers have ways to fail
        _broken.add(tensor.device.type)
        reason = textwrap.shorten(str(error), 200)
        checks.warn(
            f"Triton cannot build the kernel of a Key's draws on {tensor.device.type} ({type(error).__name__}: "
            f"{reason}). Draws there take longer from now on; their values are the same."
        )
        return False
    return True


def _fits(tensor: Tensor, inverse: InverseCdf) -> bool:
    """Whether the kernel can fill `tensor`: one without a subclass, a mode or a transform before its memory."""
    return (
        tensor.device.type not in _broken
        and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and inverse.tail is None
        and inverse.scale != 0
        and not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch_internals.is_intercepted()
        and _kernels() is not None
    )


@functools.cache
def _kernels() -> Any:
    """The file of the kernels; None without Triton, which comes with torch's builds for accelerators."""
    try:
        from torch_kinit.streams import fused_kernels
    except ImportError:
        return None
    return fused_kernels


def launch(tensor: Tensor, index: Tensor, key: threefry.Key, inverse: InverseCdf) -> None:
    """Draw `tensor` in one launch; of more than four axes that nothing joins, in one for each index of the first."""
    axes = joined_axes(tensor, index)
    if len(axes) > _MOST_AXES:
        for part, where in zip(
            tensor.unbind(_longest_stride(tensor)), index.unbind(_longest_stride(tensor)), strict=True
        ):
            launch(part, where, key, inverse)
        return
    first, *others = axes
    missing = [(1, 0, 0)] * (_MOST_AXES - len(axes))
    sizes, to, at = zip(first, *others, *missing, strict=True)
    kernels = _kernels()
    normal = kernels.CENTRAL if inverse.largest <= CENTRAL else kernels.NORMAL
    law, count = normal if inverse.normal else kernels.UNIFORM, tensor.numel()
    with _current(tensor.device):
        kernels.draw[(-(-count // _BLOCK),)](
            tensor, count, int(index.storage_offset()), *map(threefry.signed, key), *sizes[1:], *to, *at,
            *inverse.numbers(), LAW=law.value, AXES=len(axes), BLOCK=_BLOCK, enable_fp_fusion=False,
        )  # fmt: skip


def _longest_stride(tensor: Tensor) -> int:
    return max(range(tensor.ndim), key=lambda axis: (tensor.shape[axis] > 1, tensor.stride(axis)))


def _current(device: torch.device) -> Any:
    """A context in which launches go to this device."""
    return torch.get_device_module(device).device(device) if device.type != "cpu" else torch.no_grad()
