"""The weights in an .h5 file of Keras 2, or as Keras 2 wrote it: a list of names for each layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from torch_kinit.keras import files
from torch_kinit.keras.arrange import Node, Stored, stored
from torch_kinit.keras.configs import is_model
from torch_kinit.keras.draws import Config, lora_error
from torch_kinit.keras.entries import (
    ATTENTIONS,
    class_of,
    entries,
    holds_weights,
    inner,
    name_of,
    weight_names,
)

# The parts of an attention layer by their names, in the order of their weights.
_PARTS = ("query", "key", "gate", "value", "attention_output")
_TELLING = ("kernel", "bias", "gamma", "beta", "embeddings", "moving_mean", "moving_variance")  # as torch's layouts do
Chain = tuple[str, ...]


class Legacy:
    """The layers of one file. Each list begins with what is trained, so goes through a model in a model twice."""

    def __init__(self, config: Config | None) -> None:
        self._entries = {name_of(entry): entry for entry in entries(config)} if config else {}
        self._read: dict[Chain, list[Stored]] = {}

    def model(self, group: Any) -> Node:
        """The layers in the order of the model, which the file tells."""
        names = files.texts(group, "layer_names")
        if names is None:
            raise ValueError(f"{group.name} in the file lacks layer_names: it is incomplete.")
        nodes = [self._layer(_listed(files.child(group, name)), self._entries.get(name)) for name in names]
        top = "top_level_model_weights"  # get_weights() of Keras 3 begins with them
        own = Node(_listed(files.child(group, top)) if files.has(group, top) else [])
        first = str(files.attribute(group, "keras_version")).startswith("3")
        return Node([], [[own, *nodes] if first else [*nodes, own]])

    def _layer(self, items: list[Stored], entry: Config | None) -> Node:
        if entry is not None and not items and holds_weights(entry):
            raise ValueError(f"The file has no weights for layer {name_of(entry)!r}.")
        leaves = [] if entry is None else list(_leaves(entry))
        if len(leaves) < 2:
            return self._once(items, leaves[0][1] if leaves else entry)
        shares = _shares(items, leaves)
        if shares is None:
            return _unordered(items)
        return Node([], [[self._once(share, leaf) for share, (_, leaf) in zip(shares, leaves, strict=True)]])

    def _once(self, items: list[Stored], entry: Config | None) -> Node:
        """A layer, unless it was read before, as one that two models share."""
        before = self._read.setdefault(tuple(item.name for item in items), items)
        same = before is not items and all(_equal(a, b) for a, b in zip(before, items, strict=True))
        return Node([]) if same else _part(items, entry)


def _equal(a: Stored, b: Stored) -> bool:
    return a.shape == b.shape and torch.equal(files.values_of(a.data), files.values_of(b.data))


def _listed(group: Any) -> list[Stored]:
    """The weights of a layer in the order of their list."""
    names = files.texts(group, "weight_names")
    if names is None:
        raise ValueError(f"{group.name} in the file lacks weight_names: it is incomplete.")
    found = []
    for name in names:
        if "lora_" in (role := _role(name)):
            raise lora_error(name.rpartition("/")[0])
        found.append(stored(files.child(group, name), role if role in _TELLING else None, name))
    return found


def _role(name: str) -> str:
    """The name of a weight in its layer: "kernel" of "dense/kernel:0"."""
    return name.rpartition("/")[2].partition(":")[0]


def _leaves(entry: Config, chain: Chain = ()) -> Iterator[tuple[Chain, Config]]:
    """The layers of a model and of those in it, each with the names that lead there."""
    wrapped = inner(entry, "layer")
    if is_model(entry):
        for part in entries(entry):
            yield from _leaves(part, (*chain, name_of(part)))
    elif isinstance(wrapped, Mapping) and len(leaves := list(_leaves(wrapped, (*chain, name_of(wrapped))))) > 1:
        yield from leaves
    else:
        yield chain, entry


def _shares(items: list[Stored], leaves: Sequence[tuple[Chain, Config]]) -> list[list[Stored]] | None:
    """The weights of each layer in a model, by the names; None if these do not tell."""
    shares: list[list[Stored]] = [[] for _ in leaves]
    for item in items:
        parts = item.name.split("/")[:-1]
        found = sorted(
            (sum(name not in parts for name in chain), -len(chain), i)
            for i, (chain, _) in enumerate(leaves)
            if chain[-1] in parts
        )
        if not found or (len(found) > 1 and found[0][:2] == found[1][:2]):
            return None
        shares[found[0][2]].append(item)
    lacking = (holds_weights(leaf) and not own for own, (_, leaf) in zip(shares, leaves, strict=True))
    return None if any(lacking) else shares


def _part(items: list[Stored], entry: Config | None) -> Node:
    """The weights of one layer, perhaps with others inside."""
    kind = None if entry is None else class_of(entry)
    if kind in (None, "Bidirectional") and (sides := _sides(items)):
        return Node([], [[_part(side, inner(entry, "layer")) for side in sides]])
    groups, names, known = _by_prefix(items), [_role(item.name) for item in items], weight_names(entry)
    as_known = sorted(names) == sorted(known)
    last = {prefix.rpartition("/")[2]: own for prefix, own in groups.items()}
    own_attention = all(_rank(own) == 3 for own in last.values()) if kind is None else kind in ATTENTIONS and as_known
    if own_attention and len(last) == len(groups) > 3 and set(last) <= set(_PARTS):
        return Node([item for name in _PARTS for item in last.get(name, ())])
    if as_known and len(set(names)) == len(names):  # one of them may not be trained
        return Node([items[names.index(name)] for name in known])
    return Node(items) if len(groups) < 2 or _is_even_stack(entry) else _unordered(items)


def _rank(items: list[Stored]) -> int:
    return len(items[0].shape)


def _sides(items: list[Stored]) -> list[list[Stored]]:
    """The weights of a Bidirectional's two layers, if the names tell that it is one."""
    sides = [[item for item in items if re.search(rf"(^|/){side}_", item.name)] for side in ("forward", "backward")]
    return sides if all(sides) and sum(map(len, sides)) == len(items) else []


def _is_even_stack(entry: Config | None) -> bool:
    """Whether it is an RNN of several cells, of which all are trained or none."""
    cells = inner(inner(entry, "cell"), "cells") or ()
    return len({inner(cell, "trainable") in (None, True) for cell in cells}) == 1


def _by_prefix(items: list[Stored]) -> dict[str, list[Stored]]:
    groups: dict[str, list[Stored]] = {}
    for item in items:
        groups.setdefault(item.name.rpartition("/")[0], []).append(item)
    return groups


def _unordered(items: list[Stored]) -> Node:
    """Layers of which the list does not tell the order, as some of them may not be trained."""
    groups: dict[str, list[Stored]] = {}
    for prefix, own in _by_prefix(items).items():
        parent, _, last = prefix.rpartition("/")
        together = last in _PARTS and _rank(own) == 3 and parent
        groups.setdefault(re.sub(r"(^|/)(forward|backward)_.*", "", parent if together else prefix), []).extend(own)
    if len(groups) == 1:
        return Node([], [[Node(own)] for own in _by_prefix(items).values()])
    return Node([], [[_part(group, None)] for group in groups.values()])
