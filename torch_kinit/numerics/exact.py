"""Functions made of operations that IEEE 754 rounds exactly: +, -, *, / and shifts of bits, and a rounded square root.

torch's own go through vector libraries, whose last bits differ from one type of CPU to another. These are the same on
all, and on all devices that round each operation; a compiler that contracts a product and a sum moves the last bit.

Sources: the logarithm's reduction and coefficients are fdlibm's, e_log.c (Sun Microsystems, 1993) and FreeBSD's
e_logf.c; the inverse error function is by Giles, "Approximating the erfinv function", GPU Computing Gems, 2012; the
scaled complementary error function by Cody, "Rational Chebyshev approximations for the error function", Mathematics
of Computation 23, 1969.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torch_kinit.numerics.fma import sqrt_


def floats(patterns: str) -> list[float]:
    """float32 numbers written as their bits."""
    return [struct.unpack(">f", bytes.fromhex(pattern))[0] for pattern in patterns.split()]


class Format(NamedTuple):
    """The integer type of a float's bits, its mantissa's width, the bits of sqrt(1/2), and log's coefficients."""

    bits: torch.dtype
    mantissa: int
    sqrt_half: int
    log: tuple[float, ...]


# log(m) = s * polynomial(s*s), s = (m - 1)/(m + 1); the leading coefficient first.
FORMATS = {
    torch.float32: Format(
        torch.int32,
        23,
        0x3F3504F3,
        tuple(map(float.fromhex, ("0xf89e26p-26", "0x91e9eep-25", "0xccce13p-25", "0xaaaaaap-24", "0x2"))),
    ),
    torch.float64: Format(
        torch.int64,
        52,
        0x3FE6A09E667F3BCD,
        (
            1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
            2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01, 2.0,
        ),
    ),
}  # fmt: skip
_Branch = tuple[float, float, list[float]]
# erfinv(x) / x as polynomials (Giles), the leading coefficient first: up to which w = -log(1 - x*x), in w (the first)
# or its root less which number, which.
ERFINV: dict[torch.dtype, list[_Branch]] = {
    torch.float32: [
        (5.0, 2.5, floats("32F16588 34B84B36 B66C7357 B6935AC1 396532DB BAA45408 BB88E4EF 3E7C8F63 3FC02E2F")),
        (math.inf, 3.0, floats("B951F09B 38D3B56B 3AB0DC72 BB70BDE7 3BBC127B BBF9C5D7 3C1AA57E 3F8036DB 40354F7E")),
    ],
    torch.float64: [
        (6.25, 3.125, [
            -3.64441206401782e-21, -1.6850591381820166e-19, 1.28584807152564e-18, 1.1157877678025181e-17,
            -1.3331716628546209e-16, 2.0972767875968562e-17, 6.6376381343583238e-15, -4.0545662729752069e-14,
            -8.1519341976054722e-14, 2.6335093153082323e-12, -1.2975133253453532e-11, -5.4154120542946279e-11,
            1.0512122733215323e-09, -4.1126339803469837e-09, -2.9070369957882005e-08, 4.2347877827932404e-07,
            -1.3654692000834679e-06, -1.3882523362786469e-05, 0.00018673420803405714, -0.000740702534166267,
            -0.0060336708714301491, 0.24015818242558962, 1.6536545626831027,
        ]),
        (16.0, 3.25, [
            2.2137376921775787e-09, 9.0756561938885391e-08, -2.7517406297064545e-07, 1.8239629214389228e-08,
            1.5027403968909828e-06, -4.013867526981546e-06, 2.9234449089955446e-06, 1.2475304481671779e-05,
            -4.7318229009055734e-05, 6.8284851459573175e-05, 2.4031110387097894e-05, -0.00035503752036284748,
            0.0009532893797373805, -0.0016882755560235047, 0.0024914420961078508, -0.0037512085075692412,
            0.0053709145535900636, 1.0052589676941592, 3.0838856104922208,
        ]),
        (math.inf, 5.0, [
            -2.7109920616438573e-11, -2.5556418169965252e-10, 1.5076572693500548e-09, -3.789465440126737e-09,
            7.61570120807834e-09, -1.496002662714924e-08, 2.9147953450901081e-08, -6.7711997758452339e-08,
            2.2900482228026655e-07, -9.9298272942317e-07, 4.5260625972231537e-06, -1.9681778105531671e-05,
            7.5995277030017761e-05, -0.00021503011930044477, -0.00013871931833623122, 1.0103004648645344,
            4.8499064014085844,
        ]),
    ],
}  # fmt: skip
# exp(x*x) * erfc(x) as ratios of polynomials (Cody): in x up to 4, and in 1/(x*x) beyond, where it is
# (1/sqrt(pi) - ratio / (x*x)) / x.
ERFCX_MIDDLE = (
    [
        2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1,
        2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
        1.23033935479799725e3,
    ],
    [
        1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
        3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
    ],
)  # fmt: skip
ERFCX_FAR = (
    [
        1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
        1.60837851487422766e-2, 6.58749161529837803e-4,
    ],
    [1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2,
     2.33520497626869185e-3],
)  # fmt: skip


BUFFERS = 6  # that the functions take at most


