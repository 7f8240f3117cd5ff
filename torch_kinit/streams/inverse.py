"""What becomes of uniform values: uniform, normal and truncated normal ones of a given dtype.

A law fills a float32 or float64 tensor from a `Draw`, whatever makes that, in one pass of element-wise operations
without loops that depend on data. Its values lie in its support as the dtype of the tensor they are for expresses it,
so that rounding cannot cross a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# From this many standard deviations on, an interval is a tail: erf is so near 1 there that erfinv would have
# only a few million float32 arguments left (5.3 M at 1, 0.8 M at 2, a thousand at 4).
_TAIL = 1.0
# What a draw can reach, in standard deviations: 5.8 to 6.7 in float32, 8.6 in float64.
_REACH = 9.0

Draw = Callable[[Tensor, float, float], object]  # fill a tensor with uniform values from low to high


class Maths(Protocol):
    """Functions of the values of a tensor, in place."""

    def erfinv_(self, x: Tensor, largest: float) -> Tensor: ...
    def log_(self, x: Tensor) -> Tensor: ...
    def log1p_(self, x: Tensor) -> Tensor: ...
    def sqrt_(self, x: Tensor) -> Tensor: ...
    def erfcx_(self, x: Tensor) -> Tensor: ...


class Native:
    """torch's own."""

    def erfinv_(self, x: Tensor, largest: float) -> Tensor:
        return x.erfinv_()

    def log_(self, x: Tensor) -> Tensor:
        return x.log_()

    def log1p_(self, x: Tensor) -> Tensor:
        return x.log1p_()

    def sqrt_(self, x: Tensor) -> Tensor:
        return x.sqrt_()

    def erfcx_(self, x: Tensor) -> Tensor:
        value: Tensor = torch.special.erfcx(x)
        return value


class Tail(NamedTuple):
    """Of a law far out: its lower bound, and the hazard, pdf(x)/Q(x), and the hazard's derivative there."""

    lower: float
    hazard: float
    slope: float


class Law(NamedTuple):
    """Values uniform from `low` to `high`, made normal if it says how, times `scale`, plus `shift`, within `bounds`."""

    low: float
    high: float
    normal: bool = False
    tail: Tail | None = None
    scale: float = 1.0
    shift: float = 0.0
    bounds: tuple[float, float] | None = None

    def __call__(self, out: Tensor, draw: Draw, maths: Maths) -> None:
        """Fill `out`, float32 or float64."""
        if self.scale == 0:
            out.fill_(self.shift)
            return
        draw(out, self.low, self.high)
        if self.normal:
            if self.tail is None:
                maths.erfinv_(out, self.largest)
            else:
                _into_tail_(out, self.tail, maths)
            out.mul_(self.scale)
            if self.shift != 0:
                out.add_(self.shift)
        if self.bounds is not None:
            torch.nn.functional.hardtanh_(out, *self.bounds)  # clamp_, but vmap has a rule for it

    @property
    def largest(self) -> float:
        """The largest magnitude of the uniform values."""
        return max(-self.low, self.high)


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values for a tensor of `dtype` are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def uniform(low: float, high: float, dtype: torch.dtype) -> Law:
    """U[low, high]."""
    work = work_dtype(dtype)
    bounds = _representable(low, high, dtype)
    first, last = _representable(low, high, work)
    if last - first > torch.finfo(work).max:
        raise ValueError(f"`low`={low!r} and `high`={high!r} are further apart than {work} can express.")

    return Law(first, last, bounds=None if dtype == work else bounds)


def is_tail(lower: float, upper: float) -> bool:
    """Whether a truncated normal between these bounds is drawn as a tail, which takes more scratch memory."""
    return max(lower, -upper) >= _TAIL


def trunc_normal(mean: float, std: float, lower: float, upper: float, dtype: torch.dtype) -> Law:
    """N(mean, std**2) given that it lies `lower` to `upper` standard deviations from the mean, or without bound."""
    if std == 0:
        support(mean, std, -math.inf, math.inf, dtype)
        return Law(0.0, 0.0, scale=0.0, shift=mean)
    bounds = support(mean, std, lower, upper, dtype)
    if lower + upper < 0:  # mirrored, so that the tail, if it is one, is the upper one
        lower, upper, std = -upper, -lower, -std
    if is_tail(lower, upper):
        return _tail(mean, std, lower, upper, bounds, work_dtype(dtype))
    edge = _below_one(work_dtype(dtype))  # erfinv(1) is infinite
    low, high = max(math.erf(lower / math.sqrt(2)), -edge), min(math.erf(upper / math.sqrt(2)), edge)
    # By the inverse distribution function: sqrt(2) * erfinv(U), U uniform between the bounds' erf.
    return Law(low, high, True, None, std * math.sqrt(2), mean, bounds)


