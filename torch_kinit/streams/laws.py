"""Laws as data: the distributions that initializers draw from, with their moments, support, density and CDF."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from torch_kinit import checks

Values = TypeVar("Values", float, Tensor)

# What a draw can reach, in standard deviations: 5.8 to 6.7 in float32, 8.6 in float64.
_REACH = 9.0


class Law:
    """A distribution of real numbers: frozen, comparable, and written to JSON by its name and arguments.

    `mean` and `std` are those of its values, `bounds` the least and the greatest one, or infinity. `pdf` and `cdf` take
    a number or a tensor of any floating dtype and device, and give the same.
    """

    mean: float
    std: float
    bounds: tuple[float, float]
    drawn: ClassVar[bool] = True  # whether a source can draw it, each value by itself

    def _set(self, **values: Any) -> None:
        """Set attributes, once."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def support(self, dtype: torch.dtype) -> tuple[float, float]:
        """The least and the greatest value that a tensor of `dtype` can get.

        Raises:
            ValueError: the law does not fit in `dtype`.
        """
        return representable(*self.bounds, dtype)

    def pdf(self, x: Values) -> Values:
        """The density at `x`; infinite at the value of a law that has one only."""
        return self._at(x, self._pdf, lambda x, value: torch.where(x == value, math.inf, 0.0))

    def cdf(self, x: Values) -> Values:
        """The probability of a value of at most `x`."""
        return self._at(x, self._cdf, torch.ge)

    def to_dict(self) -> dict[str, Any]:
        """The law as JSON has it; `law_from_dict` reads it."""
        arguments = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        return {"law": type(self).__name__, "arguments": [x if math.isfinite(x) else str(x) for x in arguments]}

    def _at(
        self, x: Values, function: Callable[[Tensor], Tensor], of_one_value: Callable[[Tensor, float], Tensor]
    ) -> Values:
        """A function of `x`, computed in float32 at least; of a law of one value also of that, as the dtype has it."""
        if not isinstance(x, Tensor):
            return float(self._at(torch.tensor(float(x), dtype=torch.float64, device="cpu"), function, of_one_value))
        wide = x if x.dtype.itemsize >= 4 else x.float()
        return (function(wide) if self.std else of_one_value(wide, self.support(x.dtype)[0])).to(x.dtype)

    def _pdf(self, x: Tensor) -> Tensor:
        raise ValueError(f"{self} has no density: its values are given one by one.")

    _cdf = _pdf

    def _within(self, x: Tensor, share: Tensor) -> Tensor:
        """`share`, and exactly 0 and 1 from the bounds on."""
        low, high = self.bounds
        return torch.where(x >= high, 1.0, torch.where(x <= low, 0.0, share.clamp(0, 1)))


@dataclass(frozen=True)
class Constant(Law):
    """One number.

    Args:
        value: a finite number.

    Example:
        >>> Constant(0.5).mean, Constant(0.5).std, Constant(0.5).cdf(0.4)
        (0.5, 0.0, 0.0)
    """

    value: float
    drawn: ClassVar[bool] = False

    def __post_init__(self) -> None:
        value = checks.number("value", self.value)
        self._set(value=value, mean=value, std=0.0, bounds=(value, value))

    def support(self, dtype: torch.dtype) -> tuple[float, float]:
        """The number as `dtype` rounds it, twice."""
        if abs(self.value) > torch.finfo(dtype).max:
            raise ValueError(f"`value` {self.value!r} does not fit in {dtype}.")
        return (_round(self.value, torch.finfo(dtype), round),) * 2


