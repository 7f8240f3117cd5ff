"""Activations, a row each: what they are called in Keras and in torch, what they compute, and which a layer has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Row(NamedTuple):
    """What torch has for an activation of Keras."""

    function: str
    cls: type[nn.Module] | None = None
    defaults: Mapping[str, Any] = {}  # of Keras, where the activation is given by its name; under torch's names
    like: str = ""  # of the activations that a law is known to suit, the one that scales a signal as this one does
    fixed: Mapping[str, Any] = {}  # what the function must be given; Keras' axis is the last


TABLE = {
    "linear": Row("", like="linear"),
    "relu": Row("F.relu", nn.ReLU, like="relu"),
    "relu6": Row("F.relu6", nn.ReLU6, like="relu"),
    "leaky_relu": Row("F.leaky_relu", nn.LeakyReLU, {"negative_slope": 0.2}, "leaky_relu"),
    "elu": Row("F.elu", nn.ELU, {"alpha": 1.0}, "elu"),
    "celu": Row("F.celu", nn.CELU, {"alpha": 1.0}, "elu"),
    "selu": Row("F.selu", nn.SELU, like="selu"),
    "gelu": Row("F.gelu", nn.GELU, {"approximate": "none"}, "gelu"),
    "silu": Row("F.silu", nn.SiLU, like="silu"),
    "mish": Row("F.mish", nn.Mish, like="silu"),
    "softplus": Row("F.softplus", nn.Softplus, {"beta": 1.0}, "elu"),
    "softsign": Row("F.softsign", nn.Softsign, like="tanh"),
    "tanh": Row("torch.tanh", nn.Tanh, like="tanh"),
    "sigmoid": Row("torch.sigmoid", nn.Sigmoid, like="sigmoid"),
    "log_sigmoid": Row("F.logsigmoid", nn.LogSigmoid),
    "hard_sigmoid": Row("F.hardsigmoid", nn.Hardsigmoid, like="sigmoid"),
    "hard_silu": Row("F.hardswish", nn.Hardswish, like="silu"),
    "hard_tanh": Row("F.hardtanh", nn.Hardtanh, {"min_val": -1.0, "max_val": 1.0}, "tanh"),
    "hard_shrink": Row("F.hardshrink", nn.Hardshrink, {"lambd": 0.5}),
    "soft_shrink": Row("F.softshrink", nn.Softshrink, {"lambd": 0.5}),
    "tanh_shrink": Row("F.tanhshrink", nn.Tanhshrink),
    "softmax": Row("F.softmax", nn.Softmax, fixed={"dim": -1}),
    "log_softmax": Row("F.log_softmax", nn.LogSoftmax, fixed={"dim": -1}),
    "glu": Row("F.glu", nn.GLU),
    "exponential": Row("torch.exp"),
}
_ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}
TORCH = (*(row.cls for row in TABLE.values() if row.cls), nn.Threshold, nn.RReLU, nn.Softmin, nn.Softmax2d, nn.PReLU)


class Activation(NamedTuple):
    """An activation; the name "" is one of the program's own, of which nothing is known."""

    name: str
    arguments: Mapping[str, Any] = {}

    def __str__(self) -> str:
        defaults = self._row.defaults
        given = _written({k: v for k, v in self.arguments.items() if v != defaults.get(k, 0) or k in self._of_torch})
        return f"{self.name}({', '.join(given)})" if given else self.name

    def __call__(self, x: Tensor) -> Tensor:
        """What it makes of a tensor in Keras' layout."""
        if self.is_bounded:
            return _bounded(x, **self.arguments)
        if self.name == "linear":
            return x
        module, _, name = self._row.function.partition(".")
        value: Tensor = getattr(F if module == "F" else torch, name)(x, **{**self._row.fixed, **self.arguments})
        return value

    @property
    def is_known(self) -> bool:
        return self.name in TABLE

    @property
    def is_bounded(self) -> bool:
        """Whether it is Keras' ReLU with arguments that torch has no function for."""
        return self.name == "relu" and bool(self.arguments)

    @property
    def code(self) -> str:
        """As torch writes it, of x."""
        if self.is_bounded:
            return _bounded_code(**self.arguments)
        given = {**self._row.fixed, **self.arguments}
        return f"{self._row.function}({', '.join(['x', *self._unlike_torch(given)])})" if self._row.function else "x"

    @property
    def module(self) -> str:
        """As torch makes a module of it; "" where it has none."""
        if self.is_bounded or self._row.cls is None:
            return ""
        given = {**self._row.fixed, **self.arguments}
        return f"nn.{self._row.cls.__name__}({', '.join(self._unlike_torch(given))})"

    @property
    def _row(self) -> Row:
        return TABLE.get(self.name, Row(""))

    @property
    def _of_torch(self) -> Mapping[str, Any]:
        """Torch's defaults, where they are not Keras'."""
        cls, defaults = self._row.cls, self._row.defaults
        return {k: getattr(cls(), k) for k, v in defaults.items() if getattr(cls(), k) != v} if cls else {}

    def _unlike_torch(self, given: Mapping[str, Any]) -> list[str]:
        defaults = {**self._row.defaults, **self._of_torch}
        return _written({key: value for key, value in given.items() if key not in defaults or value != defaults[key]})