def _tail(mean: float, std: float, lower: float, upper: float, bounds: tuple[float, float], work: torch.dtype) -> Law:
    """By the inverse survival function, in the distance from the lower bound."""
    mills = _mills_ratio(lower)
    hazard = 1 / mills
    longest = math.inf
    if upper < math.inf:
        longest = (upper - lower) * (upper + lower) / 2 - math.log(_mills_ratio(upper) / mills)
    # The slope cancels for large bounds.
    tail = Tail(lower, hazard, min(max(hazard * (hazard - lower), 0.0), 1.0))
    return Law(0.0, min(-math.expm1(-longest), _below_one(work)), True, tail, std, mean + std * lower, bounds)


def _into_tail_(x: Tensor, tail: Tail, maths: Maths) -> None:
    """Make shares of a tail's probability the distances d from its lower bound a within which they lie.

    With Q the survival function of N(0, 1) and T = -log(Q(a+d)/Q(a)), T is a unit exponential cut off at the
    upper bound. d solves  T = d*(a + d/2) - log(M(a+d)/M(a)),  M(x) = Q(x)/pdf(x) = sqrt(pi/2)*erfcx(x/sqrt(2)),
    in which nothing underflows or cancels however far out a is. log Q is concave, so Newton's steps converge
    from the first guess, which is exact to second order in T.
    """
    exponential = maths.log1p_(x.neg_()).neg_()
    d = 2 * exponential / maths.sqrt_(2 * tail.slope * exponential + tail.hazard**2).add_(tail.hazard)
    for _ in range(3 if x.dtype == torch.float64 else 2):
        here = maths.erfcx_((d + tail.lower).mul_(math.sqrt(0.5))).mul_(math.sqrt(math.pi / 2))
        short = exponential - d * (d / 2 + tail.lower) + maths.log_(here * tail.hazard)
        d.add_(short.mul_(here))
    x.copy_(d)


def _mills_ratio(x: float) -> float:
    """(1 - cdf(x)) / pdf(x) of N(0, 1), for x > 0."""
    if x < 15:
        return math.sqrt(math.pi / 2) * math.exp(x * x / 2) * math.erfc(x / math.sqrt(2))
    # Its asymptotic series 1/x - 1/x**3 + 3/x**5 - 15/x**7 ...; exp(x*x/2) overflows from 38 on.
    term = total = 1 / x
    for k in range(1, 12):
        term *= -(2 * k - 1) / (x * x)
        total += term
    return total


def _below_one(dtype: torch.dtype) -> float:
    return 1 - torch.finfo(dtype).eps / 2


def support(mean: float, std: float, lower: float, upper: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least and greatest value of `dtype` inside the bounds; an error if the law does not fit in `dtype`."""
    largest = torch.finfo(dtype).max
    least = mean + std * max(lower, min(upper, 0.0) - _REACH)
    most = mean + std * min(upper, max(lower, 0.0) + _REACH)
    if max(-least, most) > largest:
        raise ValueError(
            f"`mean`={mean!r} and `std`={std!r} give values up to {max(-least, most):.3g}, "
            f"which {dtype} cannot hold (its largest is {largest:.3g})."
        )
    if lower == -math.inf and upper == math.inf:
        return -largest, largest
    return _representable(max(mean + std * lower, -largest), min(mean + std * upper, largest), dtype)


def _representable(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least value of `dtype` that is >= low and the greatest that is <= high."""
    info = torch.finfo(dtype)
    if max(-low, high) > info.max:
        raise ValueError(f"{dtype} cannot hold values from {low!r} to {high!r} (its largest is {info.max:.3g}).")
    first = _round(low, info, math.ceil)
    last = _round(high, info, math.floor)
    if first > last:
        raise ValueError(f"{dtype} has no value between {low!r} and {high!r}.")
    return first, last


def _round(value: float, info: torch.finfo, direction: Callable[[float], int]) -> float:
    """`value` moved up (ceil) or down (floor) to a multiple of the spacing that `info`'s dtype has there."""
    exponent = max(math.frexp(value)[1], math.frexp(info.smallest_normal)[1]) - 1
    spacing = math.ldexp(info.eps, exponent)
    return value if spacing == 0 else direction(value / spacing) * spacing
