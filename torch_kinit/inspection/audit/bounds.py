"""Whether evidence fits a law: five tests whose bounds hold for every number of values, not only for many."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from torch_kinit.inspection.audit.evidence import Evidence
from torch_kinit.streams.laws import Law, Normal, TruncatedNormal, Uniform

TESTS = 4  # of each block that can fail by chance: mean, std, range and law; a value outside the support is no chance
# How the tests share the probability that each would have if all had the same. Of Chernoff's and Hoeffding's bounds
# about a tenth is used, of the others up to the whole: so a model fails far less often than `alpha` says, hardly ever
# two of a thousand at alpha = 0.001.
SHARES = {"mean": 0.5, "std": 3.0, "range": 0.25, "law": 0.25}
_BINS = 256
_REACH, _TAIL = 9.0, 5.0  # in stds from the mean: where a normal law counts as ended, and where its last edge is


class Misfit(NamedTuple):
    """A test that failed: what was measured, and what the law says; of the distance to the law its bound."""

    test: str  # "values", "support", "mean", "std", "range" or "law"
    measured: float
    expected: float
    excess: float  # how many times its bound the distance is


class Moments(NamedTuple):
    """Of a law as a dtype rounds it: mean and std, and the least and greatest value."""

    mean: float
    std: float
    low: float
    high: float

    @property
    def widest(self) -> float:
        """The greatest distance of a value from the mean, that of a normal law at its reach."""
        return max(min(self.high - self.mean, _REACH * self.std), min(self.mean - self.low, _REACH * self.std))


def misfits(law: Law, seen: Evidence, dtype: torch.dtype, chance: float) -> list[Misfit]:
    """The tests that evidence of values fails, each with its share of `chance` at most if they have the law.

    The bounds are Bernstein's for the mean; for that of a symmetric law, which is strictly sub-Gaussian, Hoeffding's
    with its own variance; Chernoff's for the mean square; and Massart's 2 exp(-2 n D**2) for the greatest distance D
    between the two distribution functions, here at fixed edges.
    """
    return list(_misfits(law, seen, dtype, chance))


def fits(law: Law, seen: Evidence, dtype: torch.dtype, chance: float) -> bool:
    """Whether evidence passes all tests; the quick ones come first."""
    return next(_misfits(law, seen, dtype, chance), None) is None


def _misfits(law: Law, seen: Evidence, dtype: torch.dtype, chance: float) -> Iterator[Misfit]:
    if seen.broken and seen.count:
        yield Misfit("values", seen.low if not math.isfinite(seen.low) else seen.high, law.mean, math.inf)
    elif seen.count:
        moments = moments_of(law, dtype)
        yield from _outside(moments, seen, dtype)
        if moments.std:
            yield from _of_moments(law, moments, seen, chance)
            yield from _too_narrow(law, seen, dtype, chance * SHARES["range"])
            distance, bound = distance_from(law, seen, dtype), distance_bound(seen.sample, chance * SHARES["law"])
            if distance > bound:
                yield Misfit("law", distance, bound, distance / bound)


def _too_narrow(law: Law, seen: Evidence, dtype: torch.dtype, chance: float) -> Iterator[Misfit]:
    """Extremes with less of the law between them than those of so many values: that is exactly Beta(n - 1, 2)."""
    last, n = torch.finfo(dtype).eps, seen.count
    share = law.cdf(seen.high + last * abs(seen.high)) - law.cdf(seen.low - last * abs(seen.low))
    outside = min(max(1 - share, 0.0), 1 - 1e-16)
    logarithm = (n - 1) * math.log1p(-outside) + math.log1p((n - 1) * outside)
    if logarithm < math.log(chance):
        yield Misfit("range", seen.high - seen.low, math.nan, logarithm / math.log(chance))


def distance_bound(sample: int, chance: float) -> float:
    """What the distance of so many values' distribution function from their law's passes with that probability."""
    return math.sqrt(math.log(2 / chance) / (2 * max(sample, 1)))


def _outside(moments: Moments, seen: Evidence, dtype: torch.dtype) -> list[Misfit]:
    """Values outside the support, but for the last bits, in which Keras' own values pass it on some backends."""
    found = []
    for expected, value, sign in ((moments.low, seen.low, -1), (moments.high, seen.high, 1)):
        slack = 4 * torch.finfo(dtype).eps * abs(expected) if moments.std else 0.0
        if sign * (value - expected) > slack:
            found.append(Misfit("support", value, expected, abs(value - expected) / (moments.std or 1.0)))
    return found


def _of_moments(law: Law, moments: Moments, seen: Evidence, chance: float) -> list[Misfit]:
    found = []
    variance, widest = moments.std**2, moments.widest
    rate, rate_of_squares = (math.log(2 / (chance * SHARES[test])) / seen.count for test in ("mean", "std"))
    off = seen.mean - moments.mean
    bound = math.sqrt(2 * variance * rate) if _symmetric(law) else _bernstein(variance, widest, rate)
    bound += 1e-6 * moments.std + 1e-7 * abs(moments.mean)  # what float32 sums lose
    if abs(off) > bound:
        found.append(Misfit("mean", seen.mean, moments.mean, abs(off) / bound))
    off, (low, high) = seen.square_about(moments.mean) - variance, square_bounds(law, rate_of_squares)
    bound = variance * (high - 1 if off > 0 else 1 - low) + 2e-5 * variance + 1e-6 * moments.mean**2
    if abs(off) > bound:
        found.append(Misfit("std", seen.std, moments.std, abs(off) / bound))
    return found


