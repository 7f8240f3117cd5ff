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
_BINS = 256
_REACH, _TAIL = 9.0, 5.0  # in stds from the mean: where a normal law counts as ended, and where its last edge is


class Misfit(NamedTuple):
    """A test that failed: what was measured, and what the law says; of the distance to the law its bound."""

    test: str  # "values", "support", "mean", "std", "range" or "law"
    measured: float
    expected: float
    excess: float  # how many times its bound the distance is


class Moments(NamedTuple):
    """Of a law as a dtype rounds it: mean, std, fourth central moment, and the least and greatest value."""

    mean: float
    std: float
    fourth: float
    low: float
    high: float

    @property
    def widest(self) -> float:
        """The greatest distance of a value from the mean, that of a normal law at its reach."""
        return max(min(self.high - self.mean, _REACH * self.std), min(self.mean - self.low, _REACH * self.std))


def misfits(law: Law, seen: Evidence, dtype: torch.dtype, chance: float) -> list[Misfit]:
    """The tests that evidence of values fails, each with a probability of at most `chance` if they have the law.

    The bounds are Bernstein's for mean and variance; for the mean of a symmetric law, which is strictly sub-Gaussian,
    Hoeffding's with its own variance; for the variance of normal values Laurent and Massart's; and Massart's
    2 exp(-2 n D**2) for the greatest distance D between the two distribution functions, here at fixed edges.
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
            yield from _too_narrow(law, seen, dtype, chance)
            distance, bound = distance_from(law, seen, dtype), distance_bound(seen.sample, chance)
            if distance > bound:
                yield Misfit("law", distance, bound, distance / bound)


def _too_narrow(law: Law, seen: Evidence, dtype: torch.dtype, chance: float) -> Iterator[Misfit]:
    """Extremes that are nearer to the mean than those of so many values can be: P(all <= x) = cdf(x)**n, exactly."""
    last = torch.finfo(dtype).eps
    beyond = 1 - law.cdf(seen.high + last * abs(seen.high)), law.cdf(seen.low - last * abs(seen.low))
    for share, value in zip(beyond, (seen.high, seen.low), strict=True):
        logarithm = seen.count * math.log1p(-min(share, 1 - 1e-16))
        if logarithm < math.log(chance / 2):
            yield Misfit("range", value, math.nan, logarithm / math.log(chance / 2))


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
    n, more, found = seen.count, math.log(2 / chance), []
    variance, widest = moments.std**2, moments.widest
    rate = more / n
    off = seen.mean - moments.mean
    bound = math.sqrt(2 * variance * rate) if _symmetric(law) else _bernstein(variance, widest, rate)
    bound += 1e-6 * moments.std + 1e-7 * abs(moments.mean)  # what float32 sums lose
    if abs(off) > bound:
        found.append(Misfit("mean", seen.mean, moments.mean, abs(off) / bound))
    off = seen.square_about(moments.mean) - variance
    if isinstance(law, Normal):
        bound = variance * 2 * (math.sqrt(rate) + (rate if off > 0 else 0.0))
    else:
        bound = _bernstein(moments.fourth - variance**2, max(widest**2 - variance, variance), rate)
    bound += 2e-5 * variance + 1e-6 * moments.mean**2
    if abs(off) > bound:
        found.append(Misfit("std", seen.std, moments.std, abs(off) / bound))
    return found


def _bernstein(variance: float, widest: float, rate: float) -> float:
    """The distance that a mean has from its expectation with probability exp(-rate * n) at most, on either side."""
    linear = widest * rate / 3
    return linear + math.sqrt(linear**2 + 2 * max(variance, 0.0) * rate)


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
        return Moments(low, 0.0, 0.0, low, high)
    if dtype.itemsize < 4:
        return Moments(*_rounded(law, dtype), low, high)
    return Moments(law.mean, law.std, _fourth(law), low, high)


def _fourth(law: Law) -> float:
    if isinstance(law, Uniform):
        return 1.8 * law.std**4
    if isinstance(law, Normal):
        return 3 * law.std**4
    low = max(law.bounds[0], law.mean - _REACH * law.std)
    high = min(law.bounds[1], law.mean + _REACH * law.std)
    middles = low + (high - low) * (torch.arange(4096, dtype=torch.float64, device="cpu") + 0.5) / 4096
    density = law.pdf(middles)
    return float(((middles - law.mean) ** 4 * density).sum() / density.sum())


def _rounded(law: Law, dtype: torch.dtype) -> tuple[float, float, float]:
    """Mean, std and fourth moment of a law on the values that a half-precision dtype has."""
    low, high = law.support(dtype)
    values = _values(dtype)
    values = values[(values >= low) & (values <= high)]
    below = law.cdf((values[1:] + values[:-1]) / 2)
    shares = torch.cat([below, below.new_ones(1)]) - torch.cat([below.new_zeros(1), below])
    mean = float(shares @ values)
    away = values - mean
    square = float(shares @ away**2)
    return mean, math.sqrt(square), float(shares @ away**4)


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
