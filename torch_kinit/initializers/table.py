"""The initializers there are, one row each: the function, Keras' class, names and config for it, and its law."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch_kinit.initializers import others, plain, scaled, structured
from torch_kinit.streams.laws import Constant, Entries, Law

Initializer = Callable[..., Any]
Shape = tuple[int, ...]


class Row(NamedTuple):
    """An initializer, and what Keras calls it.

    `law` is for those whose law is not what they ask a source to draw; from all arguments and the Keras-layout shape.
    """

    function: Initializer
    class_name: str | None = None  # in Keras
    names: tuple[str, ...] = ()  # beside the class
    config: Mapping[str, str] = {}  # from the keys of its Keras config to the arguments of `function`
    law: Callable[[Mapping[str, Any], Shape], Law | None] | None = None

    @property
    def random(self) -> bool:
        """Whether it draws."""
        return "generator" in PARAMETERS[self.function]


def _orthogonal(arguments: Mapping[str, Any], shape: Shape) -> Law | None:
    if 0 in shape:
        return None
    # The squares of a unit vector sum to one; it has as many entries as the longer side of the flattened matrix.
    gain, longer = abs(float(arguments["gain"])), max(shape[-1], math.prod(shape[:-1]))
    return Entries(0.0, gain / math.sqrt(longer), -gain, gain)


def _constant(arguments: Mapping[str, Any], shape: Shape) -> Law | None:
    value = arguments["value"]
    return Constant(value) if isinstance(value, (int, float)) else None


_SCALED = {name: name for name in ("scale", "mode", "distribution")}
_STFT = {name: name for name in ("side", "window", "scaling", "periodic")}
ROWS = [
    Row(plain.zeros_, "Zeros", ("zeros", "zero"), law=lambda arguments, shape: Constant(0.0)),
    Row(plain.ones_, "Ones", ("ones", "one"), law=lambda arguments, shape: Constant(1.0)),
    Row(plain.constant_, "Constant", ("constant",), {"value": "value"}, _constant),
    Row(plain.array_),
    Row(plain.unit_forget_bias_, names=("unit_forget_bias",)),
    Row(plain.random_normal_, "RandomNormal", ("random_normal", "normal"), {"mean": "mean", "stddev": "std"}),
    Row(plain.random_uniform_, "RandomUniform", ("random_uniform", "uniform"), {"minval": "low", "maxval": "high"}),
    Row(
        plain.trunc_normal_,
        "TruncatedNormal",
        ("truncated_normal", "trunc_normal"),
        {"mean": "mean", "stddev": "std"},
    ),
    Row(scaled.variance_scaling_, "VarianceScaling", ("variance_scaling",), _SCALED),
    Row(scaled.glorot_uniform_, "GlorotUniform", ("glorot_uniform",)),
    Row(scaled.glorot_normal_, "GlorotNormal", ("glorot_normal",)),
    Row(scaled.lecun_normal_, "LecunNormal", ("lecun_normal",)),
    Row(scaled.lecun_uniform_, "LecunUniform", ("lecun_uniform",)),
    Row(scaled.he_normal_, "HeNormal", ("he_normal",)),
    Row(scaled.he_uniform_, "HeUniform", ("he_uniform",)),
    Row(
        structured.orthogonal_,
        "Orthogonal",
        ("orthogonal", "OrthogonalInitializer"),
        {"gain": "gain"},
        _orthogonal,
    ),
    Row(structured.identity_, "Identity", ("identity", "IdentityInitializer"), {"gain": "gain"}),
    Row(structured.stft_, "STFT", ("stft", "STFTInitializer"), _STFT),
    Row(others.sinusoids_, names=("sinusoids",)),
    Row(others.time_step_bias_, names=("time_step_bias",), law=others.time_step_law),
]
# The arguments of each function, with their defaults.
PARAMETERS: dict[Initializer, dict[str, Any]] = {
    row.function: {
        name: p.default for name, p in inspect.signature(row.function).parameters.items() if name != "tensor"
    }
    for row in ROWS
}
BY_FUNCTION = {row.function: row for row in ROWS}
BY_NAME = {name: row for row in ROWS for name in (row.class_name, *row.names) if name}
