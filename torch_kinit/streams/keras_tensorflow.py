"""The uniform, normal and truncated normal values that Keras draws on TensorFlow for an integer seed, on the CPU.

What tf.random.stateless_uniform, stateless_normal and stateless_truncated_normal make of Philox' words. The values
stand in groups of four (two in float64), and each depends on the seed and its index alone. In float32, float16
and bfloat16 every bit is TensorFlow's where its C library is glibc; float64 normals are within 4 ulp, since the
logarithm, sine and cosine are torch's.

`seed` is Keras' integer seed, any int64. `out` and `start` are as the package says.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torch_kinit.numerics import glibc, philox
from torch_kinit.numerics.fma import sqrt_
from torch_kinit.numerics.subnormals import affine_, rounded
from torch_kinit.streams.laws import Law, TruncatedNormal, Uniform
from torch_kinit.streams.pieces import CHUNK

# Bits of a word that make a uniform value: those of the dtype's mantissa.
_DIGITS = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}
_LEAST = 1e-7  # that the logarithm is taken of, so that it stays finite (TensorFlow's epsilon)
_BOUND = 2.0
# Calls set aside for a group of so many truncated values; it makes as many of them as it needs.
_RESERVED = {2: 128, 4: 256}
# Truncated values drawn at a time: after two calls few groups lack any, and a third takes as long for few as for many.
_TRUNCATED_CHUNK = 1 << 19
_BLOCK = 1 << 16  # calls at a time

_Candidates = Callable[[philox.Source, Tensor], Tensor]


def chunk_of(law: Law) -> int:
    """How many values of `law` are best drawn at a time."""
    return _TRUNCATED_CHUNK if isinstance(law, TruncatedNormal) else CHUNK // 2


def draw(out: Tensor, seed: int, start: int, law: Law) -> None:
    """Fill `out` with values of `law`: uniform, normal or truncated normal."""
    first, count, offset = _groups(out, start)
    source = philox.stream(seed)
    if isinstance(law, Uniform):
        _uniform(out, source, first, count, offset, law)
    elif isinstance(law, TruncatedNormal):
        values = _truncated(out, source, first, count)
        _finish(out, values.view(-1)[offset : offset + out.numel()], law.loc, law.scale)
    else:
        values = _candidates(out)(source, philox.calls(first, count))
        _finish(out, values.view(-1)[offset : offset + out.numel()], law.mean, law.std)


def _uniform(out: Tensor, source: philox.Source, first: int, count: int, offset: int, law: Uniform) -> None:
    # Keras converts the bounds by tf.cast, which takes a Python float to float32 first.
    least, most = (rounded(rounded(x, torch.float32), out.dtype) for x in (law.low, law.high))
    digits = _DIGITS[out.dtype]
    even, odd = philox.words(source, philox.calls(first, count))
    if out.dtype == torch.float64:
        values = _columns(*_mantissa(even, odd), dtype=torch.float64)
    else:
        even, odd = (word.bitwise_and_((1 << digits) - 1) for word in (even, odd))
        values = _columns(even[0], odd[0], even[1], odd[1], dtype=torch.float32)
    out.copy_(values.view(-1)[offset : offset + out.numel()].mul_(2.0**-digits))
    affine_(out, least, rounded(most - least, out.dtype))


def _truncated(out: Tensor, source: philox.Source, first: int, count: int) -> Tensor:
    """The groups of standard normal values less than two."""
    candidates, size = _candidates(out), _size(out)
    calls = philox.calls(first * _RESERVED[size], count, _RESERVED[size])
    values = candidates(source, calls)
    accepted = values.abs() < _BOUND
    # A row of bools read as one integer: all() over so few columns takes longer than the draw.
    whole = accepted.view({2: torch.int16, 4: torch.int32}[size]).view(-1)
    rows = (whole != int.from_bytes(b"\1" * size)).nonzero().view(-1)
    _refill(values, rows, lambda rows, tries: candidates(source, calls.index_select(0, rows) + tries))
    return values


def _refill(values: Tensor, rows: Tensor, draw: Callable[[Tensor, int], Tensor]) -> None:
    """Make these rows of `values` the first accepted of their own candidates and then those of `draw`."""
    size = values.shape[1]
    drawn, tries, columns = values.index_select(0, rows), 0, torch.arange(size, device="cpu")
    while rows.numel():
        tries += 1
        drawn = torch.cat((drawn, draw(rows, tries)), 1)
        accepted = drawn.abs() < _BOUND
        counts = accepted.sum(1)
        kept = drawn.masked_select(accepted)
        places = (counts.cumsum(0) - counts).unsqueeze(1) + columns
        # A row that is short takes some of the next one's, and is filled again.
        taken = kept.index_select(0, places.clamp_(max=kept.numel() - 1).view(-1))
        values.index_copy_(0, rows, taken.view(places.shape))
        short = (counts < size).nonzero().view(-1)
        rows, drawn = rows.index_select(0, short), drawn.index_select(0, short)


def _candidates(out: Tensor) -> _Candidates:
    make = _normals64 if out.dtype == torch.float64 else _normals32

    def draw(source: philox.Source, calls: Tensor) -> Tensor:
        if calls.numel() <= _BLOCK:
            return make(source, calls)
        return torch.cat([make(source, some) for some in torch.split(calls, _BLOCK)])

    return draw


def _normals32(source: philox.Source, calls: Tensor) -> Tensor:
    """Four standard normal values a call, by Box and Muller: a (calls, 4) float32 tensor."""
    even, odd = philox.words(source, calls)
    radius = _radius32(_unit32(even))
    angle = _unit32(odd).double().mul_(2 * math.pi).float()
    del even, odd
    sin, cos = (direction.mul_(radius).view(2, -1) for direction in glibc.sincosf(angle))
    return _columns(sin[0], cos[0], sin[1], cos[1], dtype=torch.float32)


def _radius32(unit: Tensor) -> Tensor:
    return sqrt_(glibc.logf(unit.clamp_(min=_LEAST)).mul_(-2))


def _normals64(source: philox.Source, calls: Tensor) -> Tensor:
    """Two standard normal values a call, by Box and Muller: a (calls, 2) float64 tensor."""
    unit, turn = _mantissa(*philox.words(source, calls)).double().mul_(2.0**-52)
    radius = unit.clamp_(min=_LEAST).log_().mul_(-2).sqrt_()
    angle = turn.mul_(2 * math.pi)
    return _columns(angle.sin().mul_(radius), angle.cos_().mul_(radius), dtype=torch.float64)


def _unit32(words: Tensor) -> Tensor:
    """Numbers in [0, 1) made of the words' lower 23 bits, in one dimension."""
    return words.bitwise_and_(0x7FFFFF).float().mul_(2.0**-23).view(-1)


