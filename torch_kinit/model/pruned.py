"""Layers that torch.nn.utils.prune has pruned: they hold weight_orig, a buffer weight_mask, and weight, the product."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from torch import nn

from torch_kinit.layers.variable import Variable
from torch_kinit.torch_internals import buffers_of, forward_pre_hooks, parameters_of

_ORIGINAL, _MASK = "_orig", "_mask"


def pruning_hooks(module: nn.Module) -> list[Any]:
    """The hooks that multiply a module's parameters by their masks before each forward pass."""
    prune = sys.modules.get("torch.nn.utils.prune")  # imported by whoever has pruned
    hooks = forward_pre_hooks(module).values() if prune else ()
    return [hook for hook in hooks if isinstance(hook, prune.BasePruningMethod)]  # type: ignore[union-attr]


def is_pruned(module: nn.Module, original: str) -> bool:
    """Whether a module's parameter of this name, such as "weight_orig", is what a mask is applied to."""
    if not original.endswith(_ORIGINAL) or original not in parameters_of(module):
        return False
    return original.removesuffix(_ORIGINAL) + _MASK in buffers_of(module) and bool(pruning_hooks(module))


def as_stored(variable: Variable, module: nn.Module) -> Variable:
    """A variable of a module's layout with the name under which the module has it, pruned or not."""
    if "torch.nn.utils.prune" not in sys.modules:
        return variable
    path, _, attribute = variable.tensor.rpartition(".")
    holders = {path: module, **dict(module.named_modules())} if path else {"": module}
    pruned = path in holders and is_pruned(holders[path], attribute + _ORIGINAL)
    return dataclasses.replace(variable, tensor=variable.tensor + _ORIGINAL) if pruned else variable


def mask_again(module: nn.Module) -> None:
    """Let a pruned module make its weights anew, as it does before each forward pass."""
    for hook in pruning_hooks(module):
        hook(module, ())
