"""What a comparison finds: differences with their measured effect on training, and notes on what it cannot see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

ELSE = math.inf
NONE, MODEL = "(no layer)", "(the model)"  # in the place of a layer's name


class Weight(NamedTuple):
    """What a difference does to training: the size by which it is ranked, and the measurement in words."""

    size: float
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Difference:
    """One difference between a Keras layer and the module that stands for it.

    Example:
        >>> import torch_kinit as kinit
        >>> from torch import nn
        >>> norm = {"class_name": "LayerNormalization", "config": {"name": "norm"}}
        >>> config = {"class_name": "Sequential", "config": {"layers": [norm]}}
        >>> (found,) = kinit.compare(config, nn.Sequential(nn.LayerNorm(4))).differences
        >>> found.layer, found.module, found.what, found.keras, found.port, found.mend
        ('norm', '0', 'epsilon', 'epsilon=0.001', 'eps=1e-05', 'port[0].eps = 0.001')
    """

    layer: str  # the name of the Keras layer
    module: str  # the path of the torch module
    what: str  # the argument: "epsilon"
    keras: str
    port: str
    weight: Weight
    mend: str  # a line of torch


@dataclass(frozen=True)
class Note:
    """What a config tells and the modules of a port cannot show: a line to look after by hand."""

    layer: str
    what: str
    mend: str


def _loss(size: float) -> Weight:
    return Weight(size, f"loss off by up to {size:g} within 20 steps")


# Measured on six models, with Adam, SGD with momentum and RMSprop: an exact port of each with one thing changed.
# The largest difference of the loss within the first 20 steps.
MEASURED = {
    "function": Weight(ELSE, "computes something else"),
    "trained": Weight(ELSE, "trains other weights"),
    "unmeasured": Weight(0.0, "not measured"),
    "none": Weight(0.0, "no effect measured"),
    "dropout": Weight(0.5, "not measured: other noise in training"),
    "learning_rate": Weight(ELSE, "other steps"),
    "softmax": _loss(2.4),
    "frozen_norm": _loss(2.4),
    "norm_and_activation": _loss(1.4),
    "flatten": _loss(1.1),
    "momentum": Weight(0.9, "loss equal, but outputs in eval mode off by 0.25 to 0.9 after 20 steps"),
    "leaky_relu": _loss(0.3),
    "batch_norm_epsilon": _loss(0.28),
    "padding": _loss(0.2),
    "sigmoid": _loss(0.2),
    "conv_transpose": _loss(0.04),
    "last_step": _loss(0.04),
    "max_pool": _loss(0.03),
    "penalty": _loss(0.03),
    "second_bias": _loss(0.02),
    "norm_epsilon": _loss(0.02),
    "mask": _loss(0.018),
    "gelu": _loss(0.007),
    "align_corners": _loss(0.005),
    "dampening": _loss(3),
    "alpha": _loss(1),
    "clip": _loss(0.56),
    "rho": _loss(0.44),
    "accumulator": _loss(0.4),
    "schedule": _loss(0.31),
    "weight_decay": _loss(0.22),
    "rmsprop_epsilon": _loss(0.14),
    "momentum_decay": _loss(0.05),
    "sparse": _loss(0.003),
    "adam_epsilon": _loss(0.002),
}


def effect(cause: str) -> str:
    """What a measured cause does to the loss, for a note."""
    return f"loss off by up to {MEASURED[cause].size:g}"