@dataclass(frozen=True)
class Uniform(Law):
    """The uniform law U[low, high].

    Args:
        low: the least value.
        high: the greatest value, more than `low`.

    Example:
        >>> import torch
        >>> law = Uniform(-1.0, 1.0)
        >>> law.mean, law.cdf(0.5), law.pdf(torch.tensor([0.0, 2.0]))
        (0.0, 0.75, tensor([0.5000, 0.0000]))
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        low, high = checks.interval("low", self.low, "high", self.high)
        self._set(low=low, high=high, mean=(low + high) / 2, std=(high - low) / math.sqrt(12), bounds=(low, high))

    def _pdf(self, x: Tensor) -> Tensor:
        return ((x >= self.low) & (x <= self.high)).to(x.dtype) / (self.high - self.low)

    def _cdf(self, x: Tensor) -> Tensor:
        return ((x - self.low) / (self.high - self.low)).clamp(0, 1)


@dataclass(frozen=True)
class Normal(Law):
    """The normal law N(mean, std**2).

    Args:
        mean: the mean, finite.
        std: the standard deviation, 0 or more.

    Example:
        >>> Normal(1.0, 2.0).cdf(1.0)
        0.5
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        mean, std = checks.number("mean", self.mean), checks.spread("std", self.std)
        self._set(mean=mean, std=std, bounds=(-math.inf, math.inf) if std else (mean, mean))

    def support(self, dtype: torch.dtype) -> tuple[float, float]:
        """All finite numbers of `dtype`; the mean alone if `std` is 0."""
        return _normal_support(self.mean, self.std, -math.inf, math.inf, dtype)

    def _pdf(self, x: Tensor) -> Tensor:
        z = (x - self.mean) / self.std
        return torch.exp(-z * z / 2) / (self.std * math.sqrt(2 * math.pi))

    def _cdf(self, x: Tensor) -> Tensor:
        share: Tensor = torch.special.erfc((x - self.mean) / (-self.std * math.sqrt(2)))
        return share / 2


@dataclass(frozen=True, init=False)
class TruncatedNormal(Law):
    """N(loc, scale**2) given that the value lies from `loc + lower * scale` to `loc + upper * scale`.

    The arguments are those of `trunc_normal_`: the mean and standard deviation *before* truncation, kept as `loc` and
    `scale`. The attributes `mean` and `std` are those of the values, after truncation.

    Args:
        mean: the mean before truncation.
        std: the standard deviation before truncation, 0 or more.
        lower: the lower bound in standard deviations from the mean; -inf for none.
        upper: the upper bound likewise, more than `lower`.

    Example:
        >>> law = TruncatedNormal(0.0, 1.0, -2.0, 2.0)
        >>> round(law.std, 6), law.bounds, law.cdf(2.0)
        (0.879626, (-2.0, 2.0), 1.0)
    """

    loc: float
    scale: float
    lower: float
    upper: float

    def __init__(self, mean: float, std: float, lower: float = -2.0, upper: float = 2.0) -> None:
        mean, std = checks.number("mean", mean), checks.spread("std", std)
        lower, upper = checks.interval("lower", lower, "upper", upper, infinite=True)
        self._set(loc=mean, scale=std, lower=lower, upper=upper)
        self._set(bounds=(mean + std * lower, mean + std * upper) if std else (mean, mean))

    @property
    def mean(self) -> float:  # type: ignore[override]
        return self.loc + self.scale * self._moments[0]

    @property
    def std(self) -> float:  # type: ignore[override]
        return self.scale * self._moments[1]

    @property
    def _moments(self) -> tuple[float, float, float]:  # only when asked for: torch.compile cannot trace the cache
        return _standard_moments(self.lower, self.upper)

    def __repr__(self) -> str:
        return f"TruncatedNormal(mean={self.loc!r}, std={self.scale!r}, lower={self.lower!r}, upper={self.upper!r})"

    def support(self, dtype: torch.dtype) -> tuple[float, float]:
        """The least and the greatest value that a tensor of `dtype` can get; an error if the law does not fit."""
        return _normal_support(self.loc, self.scale, self.lower, self.upper, dtype)

    def _pdf(self, x: Tensor) -> Tensor:
        origin = max(self.lower, -self.upper, 0.0)
        density = _relative_density((x - self.loc) / self.scale, origin) / (self.scale * self._moments[2])
        low, high = self.bounds
        return torch.where((x >= low) & (x <= high), density, 0.0)

    def _cdf(self, x: Tensor) -> Tensor:
        z, lower, upper, mass = (x - self.loc) / self.scale, self.lower, self.upper, self._moments[2]
        if lower > 0:
            share = (_tail_mass(z.new_tensor(lower), lower) - _tail_mass(z, lower)) / mass
        elif upper < 0:
            share = (_tail_mass(-z, -upper) - _tail_mass(z.new_tensor(-lower), -upper)) / mass
        else:
            below = math.erfc(-lower * math.sqrt(0.5))
            share = (torch.special.erfc(z * -math.sqrt(0.5)) - below) * (math.sqrt(math.pi / 2) / mass)
        return self._within(x, share)


