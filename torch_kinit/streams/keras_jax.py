"""jax.random's uniform, normal and truncated normal values, bit for bit, as Keras' JAX backend returns them.

float32 and bfloat16 values are those of JAX on a CPU with a fused multiply-add, where its compiler contracts a sum
and a product of float32 numbers. float16 values are those where the CPU does float16 arithmetic in float32;
AVX512-FP16 does it natively, and the compiler contracts it too: there JAX's uniform and truncated normal differ by a
unit in the last place. float64 values are those of JAX with `jax_enable_x64` on: uniform to the bit, the others to a
few units in the last place of the largest, since the logarithm is the C library's there and torch's here. As in
JAX's compiled code, subnormal numbers count as zero.

A draw is a law of the unit variable m * 2**-p, 0 <= m < 2**p, where p is the dtype's precision less one: 23, 10, 7 or
52. float16 and bfloat16 have so few that a table of the law's values is made and looked up.

Sources: the inverse error function is by Giles, "Approximating the erfinv function", GPU Computing Gems, 2012; the
float32 log1p by Moshier's Cephes library, logf.c and log1p.c; the order of operations is measured from XLA.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torch_kinit.numerics import threefry
from torch_kinit.numerics.exact import ERFINV, Scratch, blend_, floats
from torch_kinit.numerics.fma import fma_, polynomial, sqrt_
from torch_kinit.numerics.subnormals import affine_, flush_, rounded
from torch_kinit.numerics.threefry import Key
from torch_kinit.streams.laws import Law, TruncatedNormal, Uniform
from torch_kinit.streams.pieces import CHUNK

_BUFFERS = 8  # as many as a normal value takes


# log(1 + z) for small |z|: z - z**2/2 + z**3 * numerator/denominator (Cephes, log1p.c).
LOG1P_BELOW = math.sqrt(2) - 1
LOG1P_NUMERATOR = [
    4.5270000862445199635215e-5, 4.9854102823193375972212e-1, 6.5787325942061044846969, 29.911919328553073277375,
    60.949667980987787057556, 57.112963590585538103336, 20.039553499201281259648,
]  # fmt: skip
LOG1P_DENOMINATOR = [
    1.0, 15.062909083469192043167, 83.047565967967209469434, 221.76239823732856465394, 309.09872225312059774938,
    216.42788614495947685003, 60.118660497603843919306,
]  # fmt: skip
# log(1 + m) - m + m**2/2 = m**3 * polynomial, for m from sqrt(1/2) - 1 to sqrt(2) - 1 (Cephes, logf.c).
LOG = floats("3D9021BB BDEBD1B8 3DEF251A BDFE5D4F 3E11E9BF BE2AAE50 3E4CCEAC BE7FFFFC 3EAAAAAA")
_SQRT_HALF = 0x3F3504F3
LN2_HIGH = 0.693359375  # so short that its products with an exponent are exact
LN2_LOW = floats("B95E8083")[0]  # log(2) - LN2_HIGH


def chunk_of(dtype: torch.dtype) -> int:
    """How many values are best drawn at a time."""
    return CHUNK // 2 if dtype == torch.float64 else CHUNK


def draw(out: Tensor, key: Key, start: int, law: Law) -> None:
    """Fill `out` with the values of `key` from `start` on: uniform, normal or truncated normal."""
    if out.dtype.itemsize == 2:
        _look_up(out, key, start, law)
        return
    cipher = threefry.Cipher(key)
    scratch = Scratch(_BUFFERS, out.numel(), out.dtype)
    units_ = _units_64_ if out.dtype == torch.float64 else _units_
    units_(out, cipher, start, scratch)
    _transform_(out, law, scratch)


class Numbers(NamedTuple):
    """What makes a unit u a value of a law, each number of the tensor's dtype, for the CPU and for kernels.

    u becomes low + u * width, at least low; unless the law is uniform then erfinv of that * root, from -most to most,
    and at last * scale + shift.
    """

    low: float
    width: float
    root: float = 1.0
    most: float = math.inf
    scale: float = 1.0
    shift: float = 0.0


def numbers(law: Law, dtype: torch.dtype) -> Numbers:
    """Those of a law for a dtype: uniform, normal or truncated normal."""
    if isinstance(law, Uniform):
        low, high = rounded(law.low, dtype), rounded(law.high, dtype)
        return Numbers(low, rounded(high - low, dtype))
    root, epsilon = rounded(math.sqrt(2), dtype), torch.finfo(dtype).eps
    if isinstance(law, TruncatedNormal):
        edge = math.erf(2 / root) if dtype == torch.float64 else math.erf(rounded(2 / root, torch.float32))
        edge, mean, std, most = rounded(edge, dtype), law.loc, law.scale, 2 - epsilon
        low, high = -edge, edge
    else:
        low, high, mean, std, most = -(1 - epsilon / 2), 1.0, law.mean, law.std, math.inf
    return Numbers(low, rounded(high - low, dtype), root, most, rounded(std, dtype), rounded(mean, dtype))


def _transform_(x: Tensor, law: Law, scratch: Scratch) -> None:
    """Make units into values of `law`."""
    low, width, root, most, scale, shift = numbers(law, x.dtype)
    if x.dtype.itemsize == 2:
        affine_(x, low, width)
    else:
        flush_(polynomial((width, low), x, x), low, width)
    x.clamp_min_(low)
    if isinstance(law, Uniform):
        return
    _erfinv_(x, scratch, tail=most == math.inf)
    x.mul_(root)
    if most < math.inf:
        x.clamp_(-most, most)
    affine_(x, shift, scale)


def _look_up(out: Tensor, key: Key, start: int, law: Law) -> None:
    """Draw float16 from the upper 10 bits of 16, or bfloat16 from the upper 7 of 8, by way of a table."""
    width, spare = (10, 6) if out.dtype == torch.float16 else (7, 1)
    table = torch.arange(1 << width, dtype=torch.float32, device="cpu").mul_(2.0**-width).to(out.dtype)
    _transform_(table, law, Scratch(_BUFFERS, 1 << width, torch.float32))
    index = threefry.bits(key, start, out.numel())
    index.bitwise_right_shift_(spare).bitwise_and_((1 << width) - 1)
    torch.index_select(table, 0, index, out=out)


def _units_(x: Tensor, cipher: threefry.Cipher, start: int, scratch: Scratch) -> None:
    """Fill `x` with float32 numbers in [0, 1), from the upper 23 bits of each draw."""
    other, spare = scratch.take(x.numel()), scratch.take(x.numel())
    cipher.encrypt(start, x0 := _bits(x), x1 := _bits(other), _bits(spare))
    x0.bitwise_xor_(x1).bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).bitwise_or_(0x3F800000)
    x.sub_(1.0)
    scratch.give(other, spare)


def _units_64_(x: Tensor, cipher: threefry.Cipher, start: int, scratch: Scratch) -> None:
    """Fill `x` with float64 numbers in [0, 1), from the upper 52 bits of both words."""
    count = x.numel()
    both, spare = scratch.take(count), scratch.take(count)
    high, low = both.view(torch.int32).tensor_split(2)
    cipher.encrypt(start, high, low, spare.view(torch.int32))
    upper, lower = x.view(torch.int64).copy_(high), spare.view(torch.int64).copy_(low)
    lower.bitwise_right_shift_(12).bitwise_and_((1 << 20) - 1)
    upper.bitwise_left_shift_(20).bitwise_and_((1 << 52) - 1).bitwise_or_(lower).bitwise_or_(0x3FF << 52)
    x.sub_(1.0)
    scratch.give(both, spare)


def _erfinv_(x: Tensor, scratch: Scratch, tail: bool) -> Tensor:
    """Replace `x` by its inverse error function; some may be in a tail, beyond 0.9966 or so, only if `tail`."""
    if x.dtype.itemsize == 2:
        return x.copy_(_erfinv_(x.float(), scratch, tail))
    count = x.numel()
    w = _log1p(torch.mul(x, x, out=scratch.take(count)), scratch).neg_()
    (limit, middle, coefficients), *outer = ERFINV[x.dtype]
    v, factor = torch.sub(w, middle, out=scratch.take(count)), scratch.take(count)
    polynomial(coefficients, v, factor)
    if tail:
        root, further = sqrt_(scratch.take(count).copy_(w)), scratch.take(count)
        for next_limit, middle, coefficients in outer:
            polynomial(coefficients, torch.sub(root, middle, out=v), further)
            blend_(further, factor, torch.sub(w, limit, out=v))
            factor, further, limit = further, factor, next_limit
        scratch.give(root, further)
    scratch.give(w, v, factor)
    return x.mul_(factor)


def _log1p(square: Tensor, scratch: Scratch) -> Tensor:
    """log(1 - square) for 0 <= square < 1, as XLA computes it; `square` is given back."""
    count = square.numel()
    spare = scratch.take(count)
    sign = torch.sub(square, LOG1P_BELOW, out=spare)
    z = square.neg_()
    log = torch.add(z, 1.0, out=scratch.take(count))
    log = log.log_() if z.dtype == torch.float64 else _log_(log, scratch)
    blend_(log, _log1p_small_(z, scratch), sign)
    scratch.give(z, spare)
    return log


def _log1p_small_(z: Tensor, scratch: Scratch) -> Tensor:
    """Replace `z`, small, by log(1 + z)."""
    ratio, square, cube = (scratch.take(z.numel()) for _ in range(3))
    polynomial(LOG1P_NUMERATOR, z, ratio)
    ratio.div_(polynomial(LOG1P_DENOMINATOR, z, square))
    torch.mul(z, z, out=square)
    ratio.mul_(torch.mul(square, z, out=cube)).add_(square, alpha=-0.5)
    scratch.give(ratio, square, cube)
    return z.add_(ratio)


def _log_(a: Tensor, scratch: Scratch) -> Tensor:
    """Replace `a`, float32 and positive, by its logarithm, from a = m * 2**e with m from sqrt(1/2) to sqrt(2)."""
    spare, cube, e, y, step = (scratch.take(a.numel()) for _ in range(5))
    bits, exponent = a.view(torch.int32), spare.view(torch.int32)
    torch.sub(bits, _SQRT_HALF, out=exponent).bitwise_right_shift_(23)
    torch.sub(bits, exponent, alpha=1 << 23, out=bits)
    e.copy_(exponent)
    x = a.sub_(1.0)
    square = torch.mul(x, x, out=spare)
    torch.mul(square, x, out=cube)
    polynomial(LOG[0:3], x, y)
    y = fma_(y, cube, polynomial(LOG[3:6], x, step))
    y = fma_(y, cube, polynomial(LOG[6:9], x, step))
    y = fma_(y, cube, torch.mul(e, LN2_LOW, out=step))
    x.add_(square, alpha=-0.5).add_(y).add_(e, alpha=LN2_HIGH)
    scratch.give(spare, cube, e, y, step)
    return x


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)
