"""Closed-form laws and a goodness-of-fit check, with no library but the standard one.

Sized once for n = 2**18: the right law gives sqrt(n) * D of 0.7 to 1.2; with the 0.8796 factor forgotten it is 17, for
a plain normal of the right standard deviation 8.5 to 9.3. The bound 2.7 has p = 1e-6 (Kolmogorov's law).
"""

import math
from dataclasses import dataclass

import torch

N = 1 << 18
KS_BOUND = 2.7


def _phi(x):
    return 0.5 * torch.special.erfc(-x / math.sqrt(2))


@dataclass(frozen=True)
class Uniform:
    """U[low, high]."""

    low: float
    high: float
    kurtosis = 1.8

    @property
    def mean(self):
        return (self.low + self.high) / 2

    @property
    def std(self):
        return (self.high - self.low) / math.sqrt(12)

    def cdf(self, x):
        return ((x - self.low) / (self.high - self.low)).clamp(0, 1)


@dataclass(frozen=True)
class Normal:
    """N(mean, std**2)."""

    mean: float
    std: float
    low = -math.inf
    high = math.inf
    kurtosis = 3.0

    def cdf(self, x):
        return _phi((x - self.mean) / self.std)


@dataclass(frozen=True)
class TruncatedAtTwo:
    """A normal of scale `sigma` before truncation at two of it: its own std is 0.8796 * sigma."""

    mean: float
    sigma: float
    kurtosis = 2.3655  # scipy.stats.truncnorm(-2, 2).stats("k") + 3

    @property
    def low(self):
        return self.mean - 2 * self.sigma

    @property
    def high(self):
        return self.mean + 2 * self.sigma

    @property
    def std(self):
        return 0.8796256610342398 * self.sigma  # scipy.stats.truncnorm.std(-2, 2)

    def cdf(self, x):
        share = math.erf(2 / math.sqrt(2))
        return ((_phi((x - self.mean) / self.sigma) - (1 - share) / 2) / share).clamp(0, 1)


def ks(values, cdf):
    """sqrt(n) times the greatest distance between the empirical and the exact distribution function."""
    x = values.detach().cpu().double().flatten().sort().values
    n = x.numel()
    exact = cdf(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    return math.sqrt(n) * float(torch.maximum(steps[1:] - exact, exact - steps[:-1]).max())


def check_law(values, law):
    """Raise AssertionError unless `values` (n = 2**18 or more) fit `law` in support, mean, std and shape."""
    x = values.detach().cpu().double().flatten()
    n = x.numel()
    assert n >= N, "too few values to see a wrong law"
    assert bool(torch.isfinite(x).all())
    assert float(x.min()) >= law.low, (float(x.min()), law)
    assert float(x.max()) <= law.high, (float(x.max()), law)
    assert abs(float(x.mean()) - law.mean) <= 6 * law.std / math.sqrt(n)
    relative_error = math.sqrt((law.kurtosis - 1) / (4 * n))  # of a standard deviation: 0.707/sqrt n for a normal
    assert abs(float(x.std()) / law.std - 1) <= 6 * relative_error, (float(x.std()), law)
    distance = ks(x, law.cdf)
    assert distance <= KS_BOUND, (distance, law)
