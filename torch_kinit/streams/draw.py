"""Fill a tensor in place with uniform, normal or truncated normal values drawn from a torch.Generator.

These three functions are the only ones that touch a generator; a `Stream` draws for itself, once the law is known
to fit the tensor. They take checked arguments (see `_checks`), know nothing of fans or layers, and hold these
promises for every law, as far as values come from torch's generators:

* One pass of element-wise operations: no rejection, no loop that depends on data, no host synchronization.
* At most 16 MiB beside the tensor, whatever its size, dtype or strides.
* float16, bfloat16 and float8 tensors get the float32 draw, rounded once.
* No value leaves the law's support as the tensor's own dtype can express it, so rounding cannot cross a bound.
* For float32 and narrower dtypes no float64 tensor is made (MPS has none); scalars are computed in Python.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from torch_kinit.shards import is_distributed, put, whole_like
from torch_kinit.streams import inverse
from torch_kinit.streams.stream import AnyGenerator, Stream

# Values a pass covers at a time. One thread gains from chunks that stay in its L2 cache (256 KiB of float32).
# With several, each operation waits for all of them, long where another process has a core: few large passes,
# over the whole tensor where no scratch memory is needed. Measured on two cores, one of them busy, against
# uniform_: chunks of 2**16 cost 4.2 times, 2**18 3.4, 2**21 1.7, the whole 1.4.
_CACHE_CHUNK = 1 << 16
_SCRATCH_CHUNK = 3 << 20  # 12 MiB of float32
_NATIVE = inverse.Native()
_Fill = inverse.Law | Callable[[torch.Tensor, inverse.Draw, inverse.Maths], object]
_TAIL_CHUNK = 1 << 18  # a normal's tail keeps five scratch buffers, 10 MiB of float64


def uniform_(tensor: torch.Tensor, low: float, high: float, generator: AnyGenerator) -> torch.Tensor:
    """Fill `tensor` from U[low, high]."""
    law = inverse.uniform(low, high, tensor.dtype)
    if isinstance(generator, Stream):
        return _stream(tensor, generator, "uniform_", low, high)
    return _fill(tensor, law, generator)


def normal_(tensor: torch.Tensor, mean: float, std: float, generator: AnyGenerator) -> torch.Tensor:
    """Fill `tensor` from N(mean, std**2)."""
    inverse.support(mean, std, -math.inf, math.inf, tensor.dtype)
    if isinstance(generator, Stream):
        return _stream(tensor, generator, "normal_", mean, std)
    return _fill(tensor, lambda out, draw, maths: out.normal_(mean, std, generator=generator), generator)


def trunc_normal_(
    tensor: torch.Tensor, mean: float, std: float, lower: float, upper: float, generator: AnyGenerator
) -> torch.Tensor:
    """Fill `tensor` from N(mean, std**2) given that it lies `lower` to `upper` standard deviations from the mean."""
    law = inverse.trunc_normal(mean, std, lower, upper, tensor.dtype)
    if isinstance(generator, Stream):
        return _stream(tensor, generator, "trunc_normal_", mean, std, lower, upper)
    if std > 0 and lower == -math.inf and upper == math.inf:
        return normal_(tensor, mean, std, generator)
    return _fill(tensor, law, generator, _TAIL_CHUNK if inverse.is_tail(lower, upper) else None)


def _stream(tensor: torch.Tensor, stream: Stream, name: str, *law: float) -> torch.Tensor:
    """Let a stream draw; of a DTensor the whole, if it cannot draw a part by itself."""
    if is_distributed(tensor) and not stream.indexed:
        return put(tensor, getattr(stream, name)(whole_like(tensor), *law))
    drawn: torch.Tensor = getattr(stream, name)(tensor, *law)
    return drawn


def _fill(
    tensor: torch.Tensor, law: _Fill, generator: torch.Generator | None, chunk: int | None = None
) -> torch.Tensor:
    """Run `law` over `tensor`: in place where dtype and device allow it, else through a scratch buffer."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return tensor
    dtype = inverse.work_dtype(tensor.dtype)
    device = tensor.device if generator is None else generator.device
    direct = tensor.dtype == dtype and tensor.device.type == device.type
    if torch.compiler.is_compiling():
        chunk = tensor.numel()  # the compiler makes loops of its own
    elif device.type == "cpu" and torch.get_num_threads() == 1:
        chunk = _CACHE_CHUNK
    elif chunk is None:
        chunk = tensor.numel() if direct else _SCRATCH_CHUNK

    def draw(out: torch.Tensor, low: float, high: float) -> None:
        out.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for piece in _pieces(tensor, chunk):
            out = piece if direct else torch.empty_like(piece, dtype=dtype, device=device)
            law(out, draw, _NATIVE)
            if not direct:
                piece.copy_(out)
                del out  # before the next one is made
    return tensor


def _pieces(tensor: torch.Tensor, limit: int) -> Iterator[torch.Tensor]:
    """Views of at most `limit` values that together are the whole of `tensor`, in the order of its memory."""
    if tensor.numel() <= limit:
        yield tensor
        return
    tensor = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    if tensor.is_contiguous():
        count, rest = divmod(tensor.numel(), limit)
        sizes = [limit] * count
        if rest < 16:  # torch makes normal values in groups of 16, and fewer in another way
            sizes[-1] += rest
        else:
            sizes.append(rest)
        yield from torch.split(tensor.view(-1), sizes)
        return
    longest = max(range(tensor.ndim), key=lambda d: tensor.shape[d])
    for half in torch.split(tensor, (tensor.shape[longest] + 1) // 2, dim=longest):
        yield from _pieces(half, limit)
