"""Where a torch model keeps the weights of its Keras twin, in the order of Keras' `get_weights()`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn

from torch_kinit.layers.layouts import Options
from torch_kinit.model.targets import Target, targets

# What torch has beyond Keras: a counter, a second bias that starts at zero and adds to the first.
_COUNTER, _SECOND_BIAS = "num_batches_tracked", "second_bias"
_WITHOUT_TWIN = ("projection_kernel", "bias_k", "bias_v")


@dataclass
class Slot:
    """One weight of the Keras twin, where the torch model has it.

    Attributes:
        module: the path of the module that owns it, of class `layer`.
        role: what Keras calls it.
        shape: its shape in Keras.
        names: the tensors that hold it: one, or one for each row.
        block: which block of a packed tensor it is.
        added: a second tensor, which torch adds to it.
    """

    module: str
    layer: str
    role: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    block: int = 0
    added: str | None = None

    def __str__(self) -> str:
        return f"{' and '.join(self.names)} ({self.layer}'s {self.role}, {self.shape} in Keras' layout)"


@dataclass
class Holdings:
    """What a model holds: a Slot for each weight of its Keras twin, and the targets no Keras layer has."""

    slots: list[Slot]
    strangers: list[Target]
    targets: dict[str, Target]


def holdings(model: nn.Module, options: Options) -> Holdings:
    """Look through a model. A tied tensor has the slot of its first owner."""
    found = targets(model, options)
    by_name = {target.name: target for target in found}
    slots: list[Slot] = []
    strangers = []
    for _, group in itertools.groupby(found, key=lambda target: id(target.claims[0].modules[0][1])):
        members = list(group)
        known = [t for t in members if t.claims[0].variable and t.claims[0].role not in _WITHOUT_TWIN]
        strangers += [t for t in members if all(t is not other for other in known)]
        merged: list[Slot] = []
        for target in known:
            _add(merged, target)
        attention = isinstance(members[0].claims[0].modules[0][1], nn.MultiheadAttention)
        slots += _in_keras_order(merged) if attention else merged
    return Holdings(slots, strangers, by_name)


def slots_in(held: Holdings, path: str) -> list[Slot]:
    """The weights of the module at `path` and of those inside it."""
    return [slot for slot in held.slots if not path or slot.module == path or slot.module.startswith(f"{path}.")]


def _add(slots: list[Slot], target: Target) -> None:
    """Add a target's variables to those of its module: rows to their variable, and a second bias to the first."""
    claim = target.claims[0]
    variable = claim.variable
    assert variable is not None
    if variable.role == _COUNTER:
        return
    if variable.role == _SECOND_BIAS and slots:
        slots[-1].added = claim.name
    elif variable.row and variable.row[0] > 0:
        slots[-1].names += (claim.name,)
    else:
        rows = (variable.row[1],) if variable.row else ()
        copy = torch.empty(target.tensor.shape, dtype=target.tensor.dtype, device="meta")
        for block, view in enumerate(variable.views(copy)):
            shape = (*rows, *view.shape)
            slots.append(Slot(claim.modules[0][0], claim.layer, variable.role, shape, (claim.name,), block))


def _in_keras_order(slots: list[Slot]) -> list[Slot]:
    """The slots of attention: torch packs its kernels and then its biases; Keras has each kernel with its bias."""
    kernels = [slot for slot in slots if slot.role == "kernel"]
    biases = [slot for slot in slots if slot.role == "bias"]
    for part, *pair in itertools.zip_longest(("query", "key", "value", "attention_output"), kernels, biases):
        for slot in filter(None, pair):
            slot.role = f"{part}/{slot.role}"
    return [slot for pair in itertools.zip_longest(kernels, biases) for slot in pair if slot]
