"""The bounds of an audit hold for the exact distributions, and each test can fail."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import torch_kinit as kinit
from torch_kinit.inspection.audit.bounds import (
    SHARES,
    distance_bound,
    distance_from,
    edges_for,
    misfits,
    moments_of,
    square_bounds,
)
from torch_kinit.inspection.audit.evidence import measure

CHANCE = 1e-6
LAWS = {
    "uniform": (kinit.Uniform(-0.1, 0.1), stats.uniform(-0.1, 0.2)),
    "normal": (kinit.Normal(0.0, 0.05), stats.norm(0, 0.05)),
    "truncated": (kinit.TruncatedNormal(0.0, 0.05), stats.truncnorm(-2, 2, 0, 0.05)),
    "one-sided": (kinit.TruncatedNormal(1.0, 0.05, -1.0, 3.0), stats.truncnorm(-1, 3, 1, 0.05)),
}


def drawn(law, count, seed=0):
    """Values of a law by its quantiles, from NumPy's numbers."""
    exact = next(exact for ours, exact in LAWS.values() if ours == law)
    return torch.from_numpy(exact.ppf(np.random.default_rng(seed).random(count)))


def seen_of(values, law, **more):
    center = law.mean if abs(law.mean) > law.std else 0.0
    return measure(values, edges_for(law, values.dtype), center=center, **more)[0]


@pytest.mark.parametrize(("law", "exact"), LAWS.values(), ids=LAWS)
def test_evidence_is_what_numpy_and_scipy_measure(law, exact):
    """Sums, extremes and the distance are those of the values, whatever the strides; all are counted where few."""
    values = drawn(law, 60 * 50 * 7).reshape(60, 50, 7).float()
    for view in (values, values.permute(2, 0, 1), values.expand(1, 60, 50, 7)[0]):
        seen = seen_of(view, law)
        numbers = values.double().numpy()
        assert (seen.count, seen.sample) == (21000, 21000)
        assert seen.mean == pytest.approx(numbers.mean(), rel=1e-5, abs=1e-8)
        assert seen.std == pytest.approx(numbers.std(), rel=1e-5)
        assert (seen.low, seen.high) == (numbers.min(), numbers.max())
        whole = stats.kstest(numbers.ravel(), exact.cdf).statistic
        assert whole - 0.012 <= distance_from(law, seen, view.dtype) <= whole + 1e-5


@pytest.mark.parametrize(("law", "exact"), LAWS.values(), ids=LAWS)
def test_moments_are_scipys(law, exact):
    """Mean and std, of bfloat16 those of rounded quantiles."""
    mean, variance = (float(moment) for moment in exact.stats("mv"))
    assert moments_of(law, torch.float32)[:2] == pytest.approx((mean, variance**0.5), rel=1e-4, abs=1e-12)
    rounded = torch.from_numpy(exact.ppf((np.arange(1 << 17) + 0.5) / (1 << 17))).bfloat16()
    rounded = rounded.clamp(*law.support(torch.bfloat16)).double()
    of_half = moments_of(law, torch.bfloat16)
    assert of_half[:2] == pytest.approx((float(rounded.mean()), float(rounded.std())), rel=3e-4, abs=1e-7)


@pytest.mark.parametrize("count", [1, 2, 5, 30, 1000])
@pytest.mark.parametrize("chance", [1e-2, 1e-6])
def test_bounds_are_kept_by_exact_distributions(count, chance):
    """Of normal values SciPy's normal, chi-squared and Kolmogorov laws pass no bound more often than said."""
    rate = math.log(2 / chance) / count
    mean = math.sqrt(2 * rate)
    assert 2 * stats.norm.sf(mean * math.sqrt(count)) <= chance
    under, over = square_bounds(kinit.Normal(1.0, 3.0), rate)
    assert max(stats.chi2.sf(count * over, count), stats.chi2.cdf(count * under, count)) <= chance / 2
    wider = 1 - (1 - under) * 0.6, 1 + (over - 1) * 0.6
    assert count < 1000 or stats.chi2.sf(count * wider[1], count) + stats.chi2.cdf(count * wider[0], count) > chance
    assert stats.kstwo.sf(distance_bound(count, chance), count) <= chance * (1 + 1e-9)


