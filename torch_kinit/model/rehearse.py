"""Rehearsing what a plan decides, on copies without storage: so that wrong arguments raise before anything changes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks, torch_internals
from torch_kinit.initializers.axes import fans_of, keras_shape, resolve_fans
from torch_kinit.initializers.names import recipe
from torch_kinit.initializers.plain import array_, constant_, ones_, zeros_
from torch_kinit.initializers.recipe import Recipe
from torch_kinit.layers.variable import Variable
from torch_kinit.model.targets import Target
from torch_kinit.streams.laws import Constant, Law

Found = tuple[tuple[int, int] | None, Law | None]  # the fans that an initializer uses, and the law of its values
Rehearsals = dict[Any, Found]


def wants_parameter(value: Recipe) -> bool:
    """Whether an initializer gets the torch parameter itself even where there are Keras' views of it."""
    return not value.ours or "layout" in value.arguments


def rehearse_once(value: Recipe, variable: Variable | None, target: Target, known: Rehearsals) -> Found:
    """What `rehearse` finds, kept for tensors that are alike."""
    t = target.tensor
    alike = value, variable, t.shape, t.stride(), target.kind, type(t), t.dtype, t.device, t.is_inference()
    if alike not in known:
        known[alike] = rehearse(value, variable, target)
    return known[alike]


def rehearse(value: Recipe, variable: Variable | None, target: Target) -> Found:
    """Run `value` on a meta copy of a tensor, so that wrong arguments raise now; the fans and law that it will have."""
    tensor = target.tensor
    if not tensor.dtype.is_floating_point and target.kind == "buffer":
        return _rehearse_exact(value, variable, tensor)
    checks.tensor(tensor, "parameter")
    if not value.ours:
        return None, None
    with torch.inference_mode(False):  # in which views would not know what they are views of
        view, layout = first_view(value, variable, tensor)
        given = variable.fans if variable is not None and layout == "keras" else None
        law = value.law_for(view, layout, given)
        if not value.accepts("fans"):
            return None, law
        shape, used = keras_shape(view.shape, layout), value.arguments.get("fans")
        return resolve_fans(used, shape) if used is not None else given or fans_of(shape, "keras"), law


def first_view(value: Recipe, variable: Variable | None, tensor: Tensor) -> tuple[Tensor, str]:
    """The first tensor that an initializer gets to fill, on the meta device, and its layout."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if variable is None or wants_parameter(value):
        return copy, value.arguments.get("layout", "torch")
    views = variable.views(copy)
    of_copy = all(torch_internals.is_base_of(copy, view) for view in views)
    if not of_copy or sum(view.numel() for view in views) != copy.numel():
        raise ValueError("its layout must give views that hold each element of the tensor once")
    return variable.as_in_keras(views[0]), "keras"


def _rehearse_exact(value: Recipe, variable: Variable | None, tensor: Tensor) -> Found:
    """Raise if `value` cannot fill a buffer of a dtype without fractions, or a complex one; its law if it is zero."""
    if value == recipe("zeros"):
        return None, Constant(0.0)
    if variable is not None:
        raise ValueError(f"a counter of dtype {tensor.dtype} can only be 'zeros' or kinit.skip, not {value}.")
    if value.ours:
        exact_values(value, tensor)
    return None, None


def exact_values(value: Recipe, tensor: Tensor) -> Tensor:
    """The number or array that `value` gives to each element, in the dtype of `tensor`."""
    if value.function not in (zeros_, ones_, constant_, array_):
        raise ValueError(f"a buffer of dtype {tensor.dtype} takes a number, an array or your function, not {value}.")
    given = checks.array(value.arguments.get("value", float(value.function is ones_)))
    if given.shape not in (tensor.shape, ()):
        raise ValueError(f"the array has shape {tuple(given.shape)}, the buffer's is {tuple(tensor.shape)}.")
    dtype = tensor.dtype
    if not (dtype.is_complex or (not given.is_complex() and torch.equal(given.to(dtype).to(given.dtype), given))):
        raise ValueError(f"a buffer of dtype {tensor.dtype} cannot hold {value} exactly.")
    return given.to(tensor.dtype).expand(tensor.shape)
