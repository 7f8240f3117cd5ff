"""Cutting tensors into pieces that are small enough to draw at a time: the one place where that is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from torch_kinit import shards, torch_internals

# Values drawn at a time from a Key or KerasSeed. A draw is a hundred short passes over a piece: in smaller pieces their
# dispatch counts, in larger ones they leave the caches.
CHUNK = 1 << 18
SERIAL = 1 << 15  # up to which torch does not share a pass among threads
_MANY = 8  # pieces from which on it pays to try which way is the faster
_ASYNCHRONOUS = ("cuda", "xpu")  # to which page-locked memory is copied in its own time
_MOST_LOCKED = 16 << 20  # bytes of page-locked memory for pieces that are copied

Piece = TypeVar("Piece")


def paced(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, bool]]:
    """Each piece of a draw, and whether to draw it serially, in parts of `SERIAL` values.

    All threads have to finish each of a piece's hundred passes. On two cores that nobody else uses that takes half the
    time of one thread; on cores that others use, up to ten times as long. So both ways are tried, and the faster kept.
    """
    waiting = list(pieces)
    many = len(waiting) >= _MANY and torch.get_num_threads() > 1
    trials = [True, False, True] if many else [True]  # the first piece may wait for memory
    seconds: dict[bool, float] = {}
    for i, piece in enumerate(waiting):
        serial = trials[i] if i < len(trials) else min(seconds, key=seconds.__getitem__)
        start = time.perf_counter()
        yield piece, serial
        seconds[serial] = time.perf_counter() - start


def views(tensors: tuple[Tensor, ...], limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Views of at most `limit` values of tensors of one shape, cut alike, in row-major order."""
    first = tensors[0]
    if first.numel() <= limit:
        if first.numel():
            yield tensors
        return
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors, axis = tuple(tensor.view(-1) for tensor in tensors), 0
    else:
        axis = next(d for d in range(first.ndim) if first.shape[d] > 1)
    size = tensors[0].shape[axis]
    most = max(1, limit * size // first.numel())
    rows = -(-size // -(-size // most))  # as many pieces, of nearly one size, so that none is tiny
    for start in range(0, size, rows):
        length = min(rows, size - start)
        yield from views(tuple(tensor.narrow(axis, start, length) for tensor in tensors), limit)


def is_plain(tensor: Tensor) -> bool:
    """Whether a kernel may write to the memory of `tensor`: no subclass, mode, transform or sign stands before it."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch_internals.is_intercepted()
        and not tensor.is_neg()
        and not any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    )


def note_write(tensor: Tensor) -> None:
    """Tell autograd that a kernel has written to `tensor`."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def span(index: Tensor) -> int:
    """How far the last element of a view lies behind its first one, in elements."""
    return sum((size - 1) * stride for size, stride in zip(index.shape, index.stride(), strict=True))


Axis = tuple[int, int, int]  # its length, and its strides in the tensor and in the whole


def joined_axes(tensor: Tensor, index: Tensor) -> list[Axis]:
    """The axes of a tensor in the order of its memory, joined where they lie in one line in it and in the whole."""
    found = zip(tensor.shape, tensor.stride(), index.stride(), strict=True)
    ordered = sorted((axis for axis in found if axis[0] > 1), key=lambda axis: axis[1:], reverse=True)
    axes: list[Axis] = []
    for size, to, at in ordered:
        if axes and axes[-1][1:] == (size * to, size * at):
            axes[-1] = (axes[-1][0] * size, to, at)
        else:
            axes.append((size, to, at))
    return axes or [(1, 0, 0)]


def flat_indices(index: Tensor, device: torch.device) -> Tensor:
    """For each element of a view how far it lies behind the first one."""
    flat = torch.zeros((), dtype=torch.int32 if span(index) < 2**31 else torch.int64, device=device)
    for size, stride in zip(index.shape, index.stride(), strict=True):
        flat = flat.unsqueeze(-1) + torch.arange(size, dtype=flat.dtype, device=device) * stride
    return flat


def fill_flat(
    tensor: Tensor,
    draw: Callable[[Tensor, int], object],
    chunk: int = CHUNK,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    divisible: bool = True,
) -> Tensor:
    """Call `draw(out, start)` for pieces of `tensor`; it fills `out`, contiguous, with the values from `start` on.

    Pieces go in row-major order and begin at multiples of `chunk`. The last one has at least 16 values, if all together
    are as many, since torch's generators make normal values in groups of 16. `out` has the given dtype (None for the
    tensor's) and device; it is the tensor's own memory, where that has both and is contiguous. Of a `divisible` draw
    any part can be drawn by itself. Of a DTensor this process keeps its part of each piece, and draws no piece that it
    needs not. What the CPU draws for a tensor on CUDA or XPU is copied while the next piece is drawn; beside the tensor
    there are one or two pieces at a time, whatever its size.
    """
    if tensor.numel() == 0 or tensor.is_meta:
        return tensor
    dtype = dtype or tensor.dtype
    with torch.no_grad():
        here, boxes = _lies_on(tensor, torch.device(device)), _boxes(tensor)
        whole = here and boxes is None and tensor.dtype == dtype and tensor.is_contiguous()
        flat = tensor.view(-1) if whole else None
        pieces = _cut(tensor.numel(), chunk)
        if boxes is not None:
            pieces = _needed(pieces, [index for _, index in boxes], divisible)
        crosses = not here and len(pieces) > 1 and tensor.device.type in _ASYNCHRONOUS
        crossing = _Crossing.to(tensor.device, chunk + 15, tensor.dtype) if crosses else None
        for (start, stop), serial in paced(pieces):
            if flat is not None:
                out = flat[start:stop]
            elif crossing is not None and tensor.dtype == dtype:
                out = crossing.room(stop - start)
            else:
                out = torch.empty(stop - start, dtype=dtype, device=device)
            step = SERIAL if serial and divisible else out.numel()
            for first in range(0, out.numel(), step):
                draw(out[first : first + step], start + first)
            if flat is not None:
                continue
            if crossing is not None and tensor.dtype != dtype:
                out = crossing.room(stop - start).copy_(out)
            if boxes is None:
                _write(tensor, start, out, crossing is not None)
            else:
                for mine, index in boxes:
                    _write_box(mine, index, start, out, crossing is not None)
            if crossing is not None:
                crossing.leave()
            del out  # before the next one is made
    return tensor


def _lies_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type


def _boxes(tensor: Tensor) -> list[tuple[Tensor, Tensor]] | None:
    """What this process holds of a DTensor, with views that tell the flat indices; None of another tensor."""
    if not shards.is_distributed(tensor):
        return None
    return [box for box in shards.boxes(tensor, torch.empty(tensor.shape, device="meta")) if box[0].numel()]


def _cut(total: int, chunk: int) -> list[tuple[int, int]]:
    """Where the pieces of so many values begin and end."""
    starts = [start for start in range(0, total, chunk) if start == 0 or total - start >= 16]
    return list(zip(starts, [*starts[1:], total], strict=True))


def _needed(pieces: list[tuple[int, int]], held: list[Tensor], divisible: bool) -> list[tuple[int, int]]:
    """The pieces that have elements between the first and the last of a box, or must be drawn before such a one."""
    ends = [(int(index.storage_offset()), int(index.storage_offset()) + span(index)) for index in held]
    needed = [i for i, (start, stop) in enumerate(pieces) if any(a < stop and start <= b for a, b in ends)]
    if needed and not divisible:
        return pieces[: needed[-1] + 1]
    return [pieces[i] for i in needed]


class _Crossing:
    """Page-locked memory from which pieces are copied to an accelerator, one while the other is drawn."""

    def __init__(self, device: torch.device, rooms: list[Tensor]) -> None:
        module = torch.get_device_module(device)
        self._stream, self._rooms = module.current_stream(device), rooms
        self._left = [module.Event() for _ in rooms]
        self._turn = 0

    @classmethod
    def to(cls, device: torch.device, size: int, dtype: torch.dtype) -> _Crossing | None:
        """For pieces of at most `size` values; None where the system locks no memory."""
        rooms = 2 if 2 * size * dtype.itemsize <= _MOST_LOCKED else 1
        try:
            return cls(device, [_locked(size, dtype) for _ in range(rooms)])
        except RuntimeError:
            return None

    def room(self, count: int) -> Tensor:
        """Memory for the next piece, out of which the one before has been copied."""
        self._left[self._turn].synchronize()  # at once where nothing has been recorded yet
        return self._rooms[self._turn][:count]

    def leave(self) -> None:
        """Note that the piece's copies are under way."""
        self._left[self._turn].record(self._stream)
        self._turn = (self._turn + 1) % len(self._rooms)


def _locked(size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device="cpu", pin_memory=True)


def _write_box(mine: Tensor, index: Tensor, start: int, values: Tensor, non_blocking: bool) -> None:
    """Write to a box those of the whole's values from the row-major position `start` on that lie in it.

    `index` is a view of a contiguous tensor of the whole's shape, which tells the positions of the box.
    """
    first, stop = int(index.storage_offset()), start + values.numel()
    last = first + span(index)
    if last < start or first >= stop:
        return
    if index.is_contiguous():
        begin, end = max(start, first), min(stop, last + 1)
        _write(mine, begin - first, values[begin - start : end - start], non_blocking)
    elif start <= first and last < stop:
        mine.copy_(values.as_strided(index.shape, index.stride(), values.storage_offset() + first - start))
    else:  # rows of which all lies among the values, and one before and after them
        axis = next(axis for axis, size in enumerate(index.shape) if size > 1)
        stride, inner = index.stride(axis), span(index.select(axis, 0))
        low = max(0, -(-(start - first) // stride))
        high = max(low, min(index.shape[axis], (stop - 1 - inner - first) // stride + 1))
        rows = [(mine.narrow(axis, low, high - low), index.narrow(axis, low, high - low))] if high > low else []
        rows += [(mine.select(axis, i), index.select(axis, i)) for i in (low - 1, high) if 0 <= i < index.shape[axis]]
        for row in rows:
            _write_box(*row, start, values, non_blocking)


def _write(tensor: Tensor, start: int, values: Tensor, non_blocking: bool = False) -> None:
    """Write `values` at the row-major positions start, start + 1, ... of `tensor`."""
    count = values.numel()
    if tensor.is_contiguous():
        tensor.view(-1)[start : start + count].copy_(values, non_blocking)
        return
    if tensor.ndim < 2:
        tensor[start : start + count].copy_(values, non_blocking)
        return
    row = tensor[0].numel()
    while count:
        index, offset = divmod(start, row)
        if offset == 0 and count >= row:
            rows = count // row
            taken = rows * row
            tensor[index : index + rows].copy_(values[:taken].view(rows, *tensor.shape[1:]), non_blocking)
        else:
            taken = min(row - offset, count)
            _write(tensor[index], offset, values[:taken], non_blocking)
        start, count, values = start + taken, count - taken, values[taken:]