@pytest.mark.parametrize("rate", [1.0, 0.01])
@pytest.mark.parametrize(("law", "exact"), LAWS.values(), ids=LAWS)
def test_chernoffs_bounds_are_the_best_of_many(law, exact, rate):
    """SciPy's integrals of exp(t * square), by the density, give the same bounds at the best of many t."""
    mean, variance = (float(moment) for moment in exact.stats("mv"))
    low, high = max(exact.support()[0], mean - 0.45), min(exact.support()[1], mean + 0.45)

    def bound(t):
        def integrand(x):
            return math.exp(t * (x - mean) ** 2 / variance + exact.logpdf(x))

        return (rate + math.log(integrate.quad(integrand, low, high, epsabs=1e-13, epsrel=1e-9)[0])) / t

    most = 0.4 if low == mean - 0.45 else 30.0
    expected = max(map(bound, -np.geomspace(1e-3, 30, 60))), min(map(bound, np.geomspace(1e-3, most, 60)))
    assert square_bounds(law, rate) == pytest.approx((max(0.0, expected[0]), expected[1]), rel=2e-3, abs=2e-3)


@pytest.mark.parametrize(("law", "exact"), LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("count", [2, 9, 400])
def test_false_alarms_are_as_rare_as_said(law, exact, count):
    """At one in ten for each of four tests, as they share it, no more than that of many draws is off."""
    off = [misfits(law, seen_of(drawn(law, count, seed), law), torch.float64, 0.1) for seed in range(100)]
    for test in ("mean", "std", "range", "law"):
        most = stats.binom.ppf(1 - 1e-6, 100, 0.1 * SHARES[test])  # 13 to 53 of the hundred
        assert sum(any(misfit.test == test for misfit in each) for each in off) <= most
    assert not any(misfit.test in ("support", "values") for each in off for misfit in each)


@pytest.mark.parametrize("count", [1, 2, 30, 10_000])
def test_the_range_of_values_has_its_exact_law(count):
    """The share between the extremes is SciPy's beta: just enough of it passes, a little less does not."""
    law, exact = LAWS["normal"]
    for chance, off in ((0.9, False), (1.1, True)):
        share = stats.beta.ppf(CHANCE * SHARES["range"] / chance, count - 1, 2) if count > 1 else 0.0
        low, high = exact.ppf((1 - share) / 2), exact.ppf((1 + share) / 2)
        values = torch.tensor([low, high] if count > 1 else [0.0], dtype=torch.float64)
        seen = dataclasses.replace(seen_of(values, law), count=count)
        found = [misfit.test for misfit in misfits(law, seen, torch.float64, CHANCE)]
        assert ("range" in found) == (off and count > 1)


def spoilt(test):
    """Values of the truncated law for which one test must fail."""
    law = LAWS["truncated"][0]
    values = drawn(law, 20000)
    match test:
        case "none":
            pass
        case "support":
            values[17] = 0.1001
        case "mean":
            values = (values + 0.003).clamp(-0.1, 0.1)
        case "std":
            values = values * 0.95
        case "range":
            values = values.clamp(-0.09, 0.09)
        case "law":
            values = torch.where(values.abs() < 0.04, 0.04 * values.sign(), values)
        case "values":
            values[5] = math.inf
    return law, values


@pytest.mark.parametrize("test", ["none", "support", "mean", "std", "range", "law", "values"])
def test_each_test_can_fail(test):
    """Values that are spoilt in one way fail the test of that name; those that are not fail none."""
    law, values = spoilt(test)
    failed = {misfit.test for misfit in misfits(law, seen_of(values, law), torch.float64, CHANCE)}
    assert test in failed if test != "none" else failed == set()


def test_blocks_and_a_row_are_measured_by_themselves():
    """Each block's values alone, without the row that is left out."""
    values = torch.arange(24.0).reshape(6, 4)
    edges = edges_for(kinit.Uniform(0.0, 24.0), torch.float32)
    first, second = measure(values, edges, blocks=2, without=-2)
    assert (first.count, first.mean, first.low, first.high) == (12, 5.5, 0.0, 11.0)
    assert (second.count, second.mean, second.low, second.high) == (8, 17.5, 12.0, 23.0)


def test_a_sample_sees_every_column():
    """Of large tensors a sample is counted whose steps visit all columns alike."""
    columns = torch.zeros(1024, 1024)
    columns[:, ::2] = 1.0
    seen = measure(columns, edges_for(kinit.Uniform(0.0, 1.0), torch.float32))[0]
    assert 60_000 <= seen.sample <= 65_536
    assert float(seen.below[100]) == pytest.approx(0.5, abs=0.01)
