"""Streams of random numbers other than torch's own, one file each.

A stream's functions fill `out`, a contiguous one-dimensional tensor of float16, bfloat16, float32 or float64 on the
CPU, with the values that stand at the flat indices start, start + 1, ... of the stream that a key or seed names.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from torch_kinit.shards import is_distributed

# Values drawn at a time: fewer let the dispatch of a hundred operations count, more leave the caches.
CHUNK = 1 << 17
_LONG = 16  # pieces from which on it pays to try how many threads are the fastest

Piece = TypeVar("Piece")

Draw = Callable[[Tensor, int], None]


class Stream(ABC):
    """A source of numbers that stands in for a torch.Generator: each value depends on its index in the tensor alone.

    `tensor` may have any strides; its row-major order is the stream's, once its axes are ordered as `layout` says. The
    arguments are checked already.
    """

    layout = "keras"
    indexed = False  # whether it can draw any part of a tensor by itself, as DTensors need

    @abstractmethod
    def uniform_(self, tensor: Tensor, low: float, high: float) -> Tensor:
        """Fill `tensor` from U[low, high]."""

    @abstractmethod
    def normal_(self, tensor: Tensor, mean: float, std: float) -> Tensor:
        """Fill `tensor` from N(mean, std**2)."""

    @abstractmethod
    def trunc_normal_(self, tensor: Tensor, mean: float, std: float, lower: float, upper: float) -> Tensor:
        """Fill `tensor` from N(mean, std**2) given that it is `lower` to `upper` standard deviations from the mean."""

    @property
    @abstractmethod
    def native_seed(self) -> int:
        """A seed for a torch.Generator, where values must come from one."""

    @property
    @abstractmethod
    def double_qr(self) -> bool:
        """Whether an orthogonal matrix is made of the normal values in float64, whatever the tensor's dtype."""

    def child(self, index: int) -> Stream:
        """The stream for the `index`-th of several draws of one initializer for one tensor: here the same for each."""
        return self

    def part(self, start: int, total: int) -> Stream:
        """The same stream for a tensor that holds the values from flat index `start` on of a variable of `total`."""
        return _Part(self, start, total)


AnyGenerator = torch.Generator | Stream | None


class _Part(Stream):
    """A stretch of another stream, which draws the whole and keeps that: for biases, which are short."""

    def __init__(self, whole: Stream, start: int, total: int) -> None:
        self._whole, self._start, self._total = whole, start, total

    @property
    def native_seed(self) -> int:
        return self._whole.native_seed

    @property
    def double_qr(self) -> bool:
        return self._whole.double_qr

    def uniform_(self, tensor: Tensor, low: float, high: float) -> Tensor:
        return self._take(tensor, self._whole.uniform_, low, high)

    def normal_(self, tensor: Tensor, mean: float, std: float) -> Tensor:
        return self._take(tensor, self._whole.normal_, mean, std)

    def trunc_normal_(self, tensor: Tensor, mean: float, std: float, lower: float, upper: float) -> Tensor:
        return self._take(tensor, self._whole.trunc_normal_, mean, std, lower, upper)

    def _take(self, tensor: Tensor, draw: Callable[..., Tensor], *law: float) -> Tensor:
        device = tensor.device if tensor.is_meta else "cpu"
        values = draw(torch.empty(self._total, dtype=tensor.dtype, device=device), *law)
        return tensor.copy_(values[self._start : self._start + tensor.numel()].view(tensor.shape))


def check_generator(value: object, device: torch.device) -> AnyGenerator:
    """`value` if it can draw for a tensor on `device`: none, a Stream, a generator of that device, or a CPU one."""
    if value is None or isinstance(value, Stream):
        return value
    if not isinstance(value, torch.Generator):
        raise TypeError(
            f"`generator` must be a torch.Generator, a Key, a KerasSeed or None, got {value!r}.{_seed(value)}"
        )
    same = value.device.type == device.type and (None in (value.device.index, device.index) or value.device == device)
    if not same and value.device.type != "cpu" and device.type != "meta":
        raise ValueError(
            f"`generator` is on {value.device} and the tensor on {device}; "
            "pass a generator of the tensor's device, or a CPU one."
        )
    return value


def source(value: object, tensor: Tensor) -> AnyGenerator:
    """`value` if it can draw for `tensor`; for a DTensor only a Stream can."""
    found = check_generator(value, tensor.device)
    if is_distributed(tensor) and not isinstance(found, Stream):
        raise ValueError(
            "`tensor` is a DTensor, which torch's generators fill with values that depend on how it is sharded, or "
            f"with the same on each process; pass generator=Key(seed), equal on all, not {value!r}."
        )
    return found


def _seed(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f" For a seed, pass torch.Generator().manual_seed({value}) or Key({value})."
    return ""


@contextmanager
def one_thread() -> Generator[int]:
    """Let torch work in this thread alone; gives the number of threads it has otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def in_good_time(pieces: Iterable[Piece]) -> Generator[Piece]:
    """Yield the pieces of a draw, each to be drawn with one thread or all of torch's, as takes the least time.

    A draw is a hundred short operations, each of which all threads have to finish: on two cores that nobody else uses
    it is twice as fast with two threads, and on cores that others use up to ten times slower. So both are tried.
    """
    waiting = list(pieces)
    with one_thread() as most:
        trials = [1, most, 1] if most > 1 and len(waiting) >= _LONG else [1]  # the first piece may wait for memory
        seconds: dict[int, float] = {}
        for i, piece in enumerate(waiting):
            threads = trials[i] if i < len(trials) else min(seconds, key=seconds.__getitem__)
            torch.set_num_threads(threads)
            start = time.perf_counter()
            yield piece
            seconds[threads] = time.perf_counter() - start


def fill(tensor: Tensor, draw: Draw, chunk: int = CHUNK) -> Tensor:
    """Call `draw(out, start)` for pieces of `tensor`, in row-major order; it fills `out` with the values from start on.

    Pieces begin at multiples of `chunk`; the last one has at least 16 values, if all together are as many, since
    torch's own generators make them in groups of 16.
    """
    total = tensor.numel()
    if total == 0 or tensor.device.type == "meta":
        return tensor
    direct = tensor.is_contiguous() and tensor.device.type == "cpu"
    starts = [start for start in range(0, total, chunk) if start == 0 or total - start >= 16]
    with torch.no_grad(), closing(in_good_time(zip(starts, [*starts[1:], total], strict=True))) as pieces:
        flat = tensor.view(-1) if direct else None
        for start, stop in pieces:
            if flat is not None:
                draw(flat[start:stop], start)
            else:
                out = torch.empty(stop - start, dtype=tensor.dtype, device="cpu")
                draw(out, start)
                _put(tensor, start, out)
                del out  # before the next one is made
    return tensor


def _put(tensor: Tensor, start: int, values: Tensor) -> None:
    """Write `values` at the row-major positions start, start + 1, ... of `tensor`."""
    count = values.numel()
    if tensor.ndim < 2:
        (tensor.view(1) if tensor.ndim == 0 else tensor)[start : start + count].copy_(values)
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
            _put(tensor[index], offset, values[:taken])
        start, count, values = start + taken, count - taken, values[taken:]
