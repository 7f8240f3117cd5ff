"""The activations of Keras in torch, and which one a layer of Keras has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from torch_kinit.keras.recorded import Call

Function = Callable[[Tensor], Tensor]

# By the name in Keras: the function, and how to write it in torch. The last axis is the channels'.
TABLE: dict[str, tuple[Function, str]] = {
    "linear": (lambda x: x, "x"),
    "relu": (F.relu, "F.relu(x)"),
    "gelu": (F.gelu, "F.gelu(x)"),
    "gelu, tanh form": (partial(F.gelu, approximate="tanh"), 'F.gelu(x, approximate="tanh")'),
    "silu": (F.silu, "F.silu(x)"),
    "sigmoid": (torch.sigmoid, "torch.sigmoid(x)"),
    "softmax": (partial(F.softmax, dim=-1), "F.softmax(x, dim=-1)"),
    "log_softmax": (partial(F.log_softmax, dim=-1), "F.log_softmax(x, dim=-1)"),
    "tanh": (torch.tanh, "torch.tanh(x)"),
    "leaky_relu, slope 0.3": (partial(F.leaky_relu, negative_slope=0.3), "F.leaky_relu(x, 0.3)"),
    "leaky_relu, slope 0.2": (partial(F.leaky_relu, negative_slope=0.2), "F.leaky_relu(x, 0.2)"),
    "leaky_relu, slope 0.01": (partial(F.leaky_relu, negative_slope=0.01), "F.leaky_relu(x, 0.01)"),
    "elu": (F.elu, "F.elu(x)"),
    "selu": (F.selu, "F.selu(x)"),
    "relu6": (F.relu6, "F.relu6(x)"),
    "softplus": (F.softplus, "F.softplus(x)"),
    "softsign": (F.softsign, "F.softsign(x)"),
    "hard_sigmoid": (F.hardsigmoid, "F.hardsigmoid(x)"),
    "hard_silu": (F.hardswish, "F.hardswish(x)"),
    "mish": (F.mish, "F.mish(x)"),
    "exponential": (torch.exp, "torch.exp(x)"),
}
_ALIASES = {"swish": "silu", "leaky_relu": "leaky_relu, slope 0.2", "hard_swish": "hard_silu", "softmax": "softmax"}
_AROUND_ONE = ("TimeDistributed", "SpectralNormalization")  # layers that do to the outputs what the one inside does
_WITH_ACTIVATION = ("Dense", "EinsumDense", "Conv", "DepthwiseConv", "SeparableConv", "Activation")


def activation_of(call: Call) -> tuple[str, Function, str] | None:
    """The name of a layer's activation, the function, and how to write it in torch; None if not known."""
    if not call.own:
        return None
    kind, config = call.class_name, call.config
    while kind in _AROUND_ONE and isinstance(inner := config.get("layer"), Mapping):
        kind, config = str(inner.get("class_name")), inner.get("config") or {}
    if kind.startswith(_WITH_ACTIVATION) and not kind.startswith("ConvLSTM"):
        return _named(config.get("activation"))
    return _of_layer(kind, config)


def _of_layer(kind: str, config: Mapping[str, Any]) -> tuple[str, Function, str] | None:
    """The activation that a layer of this class is."""
    if kind == "LeakyReLU":
        slope = float(config.get("negative_slope", config.get("alpha", 0.3)))
        name = f"leaky_relu, slope {slope:g}"
        return name, partial(F.leaky_relu, negative_slope=slope), f"F.leaky_relu(x, {slope:g})"
    if kind == "ReLU":
        if config.get("negative_slope") or config.get("threshold"):
            return None
        top = config.get("max_value")
        if top is None:
            return "relu", *TABLE["relu"]
        return (
            ("relu6" if top == 6 else f"relu to {top:g}"),
            partial(torch.clamp, min=0, max=top),
            f"x.clamp(0, {top:g})",
        )
    if kind == "ELU":
        alpha = float(config.get("alpha", 1.0))
        return ("elu" if alpha == 1 else f"elu, alpha {alpha:g}"), partial(F.elu, alpha=alpha), f"F.elu(x, {alpha:g})"
    if kind == "Softmax":
        axis = config.get("axis", -1)
        return ("softmax", partial(F.softmax, dim=axis), "F.softmax(x, dim=...)") if isinstance(axis, int) else None
    return None


def _named(value: Any) -> tuple[str, Function, str] | None:
    """An activation as the config of a layer has it: a name, or a layer or function in a dict."""
    if isinstance(value, Mapping):
        inner = value.get("config")
        if isinstance(inner, Mapping):
            return _of_layer(str(value.get("class_name")), inner)
        value = inner
    name = _ALIASES.get(str(value), str(value)) if value is not None else "linear"
    return (name, *TABLE[name]) if name in TABLE else None
