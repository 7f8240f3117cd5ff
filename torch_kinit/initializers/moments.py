"""What values an initializer gives: their mean, standard deviation, least and greatest."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from torch_kinit.initializers import plain, scaled, structured
from torch_kinit.initializers.recipe import Recipe


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
    if recipe.function is plain.random_normal_:
        reach = math.inf if given["std"] else 0.0
        return Moments(given["mean"], given["std"], given["mean"] - reach, given["mean"] + reach)
    if recipe.function is plain.random_uniform_:
        return _uniform(given["low"], given["high"])
    if recipe.function is plain.trunc_normal_:
        return _truncated(given["mean"], given["std"], given["lower"], given["upper"])
    if recipe.function is structured.orthogonal_ and 0 in keras_shape:
        return None
    if recipe.function is structured.orthogonal_:
        # The squares of a unit vector of n entries sum to one; n is the longer side of the flattened matrix.
        gain, longer = abs(given["gain"]), max(keras_shape[-1], math.prod(keras_shape[:-1]))
        return Moments(0.0, gain / math.sqrt(longer), -gain, gain)
    return _of_values(recipe, keras_shape)


def _of_values(recipe: Recipe, keras_shape: tuple[int, ...]) -> Moments | None:
    """Those of an initializer without chance, from its very values."""
    if 0 in keras_shape or recipe.arguments.get("others") is not None:
        return None
    if recipe.function in (plain.zeros_, plain.ones_):
        value = float(recipe.function is plain.ones_)
        return Moments(value, 0.0, value, value)
    given: Any = recipe.arguments.get("value", 0.0)
    if recipe.function is plain.constant_ and isinstance(given, (int, float)):
        return Moments(float(given), 0.0, float(given), float(given))
    shape = keras_shape
    if recipe.arguments.get("layout") == "torch" and len(shape) > 1:
        shape = (shape[-1], shape[-2], *shape[:-2])
    values = torch.empty(shape, dtype=torch.float64, device="cpu")
    recipe(values, layout="keras")
    spread = float(values.std(correction=0))
    return Moments(float(values.mean()), spread, float(values.min()), float(values.max()))


def _uniform(low: float, high: float) -> Moments:
    return Moments((low + high) / 2, (high - low) / math.sqrt(12), low, high)


def _scaled(fans: tuple[int, int], scale: float, mode: str, distribution: str) -> Moments:
    std = math.sqrt(scaled.scaled_variance(fans, scale, mode))
    reach = {"uniform": math.sqrt(3), "truncated_normal": 2 / scaled.TRUNCATED_STD}.get(distribution, math.inf)
    return Moments(0.0, std, -reach * std, reach * std)


# Tanh-sinh quadrature: nodes in (-1, 1) and their weights.
_NODES = [
    (math.tanh(math.pi / 2 * math.sinh(k / 32)), math.cosh(k / 32) / math.cosh(math.pi / 2 * math.sinh(k / 32)) ** 2)
    for k in range(-112, 113)
]


def _truncated(mean: float, std: float, lower: float, upper: float) -> Moments:
    """By quadrature in the distance from the bound nearer to zero, in which nothing underflows or cancels."""
    sign = 1.0
    if lower + upper < 0:
        lower, upper, sign = -upper, -lower, -1.0
    origin = max(lower, 0.0)
    first = max(lower, -math.sqrt(80)) - origin
    last = min(upper - origin, 80 / (origin + math.sqrt(origin * origin + 80)))  # e**-40 of the density at the origin
    half, middle = (last - first) / 2, (first + last) / 2
    values = [(middle + half * x, w) for x, w in _NODES]
    weighted = [(d, w * math.exp(-d * (origin + d / 2))) for d, w in values]
    total = math.fsum(w for _, w in weighted)
    m = math.fsum(d * w for d, w in weighted) / total
    variance = math.fsum((d - m) ** 2 * w for d, w in weighted) / total
    edges = sorted((mean + sign * std * lower, mean + sign * std * upper)) if std else [mean, mean]
    return Moments(mean + sign * std * (origin + m), std * math.sqrt(variance), edges[0], edges[1])
