"""Cutting tensors into pieces that are small enough to draw at a time: the one place where that is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Values drawn at a time from a Key or KerasSeed. A draw is a hundred short passes over a piece: in smaller pieces their
# dispatch counts, in larger ones they leave the caches. torch shares out passes of 2**15 values or more among threads.
CHUNK = 1 << 18


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


def fill_flat(
    tensor: Tensor,
    draw: Callable[[Tensor, int], object],
    chunk: int = CHUNK,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Call `draw(out, start)` for pieces of `tensor`; it fills `out`, contiguous, with the values from `start` on.

    Pieces go in row-major order and begin at multiples of `chunk`. The last one has at least 16 values, if all together
    are as many, since torch's generators make normal values in groups of 16. `out` has the given dtype (None for the
    tensor's) and device; it is the tensor's own memory, where that has both and is contiguous.
    """
    total = tensor.numel()
    if total == 0 or tensor.is_meta:
        return tensor
    dtype = dtype or tensor.dtype
    with torch.no_grad():
        direct = tensor.dtype == dtype and tensor.device.type == torch.device(device).type and tensor.is_contiguous()
        flat = tensor.view(-1) if direct else None
        starts = [start for start in range(0, total, chunk) if start == 0 or total - start >= 16]
        for start, stop in zip(starts, [*starts[1:], total], strict=True):
            if flat is not None:
                draw(flat[start:stop], start)
            else:
                out = torch.empty(stop - start, dtype=dtype, device=device)
                draw(out, start)
                _write(tensor, start, out)
                del out  # before the next one is made
    return tensor


def _write(tensor: Tensor, start: int, values: Tensor) -> None:
    """Write `values` at the row-major positions start, start + 1, ... of `tensor`."""
    count = values.numel()
    if tensor.is_contiguous():
        tensor.view(-1)[start : start + count].copy_(values)
        return
    if tensor.ndim < 2:
        tensor[start : start + count].copy_(values)
        return
    row = tensor[0].numel()
    while count:
        index, offset = divmod(start, row)
        if offset == 0 and count >= row:
            rows = count // row
            taken = rows * row
            tensor[index : index + rows].copy_(values[:taken].view(rows, *tensor.shape[1:]))
        else:
            taken = min(row - offset, count)
            _write(tensor[index], offset, values[:taken])
        start, count, values = start + taken, count - taken, values[taken:]
