"""Activations: which one follows a layer, by a module's class or by what a function did, and the law that suits it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# The law that holds the scale of a signal before an activation; where it is none, Glorot's minds the gradient, too.
LAWS = {
    **dict.fromkeys(("relu", "leaky_relu", "gelu", "silu", "elu"), "he_normal"),
    **dict.fromkeys(("linear", "tanh", "sigmoid"), "glorot_normal"),
    "selu": "lecun_normal",
}

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Threshold)
_BY_CLASS: dict[type[nn.Module], str] = {
    **dict.fromkeys(RECTIFIERS, "relu"),
    **dict.fromkeys((nn.LeakyReLU, nn.PReLU, nn.RReLU), "leaky_relu"),
    **dict.fromkeys((nn.Tanh, nn.Hardtanh, nn.Softsign), "tanh"),
    **dict.fromkeys((nn.Sigmoid, nn.Hardsigmoid), "sigmoid"),
    **dict.fromkeys((nn.ELU, nn.CELU, nn.Softplus), "elu"),
    **dict.fromkeys((nn.SiLU, nn.Mish, nn.Hardswish), "silu"),
    nn.GELU: "gelu",
    nn.SELU: "selu",
}
# What may stand between two layers as a function: tried on the output of the one, compared with the input of the other.
_FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], ...]] = {
    "linear": (lambda x: x,),
    "relu": (torch.relu, nn.functional.relu6),
    "tanh": (torch.tanh,),
    "gelu": (nn.functional.gelu, lambda x: nn.functional.gelu(x, approximate="tanh")),
    "selu": (torch.selu,),
    "silu": (nn.functional.silu,),
    "elu": (nn.functional.elu,),
    "leaky_relu": (nn.functional.leaky_relu,),
    "sigmoid": (torch.sigmoid,),
}


def class_of(module: nn.Module) -> str | None:
    return next((_BY_CLASS[cls] for cls in type(module).__mro__ if cls in _BY_CLASS), None)


def function_from(before: Tensor | None, after: Tensor) -> str | None:
    """The function that makes one tensor of the other, bit for bit."""
    if before is None or before.shape != after.shape or before.dtype != after.dtype or before.device != after.device:
        return None
    before, after = before.detach(), after.detach()
    found = (n for n, functions in _FUNCTIONS.items() for f in functions if torch.equal(f(before), after))
    return next(found, None)


def looks_rectified(tensor: Tensor) -> bool:
    values = tensor.detach()
    return values.numel() > 0 and float(values.min()) == 0 and float((values == 0).float().mean()) > 0.1
