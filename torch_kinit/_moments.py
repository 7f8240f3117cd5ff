"""What values an initializer gives: their mean, standard deviation, least and greatest."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from torch_kinit import _elementary as elementary
from torch_kinit import _initializers as scaled
from torch_kinit import _structured as structured
from torch_kinit._recipes import Recipe
from torch_kinit._samplers import mills_ratio


class Moments(NamedTuple):
    """A law's mean, standard deviation and support."""

    mean: float
    std: float
    low: float
    high: float


_SCALED = {  # the arguments with which each name calls variance_scaling_
    scaled.lecun_normal_: (1.0, "fan_in", "truncated_normal"),
    scaled.lecun_uniform_: (1.0, "fan_in", "uniform"),
    scaled.glorot_normal_: (1.0, "fan_avg", "truncated_normal"),
    scaled.glorot_uniform_: (1.0, "fan_avg", "uniform"),
    scaled.he_normal_: (2.0, "fan_in", "truncated_normal"),
    scaled.he_uniform_: (2.0, "fan_in", "uniform"),
}


def moments(recipe: Recipe, keras_shape: tuple[int, ...], fans: tuple[int, int] | None) -> Moments | None:
    """The law of a variable's values, or None where it is not known (a function of somebody else's)."""
    if not recipe.ours:
        return None
    given = recipe.settled
    if fans is not None:
        law = _SCALED.get(recipe.function) or (given["scale"], given["mode"], given["distribution"])
        return _scaled(fans, *law)
    if recipe.function is elementary.random_normal_:
        return Moments(given["mean"], given["std"], -math.inf, math.inf)
    if recipe.function is elementary.random_uniform_:
        return _uniform(given["low"], given["high"])
    if recipe.function is elementary.trunc_normal_:
        return _truncated(given["mean"], given["std"], given["lower"], given["upper"])
    if recipe.function is structured.orthogonal_ and 0 not in keras_shape:
        # The squares of a unit vector of n entries sum to one; n is the longer side of the flattened matrix.
        gain, longer = abs(given["gain"]), max(keras_shape[-1], math.prod(keras_shape[:-1]))
        return Moments(0.0, gain / math.sqrt(longer), -gain, gain)
    return _of_values(recipe, keras_shape)


def _of_values(recipe: Recipe, keras_shape: tuple[int, ...]) -> Moments | None:
    """Those of an initializer without chance, from its very values."""
    if recipe.accepts("generator") or 0 in keras_shape:
        return None
    if recipe.function in (elementary.zeros_, elementary.ones_):
        value = float(recipe.function is elementary.ones_)
        return Moments(value, 0.0, value, value)
    given: Any = recipe.arguments.get("value", 0.0)
    if recipe.function is elementary.constant_ and isinstance(given, (int, float)):
        return Moments(float(given), 0.0, float(given), float(given))
    values = torch.empty(keras_shape, dtype=torch.float64, device="cpu")
    recipe(values, layout="keras")
    spread = float(values.std(correction=0))
    return Moments(float(values.mean()), spread, float(values.min()), float(values.max()))


def _uniform(low: float, high: float) -> Moments:
    return Moments((low + high) / 2, (high - low) / math.sqrt(12), low, high)


def _scaled(fans: tuple[int, int], scale: float, mode: str, distribution: str) -> Moments:
    std = math.sqrt(scaled.scaled_variance(fans, scale, mode))
    reach = {"uniform": math.sqrt(3), "truncated_normal": 2 / scaled.TRUNCATED_STD}.get(distribution, math.inf)
    return Moments(0.0, std, -reach * std, reach * std)


def _truncated(mean: float, std: float, lower: float, upper: float) -> Moments:
    """With z in [a, b]: the mean m = (f(a) - f(b)) / P and variance 1 + (a*f(a) - b*f(b)) / P - m*m."""
    sign = 1.0
    if lower + upper < 0:
        lower, upper, sign = -upper, -lower, -1.0
    at_lower, at_upper = _density_share(lower, upper)
    m = at_lower - at_upper
    squares = (lower * at_lower if at_lower else 0.0) - (upper * at_upper if at_upper else 0.0)
    variance = max(0.0, 1 + squares - m * m)
    edges = sorted((mean + sign * std * lower, mean + sign * std * upper)) if std else [mean, mean]
    return Moments(mean + sign * std * m, std * math.sqrt(variance), edges[0], edges[1])


def _density_share(a: float, b: float) -> tuple[float, float]:
    """The normal density at a and at b over the probability between them, for b >= |a|."""
    falls = math.exp((a - b) * (a + b) / 2) if math.isfinite(b) and math.isfinite(a) else 0.0
    if a > 1:  # from Mills' ratio, in which nothing underflows
        share = 1 / (mills_ratio(a) - (falls * mills_ratio(b) if falls else 0.0))
        return share, share * falls
    between = (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2))) / 2
    share = math.exp(-a * a / 2) / math.sqrt(2 * math.pi) / between
    at_b = math.exp(-b * b / 2) / math.sqrt(2 * math.pi) / between if math.isfinite(b) else 0.0
    return share, at_b
