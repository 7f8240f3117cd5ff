"""Draws from a torch.Generator, which is serial, while a second thread makes the law's values of what is drawn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from torch_kinit import torch_internals
from torch_kinit.numerics.exact import Functions
from torch_kinit.streams.pieces import SERIAL, write_flat

_PIECE = 1 << 19  # values that one thread hands to the other
_SHARED_ERFINV = 1 << 11  # values beyond which torch shares an erfinv among threads, which would wait for the other
_BUFFERS = 4  # of a piece each, for tensors whose memory cannot hold what is drawn
_LEAST = 1 << 22  # values from which on it pays to start a thread


Draw = Callable[[Tensor], object]
Finish = Callable[[Tensor, Functions], object]


def pays(tensor: Tensor, device: torch.device) -> bool:
    """Whether to draw so for a tensor, from a generator on `device`, which is a matter of time alone."""
    return (
        tensor.numel() >= _LEAST
        and device.type == "cpu"
        and tensor.device.type == "cpu"
        and torch.get_num_threads() > 1
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch_internals.is_intercepted()  # by what another thread would not see
    )


def fill(tensor: Tensor, draw: Draw, finish: Finish, functions: Functions, dtype: torch.dtype) -> None:
    """Fill `tensor`, in row-major order, with pieces of `dtype` that `draw` fills in turn and `finish` makes values of.

    `finish` works on each element by itself, by functions that are torch's own, and runs in another thread.
    """
    alone = functions._replace(erfinv_=lambda x, largest: _erfinv_(x))
    flat = tensor.view(-1) if tensor.dtype == dtype and tensor.is_contiguous() else None
    buffers = [] if flat is not None else [torch.empty(_PIECE, dtype=dtype) for _ in range(_BUFFERS)]
    inference = torch.is_inference_mode_enabled() or tensor.is_inference()
    waiting: deque[Future[None]] = deque()

    def complete(out: Tensor, start: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # which each thread has for itself
            for part in torch.split(out, SERIAL):
                finish(part, alone)
                if flat is None:
                    write_flat(tensor, start, part)
                start += len(part)

    with ThreadPoolExecutor(1) as pool:
        for number, start in enumerate(range(0, tensor.numel(), _PIECE)):
            count = min(_PIECE, tensor.numel() - start)
            if len(waiting) == _BUFFERS:
                waiting.popleft().result()
            out = flat[start : start + count] if flat is not None else buffers[number % _BUFFERS][:count]
            draw(out)
            waiting.append(pool.submit(complete, out, start))
        for piece in waiting:
            piece.result()


def _erfinv_(x: Tensor) -> Tensor:
    """torch's, in this thread alone."""
    for part in torch.split(x, _SHARED_ERFINV):
        part.erfinv_()
    return x
