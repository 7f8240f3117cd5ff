"""Which tensors of a model still wait for their values: those on meta, and what `materialize` made and nobody set."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from torch_kinit import checks
from torch_kinit.model.grouping import lines_of
from torch_kinit.model.targets import Target, chain_of, holder_of
from torch_kinit.shards import local_of
from torch_kinit.torch_internals import parameters_of, tensors_of

# In a module's __dict__, the names of its tensors that `materialize` made. A tensor would not keep such a note when
# the model is moved or cast, and a module does, also in a deep copy.
_NOTE = "_kinit_unset"


def poison(tensor: Tensor) -> None:
    """Fill what this process holds of `tensor` with NaN; with zero, where the dtype has none."""
    with torch.no_grad():
        local_of(tensor).fill_(float("nan") if _has_nan(tensor) else 0)


def is_poisoned(tensor: Tensor) -> bool:
    """Whether all that this process holds of `tensor` is as `poison` leaves it."""
    local = local_of(tensor).detach()
    if local.is_meta or not local.numel():
        return False
    return _all_poison(local[(0,) * local.ndim]) and _all_poison(local)  # most that were set say so at once


def _all_poison(tensor: Tensor) -> bool:
    if tensor.is_floating_point() and tensor.itemsize == 1:  # torch has no isnan of float8
        tensor = tensor.float()
    return bool((tensor.isnan() if _has_nan(tensor) else tensor == 0).all())


def _has_nan(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def note(module: nn.Module, name: str) -> None:
    """Remember that a tensor of `module` was made and has yet to be set."""
    vars(module).setdefault(_NOTE, set()).add(name)


def forget(target: Target, model: nn.Module) -> None:
    """Forget it: the target has been set; of a parametrized one, what it is made from."""
    for claim in target.claims:
        module, name = holder_of(model, claim.name)
        _forget(module, (name,))
    if target.parametrized:
        for part in chain_of(model, target.name).modules():
            _forget(part, parameters_of(part))


def has_notes(model: nn.Module) -> bool:
    """Whether there is anything to forget."""
    return bool([module for module in model.modules() if _NOTE in vars(module)])


def _forget(module: nn.Module, set_now: Iterable[str]) -> None:
    names = vars(module).get(_NOTE, set())
    names.difference_update(set_now)
    if not names:
        vars(module).pop(_NOTE, None)


def is_noted(target: Target, model: nn.Module) -> bool:
    """Whether `materialize` made a target, and none has been told since that it was set."""
    holders = [holder_of(model, claim.name) for claim in target.claims]
    return any(name in vars(module).get(_NOTE, ()) for module, name in holders)


def awaits(target: Target, model: nn.Module) -> bool:
    """Whether a target is on meta, or `materialize` made it and it still is as it was made."""
    if target.tensor.is_meta:
        return True
    for claim in target.claims:
        module, name = holder_of(model, claim.name)
        held = tensors_of(module).get(name)  # the target's, or what has been put in its place since
        if held is not None and name in vars(module).get(_NOTE, ()) and is_poisoned(held):
            return True
    return False


def refuse_meta(targets: Iterable[Target]) -> None:
    """Raise, listing them, if any of the targets is on the meta device."""
    if found := [target for target in targets if target.tensor.is_meta]:
        advice = "Run kinit.materialize(model, device) before; `plan` looks at meta tensors as well."
        raise ValueError("\n".join(["On the meta device, where nothing can be set:", *lines_of(found), advice]))


def refuse_unset(targets: Iterable[Target], model: nn.Module) -> None:
    """Raise, listing them, if any of the targets is one that nobody set."""
    found = [target for target in targets if awaits(target, model)]
    if not found:
        return
    parameters = [target for target in found if target.kind == "parameter"]
    if parameters:
        _refuse_unset_parameters(parameters)
    path, _, name = found[0].name.rpartition(".")
    example = checks.short(f"*.{name}" if path else name)
    lines = [
        "Buffers that neither their module nor a rule has set since the model was on the meta device:",
        *lines_of(found),
        f"Set each before, or add a rule that names it and no parameter, such as {{{example}: values}}, with "
        f"a number, an array or a function that fills it; or {{{example}: kinit.skip}}.",
    ]
    raise ValueError("\n".join(lines))


def _refuse_unset_parameters(found: list[Target]) -> None:
    example = checks.short(found[0].name)
    lines = [
        "Parameters that no rule covers, and that nobody has set since the model was on the meta device:",
        *lines_of(found),
        f"They hold NaN. Load them before, or add a rule for each; {{{example}: kinit.skip}} leaves one as it is.",
    ]
    raise ValueError("\n".join(lines))