def _mantissa(even: Tensor, odd: Tensor) -> Tensor:
    """Integers of 52 bits: 20 of the even words, above 32 of the odd ones."""
    return even.bitwise_and_(0xFFFFF).bitwise_left_shift_(32).bitwise_or_(odd)


def _columns(*columns: Tensor, dtype: torch.dtype) -> Tensor:
    """What torch.stack(columns, 1).to(dtype) gives, at half the time."""
    values = torch.empty(columns[0].numel(), len(columns), dtype=dtype, device="cpu")
    for place, column in zip(values.unbind(1), columns, strict=True):
        place.copy_(column)
    return values


def _size(out: Tensor) -> int:
    """Values in a group."""
    return 2 if out.dtype == torch.float64 else 4


def _groups(out: Tensor, start: int) -> tuple[int, int, int]:
    """The first group that has values in `out`, how many have, and the place of out[0] in the first."""
    first, offset = divmod(start, _size(out))
    return first, -(-(offset + out.numel()) // _size(out)), offset


def _finish(out: Tensor, standard: Tensor, mean: float, std: float) -> None:
    """Fill `out` with mean + std * standard, in steps that are each rounded to its dtype."""
    affine_(out.copy_(standard), rounded(mean, out.dtype), rounded(std, out.dtype))
