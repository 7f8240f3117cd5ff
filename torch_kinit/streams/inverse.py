"""Inverse CDFs: how uniform numbers become the values of a law, in a given dtype.

An `InverseCdf` fills a float32 or float64 tensor by one pass of element-wise operations, without loops that depend on
data. Its values lie in the law's support as the dtype of the tensor they are for expresses it, so that rounding cannot
cross a bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from torch_kinit.numerics.exact import Functions
from torch_kinit.streams.laws import Law, Normal, TruncatedNormal, Uniform, mills_ratio, representable

# From this many standard deviations on, an interval is a tail: erf is so near 1 there that erfinv would have
# only a few million float32 arguments left (5.3 M at 1, 0.8 M at 2, a thousand at 4).
_TAIL = 1.0
# Up to this magnitude, that of two standard deviations, 1 - x*x is more than sqrt(1/2) / 8, and erfinv has one branch.
CENTRAL = 0.9547

DrawUniform = Callable[[Tensor, float, float], object]  # fill a tensor with uniform values from low to high


class Tail(NamedTuple):
    """Of a law far out: its lower bound, and the hazard, pdf(x)/Q(x), and the hazard's derivative there."""

    lower: float
    hazard: float
    slope: float


class InverseCdf(NamedTuple):
    """Values uniform from `low` to `high`, made normal if it says how, times `scale`, plus `shift`, within `bounds`."""

    low: float
    high: float
    normal: bool = False
    tail: Tail | None = None
    scale: float = 1.0
    shift: float = 0.0
    bounds: tuple[float, float] | None = None

    def fill(self, out: Tensor, draw: DrawUniform, functions: Functions) -> None:
        """Fill `out`, float32 or float64."""
        if self.scale == 0:
            out.fill_(self.shift)
            return
        draw(out, self.low, self.high)
        if self.normal:
            if self.tail is None:
                functions.erfinv_(out, self.largest)
            else:
                _invert_survival_(out, self.tail, functions)
            out.mul_(self.scale)
            if self.shift != 0:
                out.add_(self.shift)
        if self.bounds is not None:
            torch.nn.functional.hardtanh_(out, *self.bounds)  # clamp_, but vmap has a rule for it

    @property
    def largest(self) -> float:
        """The largest magnitude of the uniform values."""
        return max(-self.low, self.high)

    def numbers(self) -> list[float]:
        """What a kernel needs of it, where there is no tail: factor, middle, scale, low, high, shift, least, most.

        Uniform values are (f * factor + middle) * scale of a fraction f from 0 to 1; others, of 32 signed bits f,
        clamp(f * factor + middle, low, high), made normal, * scale + shift; both within least and most. Where an eager
        draw adds nothing, -0.0 is added, which leaves every number as it is.
        """
        low, high, width = self.low, self.high, self.high - self.low
        if self.bounds is not None and self.normal:
            middle = -0.0 if low == -high else (low + high) / 2
            return [width * 2.0**-32, middle, self.scale, low, high, self.shift or -0.0, *self.bounds]
        steps = [2.0, -1.0, high] if low == -high else [width, low, 1.0]
        return [*steps, low, high, -0.0, *(self.bounds or (low, high))]


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values for a tensor of `dtype` are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_central(law: Law) -> bool:
    """Whether the inverse CDF of a law takes erfinv at most: it has a spread, and is no tail."""
    if isinstance(law, TruncatedNormal):
        return law.scale != 0 and law.lower < _TAIL and law.upper > -_TAIL
    return isinstance(law, Uniform) or (isinstance(law, Normal) and law.std != 0)


def inverse_cdf(law: Law, dtype: torch.dtype) -> InverseCdf:
    """The inverse CDF of a law that sources draw; a ValueError if the law does not fit in `dtype`."""
    if isinstance(law, Uniform):
        return _uniform(law, dtype)
    bounds = law.support(dtype)
    if isinstance(law, Normal):
        mean, std, lower, upper = law.mean, law.std, -math.inf, math.inf
    elif isinstance(law, TruncatedNormal):
        mean, std, lower, upper = law.loc, law.scale, law.lower, law.upper
    else:
        mean, std, lower, upper = law.mean, 0.0, 0.0, 0.0
    if std == 0:
        return InverseCdf(0.0, 0.0, scale=0.0, shift=mean)
    if lower + upper < 0:  # mirrored, so that the tail, if it is one, is the upper one
        lower, upper, std = -upper, -lower, -std
    if lower >= _TAIL:
        return _tail(mean, std, lower, upper, bounds, work_dtype(dtype))
    edge = _below_one(work_dtype(dtype))  # erfinv(1) is infinite
    low, high = max(math.erf(lower / math.sqrt(2)), -edge), min(math.erf(upper / math.sqrt(2)), edge)
    # sqrt(2) * erfinv(U), with U uniform between the bounds' erf
    return InverseCdf(low, high, True, None, std * math.sqrt(2), mean, bounds)


def _uniform(law: Uniform, dtype: torch.dtype) -> InverseCdf:
    work = work_dtype(dtype)
    bounds = law.support(dtype)
    first, last = bounds if dtype == work else representable(law.low, law.high, work)
    if last - first > torch.finfo(work).max:
        raise ValueError(f"`low`={law.low!r} and `high`={law.high!r} are further apart than {work} can express.")
    return InverseCdf(first, last, bounds=None if dtype == work else bounds)


def _tail(
    mean: float, std: float, lower: float, upper: float, bounds: tuple[float, float], work: torch.dtype
) -> InverseCdf:
    """The inverse survival function, in the distance from the lower bound."""
    mills = mills_ratio(lower)
    hazard = 1 / mills
    longest = math.inf
    if upper < math.inf:
        longest = (upper - lower) * (upper + lower) / 2 - math.log(mills_ratio(upper) / mills)
    # The slope cancels for large bounds.
    tail = Tail(lower, hazard, min(max(hazard * (hazard - lower), 0.0), 1.0))
    high = min(-math.expm1(-longest), _below_one(work))
    return InverseCdf(0.0, high, True, tail, std, mean + std * lower, bounds)


def _invert_survival_(x: Tensor, tail: Tail, functions: Functions) -> None:
    """Replace each probability u by the distance d from the lower bound a with P(X - a < d, given X > a) = u.

    With Q the survival function of N(0, 1) and T = -log(Q(a+d)/Q(a)), T is a unit exponential cut off at the
    upper bound. d solves  T = d*(a + d/2) - log(M(a+d)/M(a)),  M(x) = Q(x)/pdf(x) = sqrt(pi/2)*erfcx(x/sqrt(2)),
    in which nothing underflows or cancels however far out a is. log Q is concave, so Newton's steps converge
    from the first guess, which is exact to second order in T.
    """
    exponential = functions.log1p_(x.neg_()).neg_()
    d = 2 * exponential / functions.sqrt_(2 * tail.slope * exponential + tail.hazard**2).add_(tail.hazard)
    for _ in range(3 if x.dtype == torch.float64 else 2):
        here = functions.erfcx_((d + tail.lower).mul_(math.sqrt(0.5))).mul_(math.sqrt(math.pi / 2))
        short = exponential - d * (d / 2 + tail.lower) + functions.log_(here * tail.hazard)
        d.add_(short.mul_(here))
    x.copy_(d)


def _below_one(dtype: torch.dtype) -> float:
    return 1 - torch.finfo(dtype).eps / 2