class Scratch:
    """Buffers to take and give back, in one allocation: new memory, and many small pieces, take longer than a step."""

    def __init__(self, buffers: int, size: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self._whole = torch.empty((buffers, size), dtype=dtype, device=device).unbind()
        self.renew()

    def renew(self) -> None:
        """Let all buffers be free again, and whole."""
        self._free = list(self._whole)

    def take(self, count: int) -> Tensor:
        """A buffer of `count` values; until they are renewed no count is more than the one before."""
        return self._free.pop()[:count]

    def give(self, *buffers: Tensor) -> None:
        """Take these back."""
        self._free.extend(buffers)


class Functions(NamedTuple):
    """The functions that an inverse CDF may need, in place: torch's own, or these."""

    erfinv_: Callable[[Tensor, float], Tensor]  # of numbers whose magnitude is at most the second argument
    log_: Callable[[Tensor], Tensor]
    log1p_: Callable[[Tensor], Tensor]
    sqrt_: Callable[[Tensor], Tensor]
    erfcx_: Callable[[Tensor], Tensor]


def functions(scratch: Scratch) -> Functions:
    """Those of this file, with buffers for what lies between."""
    return Functions(
        lambda x, largest: erfinv_(x, largest, scratch),
        lambda x: log_(x, scratch),
        lambda x: log_(x.add_(1), scratch),  # to the precision of 1 + x
        root_,
        lambda x: erfcx_(x, scratch),
    )


def polynomial(coefficients: Sequence[float], x: Tensor, out: Tensor) -> Tensor:
    """Write the polynomial of these coefficients, the leading one first, into `out`, by Horner's rule."""
    leading, second, *rest = coefficients
    torch.mul(x, leading, out=out).add_(second)
    for coefficient in rest:
        out.mul_(x).add_(coefficient)
    return out


def log_(a: Tensor, scratch: Scratch) -> Tensor:
    """Replace positive normal numbers by their logarithms, within two units of the last place of the larger term."""
    form = FORMATS[a.dtype]
    s, z, exponent = (scratch.take(a.numel()) for _ in range(3))
    word, whole = a.view(form.bits), s.view(form.bits)
    torch.sub(word, form.sqrt_half, out=whole).bitwise_right_shift_(form.mantissa)
    word.sub_(whole, alpha=1 << form.mantissa)  # from sqrt(1/2) to sqrt(2)
    exponent.copy_(whole).mul_(math.log(2))
    torch.sub(a, 1, out=s).div_(a.add_(1))
    torch.mul(s, s, out=z)
    polynomial(form.log, z, a).mul_(s).add_(exponent)
    scratch.give(s, z, exponent)
    return a


def erfinv_(x: Tensor, largest: float, scratch: Scratch) -> Tensor:
    """Replace numbers from -largest to largest, which is below 1, by their inverse error function."""
    (limit, middle, coefficients), *outer = ERFINV[x.dtype]
    log, v, factor = (scratch.take(x.numel()) for _ in range(3))
    torch.add(x, 1, out=log).mul_(torch.sub(x, 1, out=v)).neg_()
    log_(log, scratch).neg_()
    polynomial(coefficients, torch.sub(log, middle, out=v), factor)
    if -math.log((1 - largest) * (1 + largest)) >= limit - 0.01:
        root, further = root_(scratch.take(x.numel()).copy_(log)), scratch.take(x.numel())
        for next_limit, middle, coefficients in outer:
            polynomial(coefficients, torch.sub(root, middle, out=v), further)
            blend_(further, factor, torch.sub(log, limit, out=v))
            factor, further, limit = further, factor, next_limit
        scratch.give(root, further)
    x.mul_(factor)
    scratch.give(log, v, factor)
    return x


def blend_(first: Tensor, second: Tensor, sign: Tensor) -> Tensor:
    """Replace `first` by `second` where `sign` is negative, both overwritten; torch.where takes ten times as long."""
    bits = FORMATS[first.dtype].bits
    mask, chosen, other = (x.view(bits) for x in (sign, second, first))
    mask.bitwise_right_shift_(8 * first.itemsize - 1).bitwise_and_(chosen.bitwise_xor_(other))
    other.bitwise_xor_(mask)
    return first


def root_(x: Tensor) -> Tensor:
    """Replace positive numbers by their square roots, of float64 ones rounded twice."""
    if x.dtype == torch.float64:
        return x.mul_(x.rsqrt())  # not by a vector library, as sqrt
    return sqrt_(x) if x.device.type == "cpu" else x.sqrt_()


def erfcx_(x: Tensor, scratch: Scratch) -> Tensor:
    """Replace numbers from 0.5 on by exp(x*x) * erfc(x)."""
    near, inverse, square, spare, out = (scratch.take(x.numel()) for _ in range(5))
    torch.clamp(x, max=8.0, out=near)
    _ratio(ERFCX_MIDDLE, near, out, spare)
    torch.reciprocal(torch.clamp(x, min=4.0, out=inverse), out=inverse)
    torch.mul(inverse, inverse, out=square)
    _ratio(ERFCX_FAR, square, near, spare).mul_(square)
    near.neg_().add_(1 / math.sqrt(math.pi)).mul_(inverse)
    blend_(near, out, x.sub_(4))
    x.copy_(near)
    scratch.give(near, inverse, square, spare, out)
    return x


def _ratio(polynomials: tuple[list[float], list[float]], x: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    numerator, denominator = polynomials
    return polynomial(numerator, x, out).div_(polynomial(denominator, x, spare))