def _bernstein(variance: float, widest: float, rate: float) -> float:
    """The distance that a mean has from its expectation with probability exp(-rate * n) at most, on either side."""
    linear = widest * rate / 3
    return linear + math.sqrt(linear**2 + 2 * max(variance, 0.0) * rate)


def square_bounds(law: Law, rate: float) -> tuple[float, float]:
    """Where the mean of n squares about a law's mean is, in variances, but for exp(-rate * n) on either side.

    Chernoff's bounds: P(mean square > s) <= exp(-n * (t * s - K(t))) for any t > 0, K being the logarithm of the
    expectation of exp(t * square), and likewise below.
    """
    t, up, down = _cumulants(_shape(law))
    return max(0.0, float((-(rate + down) / t).max())), float(((rate + up) / t[: len(up)]).min())


def _shape(law: Law) -> Law:
    """A law of the same shape, the same for all of that shape."""
    if isinstance(law, TruncatedNormal):
        return TruncatedNormal(0.0, 1.0, law.lower, law.upper)
    return Uniform(-1.0, 1.0) if isinstance(law, Uniform) else Normal(0.0, 1.0)


@functools.lru_cache(64)
def _cumulants(law: Law) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers t, and the logarithms of the expectations of exp(t * square) and exp(-t * square), in variances.

    Of a law without an end the former is finite for small t alone, and there are so many of them.
    """
    t = torch.logspace(-6, 3, 300, dtype=torch.float64, device="cpu")
    low, high = max(law.bounds[0], -_REACH), min(law.bounds[1], _REACH)
    middles = low + (high - low) * (torch.arange(2048, dtype=torch.float64, device="cpu") + 0.5) / 2048
    shares = law.pdf(middles)
    shares, squares = shares / shares.sum(), ((middles - law.mean) / law.std) ** 2
    up, down = (torch.logsumexp(sign * t[:, None] * squares + shares.log(), 1) for sign in (1, -1))
    return t, up if high - low < _REACH else up[t < 0.4 * law.std**2], down


def _symmetric(law: Law) -> bool:
    return isinstance(law, (Uniform, Normal)) or (isinstance(law, TruncatedNormal) and law.lower == -law.upper)


def distance_from(law: Law, seen: Evidence, dtype: torch.dtype) -> float:
    """The greatest distance, at the edges, of the sample's distribution function from that of the rounded law."""
    low, high = law.support(dtype)
    expected = torch.where(seen.edges > high, 1.0, torch.where(seen.edges < low, 0.0, law.cdf(seen.edges)))
    return float((seen.below - expected).abs().max()) if seen.sample else 0.0


@functools.lru_cache(512)
def moments_of(law: Law, dtype: torch.dtype) -> Moments:
    """The moments of a law as `dtype` rounds its values."""
    low, high = law.support(dtype)
    if not law.std or low == high:
        return Moments(low, 0.0, low, high)
    if dtype.itemsize < 4:
        return Moments(*_rounded(law, dtype), low, high)
    return Moments(law.mean, law.std, low, high)


def _rounded(law: Law, dtype: torch.dtype) -> tuple[float, float]:
    """Mean and std of a law on the values that a half-precision dtype has."""
    low, high = law.support(dtype)
    values = _values(dtype)
    values = values[(values >= low) & (values <= high)]
    below = law.cdf((values[1:] + values[:-1]) / 2)
    shares = torch.cat([below, below.new_ones(1)]) - torch.cat([below.new_zeros(1), below])
    mean = float(shares @ values)
    return mean, math.sqrt(float(shares @ (values - mean) ** 2))


@functools.cache
def _values(dtype: torch.dtype) -> Tensor:
    """All finite values of a dtype of two bytes or one, in order, in float64."""
    bits = torch.int16 if dtype.itemsize == 2 else torch.int8
    info = torch.iinfo(bits)
    every = torch.arange(info.min, info.max + 1, dtype=bits, device="cpu").view(dtype).double()
    found: Tensor = every[every.isfinite()].sort().values
    return found


@functools.lru_cache(256)
def edges_for(law: Law, dtype: torch.dtype) -> Tensor:
    """Where to count values that may have a law: at equal distances, each between two values of `dtype` if it is short.

    So the probability below an edge is exactly that of the law before it is rounded.
    """
    wide = _TAIL * (law.std or 1.0)
    low, high = max(law.bounds[0], law.mean - wide), min(law.bounds[1], law.mean + wide)
    if low == high:
        low, high = law.mean - wide, law.mean + wide
    return between(torch.linspace(low, high, _BINS + 1, dtype=torch.float64, device="cpu"), dtype)


def between(edges: Tensor, dtype: torch.dtype) -> Tensor:
    """The edges as the dtype has them or, if it is short, in the middle between two of its values."""
    if dtype.itemsize >= 4:
        return edges.to(dtype).double()
    values = _values(dtype)
    middles = (values[1:] + values[:-1]) / 2
    near = torch.searchsorted(middles, edges).clamp(max=len(middles) - 1)
    found: Tensor = middles[near]
    return found