LINEAR, UNKNOWN = Activation("linear"), Activation("")


def _written(arguments: Mapping[str, Any]) -> list[str]:
    return [f"{key}={plain(value)!r}" for key, value in arguments.items()]


def plain(value: Any) -> Any:
    """A number of a config without the noise of the float32 that some of them went through: 0.3, not 0.30000001."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _bounded(x: Tensor, max_value: float | None, negative_slope: float, threshold: float) -> Tensor:
    """Keras' ReLU layer with its three arguments."""
    x = torch.where(x >= threshold, x, negative_slope * (x - threshold))
    return x if max_value is None else x.clamp(max=max_value)


def _bounded_code(max_value: float | None, negative_slope: float, threshold: float) -> str:
    if not negative_slope and not threshold:
        return f"x.clamp(0, {max_value:g})"
    top = "" if max_value is None else f".clamp(max={max_value:g})"
    return f"torch.where(x >= {threshold:g}, x, {negative_slope:g} * (x - {threshold:g})){top}"


def named(value: Any) -> Activation:
    """An activation as a config has it: by name, or as an object with arguments."""
    if isinstance(value, Mapping):
        inner = value.get("config")
        if value.get("class_name") in ("function", "__lambda__", None) and not isinstance(inner, str):
            return UNKNOWN
        if isinstance(inner, Mapping) and value.get("class_name") != "function":
            return of_layer(str(value["class_name"]), inner) or UNKNOWN
        value = inner
    name = "linear" if value is None else _ALIASES.get(str(value), str(value))
    return Activation(name, TABLE[name].defaults) if name in TABLE else UNKNOWN


def of_layer(class_name: str, config: Mapping[str, Any]) -> Activation | None:
    """The activation that a Keras layer is, or has for its outputs; None if it has no such argument."""
    if class_name == "ReLU":
        return _relu(config)
    if class_name == "LeakyReLU":
        return Activation("leaky_relu", {"negative_slope": config.get("negative_slope", config.get("alpha", 0.3))})
    if class_name == "ELU":
        return Activation("elu", {"alpha": config.get("alpha", 1.0)})
    if class_name == "Softmax":
        axis = config.get("axis", -1)
        return Activation("softmax", {} if axis == -1 else {"dim": axis}) if isinstance(axis, int) else UNKNOWN
    return named(config["activation"]) if "activation" in config else None


def _relu(config: Mapping[str, Any]) -> Activation:
    """Keras' ReLU layer, which may be one of four functions."""
    slope, threshold = config.get("negative_slope") or 0, config.get("threshold") or 0
    top = config.get("max_value")
    if threshold or (top is not None and (slope or top != 6)):
        return Activation("relu", {"max_value": top, "negative_slope": slope, "threshold": threshold})
    if slope:
        return Activation("leaky_relu", {"negative_slope": slope})
    return Activation("relu" if top is None else "relu6")


def of_module(module: nn.Module) -> Activation | None:
    """What an activation module computes; None for another module."""
    for name, row in TABLE.items():
        if row.cls and isinstance(module, row.cls):  # ReLU6 before the Hardtanh that it is made of
            return Activation(name, {key: getattr(module, key) for key in row.defaults})
    return Activation(type(module).__name__) if isinstance(module, TORCH) else None


# What a port may have in place of Keras' activation: each as Keras has it by default, and as torch or a layer has it.
USUAL = (
    *(Activation(name, row.defaults) for name, row in TABLE.items() if name != "glu"),
    Activation("gelu", {"approximate": "tanh"}),
    *(Activation("leaky_relu", {"negative_slope": slope}) for slope in (0.01, 0.3)),
)
