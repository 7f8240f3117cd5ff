"""Activations: which one follows a layer, by a module's class or by what a function did, and the law that suits it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torch_kinit.inspection.activations import TABLE, USUAL

# The law that holds the scale of a signal before an activation; where it is none, Glorot's minds the gradient, too.
LAWS = {
    **dict.fromkeys(("relu", "leaky_relu", "gelu", "silu", "elu"), "he_normal"),
    **dict.fromkeys(("linear", "tanh", "sigmoid"), "glorot_normal"),
    "selu": "lecun_normal",
}

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Threshold)
_BY_CLASS = {row.cls: row.like for row in TABLE.values() if row.cls and row.like}
_BY_CLASS |= {nn.Threshold: "relu", nn.PReLU: "leaky_relu", nn.RReLU: "leaky_relu"}
# What may stand between two layers as a function: tried on the output of the one, compared with the input of the other.
_FUNCTIONS = [(activation, like) for activation in USUAL if (like := TABLE[activation.name].like)]


def class_of(module: nn.Module) -> str | None:
    """Which activation of `LAWS` a module is, or is like."""
    return next((_BY_CLASS[cls] for cls in type(module).__mro__ if cls in _BY_CLASS), None)


def function_from(before: Tensor | None, after: Tensor) -> str | None:
    """Which activation of `LAWS` makes one tensor of the other, bit for bit, or one like it."""
    if before is None or before.shape != after.shape or before.dtype != after.dtype or before.device != after.device:
        return None
    before, after = before.detach(), after.detach()
    return next((like for activation, like in _FUNCTIONS if torch.equal(activation(before), after)), None)


def looks_rectified(tensor: Tensor) -> bool:
    values = tensor.detach()
    return values.numel() > 0 and float(values.min()) == 0 and float((values == 0).float().mean()) > 0.1
