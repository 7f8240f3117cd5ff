"""The weights in a .weights.h5 of Keras 3, and in a .keras file: a group for each layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch_kinit.keras import files
from torch_kinit.keras.arrange import Node, Stored, stored
from torch_kinit.keras.configs import is_model
from torch_kinit.keras.draws import Config, snake_case
from torch_kinit.keras.entries import ATTENTIONS, class_of, entries, holds_weights, inner, name_of

# What the weights of some layers are called, where their number tells.
_ROLES = {
    **{(kind, 2): ("kernel", "bias") for kind in ("dense", "conv1d", "conv2d", "conv3d")},
    **{(kind, 1): ("kernel",) for kind in ("dense", "conv1d", "conv2d", "conv3d")},
    ("embedding", 1): ("embeddings",),
    ("batch_normalization", 4): ("gamma", "beta", "moving_mean", "moving_variance"),
    ("layer_normalization", 2): ("gamma", "beta"),
}
# The layers in others, in the order of their weights.
_ATTENTION = ("query_dense", "key_dense", "gate_dense", "value_dense", "output_dense")
_BIDIRECTIONAL = ("forward_layer", "backward_layer")
_NO_WEIGHTS = {"optimizer", "metrics", "loss", "compile_loss", "compile_metrics", "loss_tracker"}
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the second in files of TensorFlow 2.12


class Tree:
    """The layers of one file: their groups are named by class and number, or by the attribute that holds them."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()
        self._read: set[int] = set()

    def layer(self, group: Any, path: str, entry: Config | None) -> Node:
        """A layer or model, whose config is `entry` if that is known."""
        if (address := files.address(group)) in self._read:
            raise ValueError(f"{path} in the file is another name of a layer that was read.")
        self._read.add(address)
        parts = files.inside(group)
        own = _variables(parts.pop("vars", None), _kind(path))
        parts = {name: part for name, part in parts.items() if name.lstrip("_") not in _NO_WEIGHTS}
        if entry is not None and is_model(entry):
            queues = self._model(parts, path, entry)
        else:
            queues = self._parts(parts, path, entry)
        node = Node(own, queues)
        if _is_generator(path, node):
            return Node([])
        if len(own) == 2 and node.queues and "spectral_normalization" in (_kind(path), _kind_of(entry)):
            node.queues[0][0] = Node(node.queues[0][0].own[1:])  # without the kernel, which `own` has too
        return Node(own, node.queues)

    def _model(self, parts: dict[str, Any], path: str, entry: Config) -> list[list[Node]]:
        name = next((name for name in _CONTAINERS if name in parts), "layers")
        layers = files.inside(parts.pop(name)) if name in parts else {}
        listed = self._listed(layers, f"{path}/{name}", entries(entry))
        return [listed, *self._parts(parts, path, None)]  # and the attributes of a class of its own

    def _listed(self, layers: dict[str, Any], path: str, listed: list[Config]) -> list[Node]:
        """The layers of a model in the order of its config."""
        keys = _keys(listed)
        _check_names(layers, path, dict(zip(keys, map(name_of, listed), strict=True)))
        nodes = []
        for key, entry in zip(keys, listed, strict=True):
            kept = key in layers or (_kind_of(entry), name_of(entry)) not in self._seen  # one of two models', once
            node = self.layer(layers.pop(key), f"{path}/{key}", entry) if key in layers else Node([])
            if kept and not node.size and holds_weights(entry):
                raise ValueError(f"The file has no weights for layer {name_of(entry)!r}, in {path}/{key}.")
            self._seen.add((_kind_of(entry), name_of(entry)))
            nodes.append(node)
        for key, group in layers.items():
            if self.layer(group, f"{path}/{key}", None).size:
                raise ValueError(f"The file has weights in {path}/{key}, of a layer that the config does not list.")
        return nodes

    def _parts(self, parts: dict[str, Any], path: str, entry: Config | None) -> list[list[Node]]:
        """What the attributes of a layer hold, in a queue each; of a list of layers, a queue for each class."""
        queues: dict[str, list[Node]] = {}
        for name, part in parts.items():
            held, where = files.inside(part), f"{path}/{name}"
            if "vars" in held or name.lstrip("_") in ("layer", "cell", *_ATTENTION, *_BIDIRECTIONAL):
                queues[name] = [self.layer(part, where, _entry_of(entry, name))]
            elif name == "cells" and isinstance(cells := inner(entry, name), list):
                queues[name] = self._listed(held, where, cells)
            else:
                for key in sorted(held, key=_number):
                    queue = queues.setdefault(f"{name}/{_kind(key)}", [])
                    queue.append(self.layer(held[key], f"{where}/{key}", None))
        weighted = {key: nodes for key, nodes in queues.items() if any(node.size for node in nodes)}
        if known := _known_order(weighted, entry):
            return [[weighted[name][0] for name in known]]
        return list(weighted.values())


