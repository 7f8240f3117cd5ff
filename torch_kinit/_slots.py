"""Where a torch model keeps the weights of its Keras twin, in the order of Keras' `get_weights()`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import nn

from torch_kinit._layouts import Options
from torch_kinit._targets import Claim, Target, targets

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
        own = [slot for target in known for slot in _slots(target)]
        slots += _in_keras_order(_merged(own))
    return Holdings(slots, strangers, by_name)


def slots_in(held: Holdings, path: str) -> list[Slot]:
    """The weights of the module at `path` and of those inside it."""
    return [slot for slot in held.slots if not path or slot.module == path or slot.module.startswith(f"{path}.")]


def _slots(target: Target) -> list[Slot]:
    claim: Claim = target.claims[0]
    assert claim.variable is not None
    copy = torch.empty(target.tensor.shape, dtype=target.tensor.dtype, device="meta")
    views = claim.variable.views(copy)
    path = claim.modules[0][0]
    role = claim.variable.role
    return [Slot(path, claim.layer, role, tuple(view.shape), (claim.name,), i) for i, view in enumerate(views)]


def _merged(slots: list[Slot]) -> list[Slot]:
    """One slot for the rows of one variable, and none for what is added to another or is no weight."""
    merged: list[Slot] = []
    for slot in slots:
        last = merged[-1] if merged else None
        if slot.role == _COUNTER:
            continue
        if slot.role == _SECOND_BIAS and last is not None:
            last.added = slot.names[0]
        elif last is not None and slot.role == last.role == "bias" and slot.layer.startswith("GRU"):
            last.names, last.shape = last.names + slot.names, (2, *slot.shape)
        else:
            merged.append(slot)
    return merged


def _in_keras_order(slots: list[Slot]) -> list[Slot]:
    """Torch packs attention's kernels and then its biases; Keras has each kernel with its bias."""
    if not slots or slots[0].layer != "MultiheadAttention":
        return slots
    kernels = [slot for slot in slots if slot.role == "kernel"]
    biases = [slot for slot in slots if slot.role == "bias"]
    for part, *pair in itertools.zip_longest(("query", "key", "value", "attention_output"), kernels, biases):
        for slot in filter(None, pair):
            slot.role = f"{part}/{slot.role}"
    return [slot for pair in itertools.zip_longest(kernels, biases) for slot in pair if slot]
