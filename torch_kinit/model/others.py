"""Initializers of somebody else's: drawing with them, and telling whether they fill the tensor that they are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torch_kinit.initializers.recipe import Recipe
from torch_kinit.model.writing import global_generators_from
from torch_kinit.shards import local_of
from torch_kinit.streams.key import Key
from torch_kinit.streams.source import Source
from torch_kinit.torch_internals import is_intercepted, version_of


def fill_by_other(recipe: Recipe, tensor: Tensor, source: Source, place: str, before: Tensor | None = None) -> None:
    """Let another's initializer fill `tensor`; `before` has the values that are there, None to keep a copy.

    `place` says in an error which tensor it is.

    Raises:
        ValueError: it leaves the tensor as it was.
    """
    made = tensor.contiguous() if isinstance(source, Key) else tensor  # torch's draws depend on strides
    version, kept = version_of(made), made.detach().clone() if before is None else before
    returned = _call(recipe, made, source)
    written = version is not None and version_of(made) != version
    if not written and not _differ(made, kept) and not _fills(recipe, made):
        raise ValueError(f"{place}: {_unfilled(recipe, made, returned)}")
    if made is not tensor:
        tensor.copy_(made)


def _call(recipe: Recipe, tensor: Tensor, source: Source) -> Any:
    """Call an initializer, whose numbers come from `source`: in row-major order from torch's, seeded by a Key."""
    if not isinstance(source, Key):
        return recipe(tensor, generator=source.argument)
    given = recipe.accepts("generator")
    generator = torch.Generator("cpu" if tensor.is_meta else tensor.device).manual_seed(source.native_seed)
    with global_generators_from(source.for_block(0) if given else source, tensor.device):  # some draw from both
        return recipe(tensor, generator=generator)


def _differ(tensor: Tensor, before: Tensor) -> bool:
    """Whether a tensor holds other values than before, as after writes to its .data or through NumPy; or may do so."""
    if tensor.is_meta or tensor.numel() == 0 or is_intercepted():
        return True
    a, b = (values.float() if values.dtype.itemsize == 1 and values.is_floating_point() else values
            for values in (tensor.detach(), before.to(tensor.device)))  # fmt: skip
    return a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all())


def _fills(recipe: Recipe, tensor: Tensor) -> bool:
    """Whether an initializer changes a copy of `tensor` that holds what none would give: it may fill it with the same.

    It draws from generators that are put back.
    """
    given = recipe.arguments.get("generator")
    own = given if isinstance(given, torch.Generator) else None
    state = None if own is None else own.get_state()
    copy = _spoiled(tensor)
    try:
        _call(recipe, copy, Key(0))
    except Exception:
        return False
    finally:
        if own is not None and state is not None:
            own.set_state(state)
    return _differ(copy, _spoiled(tensor))


def _spoiled(tensor: Tensor) -> Tensor:
    """A copy that holds NaN; of a dtype without, the values with all bits inverted."""
    copy = tensor.detach().clone()
    return copy.fill_(float("nan")) if copy.is_floating_point() or copy.is_complex() else copy.bitwise_not_()


def _unfilled(recipe: Recipe, tensor: Tensor, returned: Any) -> str:
    """What an initializer has done in place of filling `tensor`, and the way out."""
    left = "and left the tensor that it was given as it was. A rule's function fills that tensor"
    example = "such as `lambda w: w.fill_(0.5)`; kinit.skip leaves a tensor alone."
    if returned is tensor:
        return f"{recipe} returned the tensor that it was given, as it was. A rule's function fills it, {example}"
    if isinstance(returned, Tensor) and returned.shape == tensor.shape:
        return f"{recipe} returned a new tensor {left}: write `lambda w: w.copy_(...)`, with what it returns inside."
    if isinstance(returned, Tensor):
        shapes = f"{tuple(returned.shape)}, not {tuple(tensor.shape)},"
        return f"{recipe} returned a tensor of shape {shapes} {left}, {example}"
    if isinstance(returned, (int, float)) and not isinstance(returned, bool):
        return f"{recipe} returned {returned!r} {left}; for a constant, write the number itself as the rule."
    what = "None" if returned is None else f"a {type(returned).__name__}"
    return f"{recipe} returned {what} {left}, {example}"


def refuse_leftover_nan(recipe: Recipe, tensor: Tensor, place: str) -> None:
    """Raise if another's initializer has left NaN in a tensor; `place` says which it is."""
    values = local_of(tensor).detach()
    if values.is_meta or not (values.is_floating_point() or values.is_complex()) or is_intercepted():
        return
    unset = (values.float() if values.dtype.itemsize == 1 else values).isnan()
    if bool(unset.any()):
        raise ValueError(
            f"{place}: {recipe} left NaN in {int(unset.sum())} of {values.numel()} values; "
            "an initializer fills the whole tensor."
        )
