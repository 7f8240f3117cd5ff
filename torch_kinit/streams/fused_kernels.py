"""The Triton kernels of a Key's draws: index -> Threefry words -> law -> tensor, in one pass.

This file is imported where Triton runs, and nowhere else. Each operation is one that IEEE 754 rounds exactly, in the
order of the eager draw (`numerics.threefry`, `numerics.exact`, `streams.inverse`), and launches ask for no contraction
of products and sums; so the bits are those of the CPU.
"""

import math

import torch
import triton
import triton.language as tl

from torch_kinit.numerics import threefry
from torch_kinit.numerics.exact import ERFINV, FORMATS

# Laws; CENTRAL is NORMAL where only the middle branch of erfinv is met.
UNIFORM, CENTRAL, NORMAL = (tl.constexpr(law) for law in range(3))

_inner, _outer = ERFINV[torch.float32]
_LIMIT, _MIDDLE, _FURTHER, _LN2 = map(tl.constexpr, (_inner[0], _inner[1], _outer[1], math.log(2)))
_LOG, _INNER, _OUTER = (tl.constexpr(tuple(each)) for each in (FORMATS[torch.float32].log, _inner[2], _outer[2]))
_SQRT_HALF = tl.constexpr(FORMATS[torch.float32].sqrt_half)
_EVEN, _ODD = (tl.constexpr(each) for each in threefry.ROTATIONS)
_PARITY = tl.constexpr(threefry.PARITY)
_STEP = tl.constexpr(2.0**-23)


@triton.jit
def _four_rounds(x0, x1, BY: tl.constexpr):
    for i in tl.static_range(4):
        x0 = x0 + x1
        x1 = ((x1 << BY[i]) | (x1 >> (32 - BY[i]))) ^ x0
    return x0, x1


@triton.jit
def _bits(flat, k0, k1):
    """Threefry-2x32's words for the counters `flat`, one xor the other."""
    k2 = k0 ^ k1 ^ _PARITY
    x0 = (flat >> 32).to(tl.uint32) + k0
    x1 = flat.to(tl.uint32) + k1
    x0, x1 = _four_rounds(x0, x1, _EVEN)
    x0, x1 = x0 + k1, x1 + k2 + 1
    x0, x1 = _four_rounds(x0, x1, _ODD)
    x0, x1 = x0 + k2, x1 + k0 + 2
    x0, x1 = _four_rounds(x0, x1, _EVEN)
    x0, x1 = x0 + k0, x1 + k1 + 3
    x0, x1 = _four_rounds(x0, x1, _ODD)
    x0, x1 = x0 + k1, x1 + k2 + 4
    x0, x1 = _four_rounds(x0, x1, _EVEN)
    return (x0 + k2) ^ (x1 + k0 + 5)


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, COUNT: tl.constexpr):
    value = x * COEFFICIENTS[0] + COEFFICIENTS[1]
    for i in tl.static_range(2, COUNT):
        value = value * x + COEFFICIENTS[i]
    return value


@triton.jit
def _minus_log(a):
    word = a.to(tl.int32, bitcast=True)
    exponent = (word - _SQRT_HALF) >> 23
    m = (word - (exponent << 23)).to(tl.float32, bitcast=True)  # from sqrt(1/2) to sqrt(2)
    s = tl.div_rn(m - 1.0, m + 1.0)
    return -(_polynomial(s * s, _LOG, 5) * s + exponent.to(tl.float32) * _LN2)


@triton.jit
def _erfinv(x, LAW: tl.constexpr):
    w = _minus_log((1.0 + x) * (1.0 - x))
    factor = _polynomial(w - _MIDDLE, _INNER, 9)
    if LAW == NORMAL:
        outer = _polynomial(tl.sqrt_rn(w) - _FURTHER, _OUTER, 9)
        factor = tl.where(w < _LIMIT, factor, outer)
    return x * factor


@triton.jit
def _clamp(x, low, high):
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def _as_bfloat16(x):
    """Round to the nearest bfloat16, ties to even: Triton's interpreter rounds towards zero."""
    word = x.to(tl.int32, bitcast=True)
    word = word + 0x7FFF + ((word >> 16) & 1)
    return (word >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit(
    do_not_specialize=[
        "count", "start", "k0", "k1", "size1", "size2", "size3", "to0", "to1", "to2", "to3", "at0", "at1", "at2", "at3",
    ]  # a kernel for each would be compiled anew
)  # fmt: skip
def draw(
    out, count, start, k0, k1, size1, size2, size3, to0, to1, to2, to3, at0, at1, at2, at3,
    factor, middle, scale, low, high, shift, least, most,
    LAW: tl.constexpr, AXES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill `count` elements of a view of `out`, which has strides to0, to1, ...; flat indices are start + at0 ..."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = n < count
    where, flat = n * 0, n * 0 + start
    if AXES > 3:
        where, flat, n = where + n % size3 * to3, flat + n % size3 * at3, n // size3
    if AXES > 2:
        where, flat, n = where + n % size2 * to2, flat + n % size2 * at2, n // size2
    if AXES > 1:
        where, flat, n = where + n % size1 * to1, flat + n % size1 * at1, n // size1
    where, flat = where + n * to0, flat + n * at0
    bits = _bits(flat, k0.to(tl.uint32), k1.to(tl.uint32))
    if LAW == UNIFORM:
        x = (bits >> 9).to(tl.float32) * _STEP
        x = (x * factor + middle) * scale
    else:
        x = bits.to(tl.int32, bitcast=True).to(tl.float32) * factor + middle
        x = _erfinv(_clamp(x, low, high), LAW) * scale + shift
    x = _clamp(x, least, most)
    if out.dtype.element_ty == tl.bfloat16:
        x = _as_bfloat16(x)
    tl.store(out + where, x.to(out.dtype.element_ty), mask=inside)
