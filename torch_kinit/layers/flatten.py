"""Layers that follow a Flatten of channels-first data, whose inputs Keras has in another order."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from torch import nn

from torch_kinit.layers.variable import Variable

_MARK = "_kinit_flattened"  # an attribute of the module, so that a copy, a pickle and a LazyLinear keep it
# Roles with the inputs on their first axis in Keras' layout, and tensors of layers of an RNN above the first.
_OF_INPUTS = ("kernel", "gamma", "beta", "alpha", "moving_mean", "moving_variance")
_ABOVE = re.compile(r"_l[1-9]\d*(_reverse)?$")


def is_marked(module: nn.Module) -> bool:
    """Whether it was said of a module what its inputs are flattened from."""
    return _MARK in vars(module)


def sizes_of(module: nn.Module) -> tuple[int, ...] | None:
    """The (channels, *spatial) that a module's inputs are flattened from, if it was marked so."""
    sizes: tuple[int, ...] | None = vars(module).get(_MARK)
    return sizes


def mark(module: nn.Module, sizes: tuple[int, ...] | None) -> None:
    """Keep with a module what its inputs are flattened from; None for channels last, as Keras has them."""
    setattr(module, _MARK, sizes)


def is_of_inputs(variable: Variable) -> bool:
    """Whether a variable has the inputs of the layer on its first axis in Keras' layout."""
    one = variable.blocks == 1 and variable.row is None
    return one and variable.role in _OF_INPUTS and not _ABOVE.search(variable.tensor)


def with_sizes(variables: Sequence[Variable], sizes: tuple[int, ...]) -> list[Variable]:
    """The variables of a layer whose inputs are flattened from these sizes."""
    return [dataclasses.replace(v, flattened=sizes) if is_of_inputs(v) else v for v in variables]