def _relative_density(z: Tensor, origin: float) -> Tensor:
    """The density of N(0, 1) at `z` over that at `origin`."""
    ratio: Tensor = torch.exp((z - origin) * (z + origin) / -2)
    return ratio


def _tail_mass(z: Tensor, origin: float) -> Tensor:
    """The integral of `_relative_density` from `z`, which is positive, to infinity: it does not underflow with it."""
    mills: Tensor = torch.special.erfcx(z * math.sqrt(0.5)) * math.sqrt(math.pi / 2)
    return _relative_density(z, origin) * mills


@dataclass(frozen=True)
class Entries(Law):
    """Mean, std, least and greatest of values that depend on each other, as an orthogonal matrix', or are given."""

    mean: float
    std: float
    least: float
    greatest: float
    drawn: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._set(bounds=(self.least, self.greatest))


LAWS: dict[str, Callable[..., Law]] = {
    cls.__name__: cls for cls in (Constant, Uniform, Normal, TruncatedNormal, Entries)
}


def law_from_dict(data: Any) -> Law:
    """The law that `to_dict` wrote."""
    return LAWS[data["law"]](*(float(x) if isinstance(x, str) else x for x in data["arguments"]))


def mills_ratio(x: float) -> float:
    """(1 - cdf(x)) / pdf(x) of N(0, 1), for x > 0."""
    if x < 15:
        return math.sqrt(math.pi / 2) * math.exp(x * x / 2) * math.erfc(x / math.sqrt(2))
    # Its asymptotic series 1/x - 1/x**3 + 3/x**5 - 15/x**7 ...; exp(x*x/2) overflows from 38 on.
    term = total = 1 / x
    for k in range(1, 12):
        term *= -(2 * k - 1) / (x * x)
        total += term
    return total


# Tanh-sinh quadrature: nodes in (-1, 1) and their weights.
_QUADRATURE = [
    (math.tanh(math.pi / 2 * math.sinh(k / 32)), math.cosh(k / 32) / math.cosh(math.pi / 2 * math.sinh(k / 32)) ** 2)
    for k in range(-112, 113)
]


@functools.lru_cache(64)
def _standard_moments(lower: float, upper: float) -> tuple[float, float, float]:
    """Mean and std of a truncated standard normal, and its probability over the density where that is greatest.

    By quadrature in the distance from the bound nearer to zero, in which nothing underflows or cancels.
    """
    sign = 1.0
    if lower + upper < 0:
        lower, upper, sign = -upper, -lower, -1.0
    origin = max(lower, 0.0)
    first = max(lower, -math.sqrt(80)) - origin
    last = min(upper - origin, 80 / (origin + math.sqrt(origin * origin + 80)))  # e**-40 of the density at the origin
    half, middle = (last - first) / 2, (first + last) / 2
    values = [(middle + half * x, w) for x, w in _QUADRATURE]
    weighted = [(d, w * math.exp(-d * (origin + d / 2))) for d, w in values]
    total = math.fsum(w for _, w in weighted)
    m = math.fsum(d * w for d, w in weighted) / total
    variance = math.fsum((d - m) ** 2 * w for d, w in weighted) / total
    return sign * (origin + m), math.sqrt(variance), half * total * math.pi / 64  # the nodes' step is 1 / 32


def _normal_support(mean: float, std: float, lower: float, upper: float, dtype: torch.dtype) -> tuple[float, float]:
    """The least and greatest value of `dtype` inside the bounds; an error if the law does not fit in `dtype`."""
    largest = torch.finfo(dtype).max
    least = mean + std * max(lower, min(upper, 0.0) - _REACH)
    most = mean + std * min(upper, max(lower, 0.0) + _REACH)
    if max(-least, most) > largest:
        raise ValueError(
            f"`mean`={mean!r} and `std`={std!r} give values up to {max(-least, most):.3g}, "
            f"which {dtype} cannot hold (its largest is {largest:.3g})."
        )
    if std == 0:
        return (_round(mean, torch.finfo(dtype), round),) * 2
    if lower == -math.inf and upper == math.inf:
        return -largest, largest
    return representable(max(mean + std * lower, -largest), min(mean + std * upper, largest), dtype)


def representable(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
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
