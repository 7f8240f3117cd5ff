"""Where a torch model keeps the weights of its Keras twin, in the order of Keras' `get_weights()`."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from torch_kinit import checks
from torch_kinit.layers.variable import Options, Variable
from torch_kinit.model.targets import Target, targets

WITHOUT_TWIN = (None, "projection_kernel", "bias_k", "bias_v")  # roles of which Keras has no weight


@dataclass
class Slot:
    """One weight of the Keras twin, where the torch model has it."""

    module: str  # the path of the module that owns it
    layer: str  # the class of that module
    role: str  # what Keras calls it
    shape: tuple[int, ...]  # in Keras
    names: tuple[str, ...]  # the tensors that hold it: one, or one for each row
    block: int = 0  # which block of a packed tensor it is
    added: str | None = None  # a second tensor, which torch adds to it
    twin: str | None = None  # the name of the Keras layer whose weight it is, once that is known

    def __str__(self) -> str:
        return f"{' and '.join(self.names)} ({self.layer}'s {self.role}, {self.shape} in Keras' layout)"


@dataclass
class Holdings:
    """What a model holds: a Slot for each weight of its Keras twin."""

    modules: dict[str, nn.Module]
    options: Options
    slots: list[Slot]
    targets: dict[str, Target]
    variables: dict[str, Variable]  # of the tensors that slots name

    @functools.cached_property
    def _by_path(self) -> dict[str, list[Slot]]:
        """The slots of the module at each path and of those inside it."""
        found: dict[str, list[Slot]] = {}
        for slot in self.slots:
            parts = slot.module.split(".") if slot.module else []
            for i in range(len(parts) + 1):
                found.setdefault(".".join(parts[:i]), []).append(slot)
        return found

    def of(self, path: str) -> list[Slot]:
        """The weights of the module at `path`, without those of the modules inside it."""
        return [slot for slot in self._by_path.get(path, ()) if slot.module == path]

    def paths(self) -> Iterable[str]:
        """The paths of all modules that hold weights, or have others inside that do."""
        return self._by_path

    def inside(self, path: str, speaker: str) -> list[Slot]:
        """The weights of the module at `path` and of those inside it; `speaker`, "`order` has", begins the error."""
        if path not in self._by_path:
            raise ValueError(
                f"{speaker} {checks.short(path)}, which holds no weights.{checks.near(path, self._by_path)}"
            )
        return self._by_path[path]


def holdings(model: nn.Module, options: Options) -> Holdings:
    """Look through a model. A tied tensor has the slot of its first owner."""
    checks.module(model)
    found = targets(model, options)
    variables = {target.name: v for target in found if (v := target.claims[0].variable)}
    slots: list[Slot] = []
    for _, group in itertools.groupby(found, key=lambda target: id(target.claims[0].modules[0].module)):
        merged: list[Slot] = []
        for target in (members := list(group)):
            if target.claims[0].role not in (*WITHOUT_TWIN, "num_batches_tracked"):  # which is a counter of torch's own
                _add(merged, target, variables[target.name])
        attention = isinstance(members[0].claims[0].modules[0].module, nn.MultiheadAttention)
        slots += _in_keras_order(merged) if attention else merged
    by_name = {target.name: target for target in found}
    return Holdings(dict(model.named_modules()), options, slots, by_name, variables)


def _add(slots: list[Slot], target: Target, variable: Variable) -> None:
    """Add a target's variables to those of its module: rows to their variable, and a second bias to the first."""
    claim = target.claims[0]
    if variable.role == "second_bias" and slots:
        slots[-1].added = claim.name
    elif variable.row and variable.row[0] > 0:
        slots[-1].names += (claim.name,)
    else:
        rows = (variable.row[1],) if variable.row else ()
        copy = torch.empty(target.tensor.shape, dtype=target.tensor.dtype, device="meta")
        for block, view in enumerate(variable.views(copy)):
            shape = (*rows, *variable.as_in_keras(view).shape)
            slots.append(Slot(claim.modules[0].path, claim.layer, variable.role, shape, (claim.name,), block))


def _in_keras_order(slots: list[Slot]) -> list[Slot]:
    """The slots of attention: torch packs its kernels and then its biases; Keras has each kernel with its bias."""
    kernels = [slot for slot in slots if slot.role == "kernel"]
    biases = [slot for slot in slots if slot.role == "bias"]
    for part, *pair in itertools.zip_longest(("query", "key", "value", "attention_output"), kernels, biases):
        for slot in filter(None, pair):
            slot.role = f"{part}/{slot.role}"
    return [slot for pair in itertools.zip_longest(kernels, biases) for slot in pair if slot]


def fits(keras: tuple[int | None, ...], torch: tuple[int, ...]) -> bool:
    """Whether two shapes are one, but for neighbouring axes that one of them has merged."""
    if None in keras:
        return len(keras) == len(torch) and all(a in (None, b) for a, b in zip(keras, torch, strict=True))
    coarse, fine = sorted((_bare(tuple(n or 0 for n in keras)), _bare(torch)), key=len)
    return coarse == fine if len(coarse) == len(fine) else _merges(coarse, fine)


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of size one before the last."""
    return (*(size for size in shape[:-1] if size != 1), *shape[-1:])


def _merges(coarse: tuple[int, ...], fine: tuple[int, ...]) -> bool:
    """Whether each axis of `coarse` is a run of axes of `fine`."""
    if not coarse or not fine:
        return math.prod(fine) == math.prod(coarse) == 1
    runs = (i for i in range(1, len(fine) + 1) if math.prod(fine[:i]) == coarse[0])
    return any(_merges(coarse[1:], fine[i:]) for i in runs)
