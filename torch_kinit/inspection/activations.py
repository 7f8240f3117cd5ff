"""Activations of both sides in one form: a name, and the arguments that change what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from torch_kinit.inspection.compare.differences import plain
from torch_kinit.inspection.compare.keras_graph import Unit
from torch_kinit.keras.draws import snake_case

# By Keras' name: the torch class, and its arguments with Keras' defaults as an activation's name gives them.
TWINS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "relu": (nn.ReLU, {}),
    "relu6": (nn.ReLU6, {}),
    "leaky_relu": (nn.LeakyReLU, {"negative_slope": 0.2}),
    "elu": (nn.ELU, {"alpha": 1.0}),
    "celu": (nn.CELU, {"alpha": 1.0}),
    "selu": (nn.SELU, {}),
    "gelu": (nn.GELU, {"approximate": "none"}),
    "silu": (nn.SiLU, {}),
    "mish": (nn.Mish, {}),
    "softplus": (nn.Softplus, {"beta": 1.0}),
    "softsign": (nn.Softsign, {}),
    "tanh": (nn.Tanh, {}),
    "sigmoid": (nn.Sigmoid, {}),
    "log_sigmoid": (nn.LogSigmoid, {}),
    "hard_sigmoid": (nn.Hardsigmoid, {}),
    "hard_silu": (nn.Hardswish, {}),
    "hard_tanh": (nn.Hardtanh, {"min_val": -1.0, "max_val": 1.0}),
    "hard_shrink": (nn.Hardshrink, {"lambd": 0.5}),
    "soft_shrink": (nn.Softshrink, {"lambd": 0.5}),
    "tanh_shrink": (nn.Tanhshrink, {}),
    "softmax": (nn.Softmax, {}),
    "log_softmax": (nn.LogSoftmax, {}),
    "glu": (nn.GLU, {}),
}
_ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}
TORCH = (*(cls for cls, _ in TWINS.values()), nn.Threshold, nn.RReLU, nn.Softmin, nn.Softmax2d, nn.PReLU)


class Activation(NamedTuple):
    """An activation; the name "" is one of the program's own, of which nothing is known."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        given = ", ".join(f"{key}={plain(value)!r}" for key, value in self.arguments.items())
        return f"{self.name}({given})" if given else self.name

    @property
    def torch(self) -> str:
        """As torch makes it; "" where it has no such module."""
        if self.name not in TWINS:
            return ""
        cls, defaults = TWINS[self.name]
        written = {k: v for k, v in self.arguments.items() if k in defaults and v != _default(cls, k)}
        dim = "dim=-1" if self.name in ("softmax", "log_softmax") else ""
        return f"nn.{cls.__name__}({dim or ', '.join(f'{key}={plain(value)!r}' for key, value in written.items())})"


def _default(cls: type[nn.Module], name: str) -> Any:
    return getattr(cls(), name)


def of_unit(unit: Unit) -> Activation | None:
    """What a Keras layer does to its outputs, or is; None for nothing."""
    if unit.class_name == "ReLU":
        return _relu(unit)
    if unit.class_name in ("LeakyReLU", "ELU", "Softmax"):
        name = snake_case(unit.class_name).replace("re_lu", "relu")
        slope = unit.get("negative_slope", unit.get("alpha", 0.3))
        given = {"leaky_relu": {"negative_slope": slope}, "elu": {"alpha": unit.get("alpha", 1.0)}}
        return Activation(name, given.get(name, {}))
    return named(unit.get("activation"))


def named(value: Any) -> Activation | None:
    """An activation as a config has it: by name, or as an object with arguments."""
    if isinstance(value, Mapping):
        inner = value.get("config")
        if value.get("class_name") in ("function", "__lambda__", None) and not isinstance(inner, str):
            return Activation("", {})
        if isinstance(inner, Mapping) and value.get("class_name") != "function":
            return of_unit(Unit("", str(value["class_name"]), inner)) or Activation("", {})
        value = inner
    if value is None or value == "linear":
        return None
    name = _ALIASES.get(str(value), str(value))
    return Activation(name, dict(TWINS[name][1])) if name in TWINS else Activation("", {})


def _relu(unit: Unit) -> Activation:
    """Keras' ReLU layer, which may be one of three functions."""
    top, slope, threshold = unit.get("max_value"), unit.get("negative_slope") or 0, unit.get("threshold") or 0
    if threshold or (top is not None and (slope or top != 6)):
        return Activation("relu", {"max_value": top, "negative_slope": slope, "threshold": threshold})
    if slope:
        return Activation("leaky_relu", {"negative_slope": slope})
    return Activation("relu" if top is None else "relu6", {})


def of_module(module: nn.Module) -> Activation | None:
    """What an activation module computes; None for another module."""
    for name, (cls, arguments) in TWINS.items():
        if isinstance(module, cls):  # ReLU6 before the Hardtanh that it is made of
            return Activation(name, {key: getattr(module, key) for key in arguments})
    return Activation(type(module).__name__, {}) if isinstance(module, TORCH) else None