def _number(key: str) -> int:
    """12 of "conv2d_12", 0 of "conv2d"."""
    number = key.rpartition("_")[2]
    return int(number) if number.isdecimal() and "_" in key else 0


def _kind(path: str) -> str:
    """The class that a group is named by: "conv2d" of "/layers/conv2d_12"."""
    return re.sub(r"_[0-9]+$", "", path.rpartition("/")[2])


def _kind_of(entry: Config | None) -> str:
    if entry is None:
        return ""
    return snake_case(str(entry.get("class_name")).rpartition(">")[2]).replace("group_query", "grouped_query")


def _keys(listed: Iterable[Config]) -> list[str]:
    """The groups of layers, which are counted by class."""
    counts: Counter[str] = Counter()
    keys = []
    for kind in map(_kind_of, listed):
        keys.append(f"{kind}_{counts[kind]}" if counts[kind] else kind)
        counts[kind] += 1
    return keys


def _entry_of(entry: Config | None, name: str) -> Any:
    """The config of a part, by the attribute that holds it."""
    if name == "backward_layer":
        return inner(entry, name) or inner(entry, "layer")
    return inner(entry, {"forward_layer": "layer"}.get(name, name))


def _known_order(weighted: dict[str, list[Node]], entry: Config | None) -> list[str]:
    """The parts of a layer of Keras' own in the order of their weights; nothing for other layers."""
    bare = {name.lstrip("_"): name for name in weighted}
    kind = "" if entry is None else class_of(entry)
    of_cells = not any(nodes[0].own for nodes in weighted.values())
    if set(bare) == set(_BIDIRECTIONAL) and (of_cells if entry is None else kind == "Bidirectional"):
        return [bare[name] for name in _BIDIRECTIONAL]
    by_rank = all(len(item.shape) == 3 for nodes in weighted.values() for item in nodes[0].own[:1])
    attention = set(bare) <= set(_ATTENTION) and len(bare) > 3
    if attention and (by_rank if entry is None else kind in ATTENTIONS and holds_weights(entry)):
        return [bare[name] for name in _ATTENTION if name in bare]
    return []


def _variables(group: Any, kind: str) -> list[Stored]:
    """The arrays of one layer of a class, which are numbered."""
    found = {} if group is None else files.inside(group)
    for i in range(len(found)):
        if str(i) not in found:
            raise ValueError(f"{group.name} in the file has {', '.join(sorted(found)[:5])}, but no {i}.")
    roles = _ROLES.get((kind, len(found)), (None,) * len(found))
    return [stored(found[str(i)], role) for i, role in enumerate(roles)]


def _check_names(layers: dict[str, Any], path: str, names: dict[str, str]) -> None:
    """Refuse a config with the same names as the file, but in another order."""
    saved = {key: _saved_name(layers[key]) for key in names if key in layers}
    there = {key: names[key] for key in saved}
    wrong = [key for key in saved if saved[key] != there[key]]
    if wrong and sorted(map(str, saved.values())) == sorted(there.values()):
        raise ValueError(
            f"{path}/{wrong[0]} in the file is the layer {saved[wrong[0]]!r}; by the order of the config, "
            f"{there[wrong[0]]!r}."
        )


def _saved_name(group: Any) -> str | None:
    name = files.attribute(files.child(group, "vars"), "name") if files.has(group, "vars") else None
    return name if isinstance(name, str) else None


def _is_generator(path: str, node: Node) -> bool:
    """Whether it is the state of a SeedGenerator, which is no weight."""
    kinds = [(item.shape, item.data.dtype.kind) for item in node.own]
    return path.endswith("generator") and not node.queues and kinds in ([((2,), "u")], [((2,), "i")])
