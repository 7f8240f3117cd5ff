"""The weights in a saved Keras file, in the order of the model's `get_weights()`: .keras, .weights.h5 and .h5."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from torch_kinit.keras import files
from torch_kinit.keras.arrange import Node, Stored, arrange
from torch_kinit.keras.draws import Config, snake_case
from torch_kinit.keras.read import read_layer
from torch_kinit.keras.saved_model import Model, is_model, load_config
from torch_kinit.keras.slots import Slot

# The layers inside others, in the order of their weights.
_PARTS = (
    ("query_dense", "key_dense", "gate_dense", "value_dense", "output_dense"),
    ("query", "key", "gate", "value", "attention_output"),  # the same by their names
    ("forward_layer", "backward_layer"),
)
# What the weights of some layers are called, where their number tells.
_ROLES = {
    **{(kind, 2): ("kernel", "bias") for kind in ("dense", "conv1d", "conv2d", "conv3d")},
    **{(kind, 1): ("kernel",) for kind in ("dense", "conv1d", "conv2d", "conv3d")},
    ("embedding", 1): ("embeddings",),
    ("batch_normalization", 4): ("gamma", "beta", "moving_mean", "moving_variance"),
    ("layer_normalization", 2): ("gamma", "beta"),
}
_NO_WEIGHTS = {"optimizer", "metrics", "loss", "compile_loss", "compile_metrics", "loss_tracker"}
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the second in files of TensorFlow 2.12
_HINT = (
    "`keras_config`, the model as model.to_json() gives it, tells the order; for a model that is a class of its own, "
    "give keras_model.get_weights() or the Keras model itself."
)


def weights_in(path: Path, config: Config | None, slots: Sequence[Slot]) -> list[tuple[str, Tensor]]:
    """The names in the file and the values of all weights; `slots` decide where the file tells no order."""
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise ValueError(f"Weights are read from a .keras, .weights.h5 or .h5 file, got {str(path)!r}.")
    with files.open_h5(path) as root:
        legacy = "model_weights" in root or files.texts(root, "layer_names") is not None
        if legacy:
            group = files.child(root, "model_weights") if "model_weights" in root else root
            node = _Legacy(config).model(group)
        else:
            node = _Tree().layer(root, "", config)
        return [(item.name, files.values_of(item.data)) for item in arrange(node, slots, _HINT)]


def named_arrays(source: Any, keras_config: Any, slots: Sequence[Slot]) -> list[tuple[str, Any]]:
    """What `from_keras` is given as names and arrays: those of a file, of a live Keras model, or arrays as they are."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        config = config_of(path, keras_config)
        found: Iterable[tuple[str, Any]] = weights_in(path, config, slots)
        return [(f"Array {i} ({name} in {path.name!r})", array) for i, (name, array) in enumerate(found)]
    live = callable(getattr(source, "get_weights", None))
    layers: Iterable[Any] = getattr(source, "_flatten_layers", tuple)() if live else ()
    merged = [str(layer.name) for layer in layers if getattr(layer, "lora_enabled", False)]
    if merged := merged or lora_layers(None if keras_config is None else load_config(keras_config)):
        raise lora_error(merged[0])
    return [(f"Array {i}", array) for i, array in enumerate(source.get_weights() if live else source)]


def config_in(source: Any, keras_config: Any) -> Any:
    """The config that is given, or that of a file or live Keras model; None if it cannot be read, but for arrays."""
    live = callable(getattr(source, "get_weights", None))
    if not live and not isinstance(source, (str, os.PathLike)):
        return keras_config
    try:
        given = source if live and keras_config is None else keras_config
        config = load_config(given) if live else config_of(Path(source), given)
        return config if config is not None and Model(config) else None
    except (AttributeError, KeyError, TypeError, ValueError):  # a class of its own, or layers that are not Keras' own
        return None


def config_of(path: Path, keras_config: Any) -> Config | None:
    """The config that was given, or that in a file of weights; None if it does not list the layers."""
    if keras_config is not None:
        return load_config(keras_config)
    config = files.read_config(path) if path.suffix in (".keras", ".h5", ".hdf5") else None
    return config if isinstance(config, Mapping) and is_model(config) else None


def _stored(name: str, dataset: Any, role: str | None) -> Stored:
    return Stored(name, files.shape_of(dataset), dataset, role)


def _entries(config: Config) -> list[Config]:
    """The layers that a model's config lists, without the functions of tensors among them."""
    inner = config["config"]
    listed = inner if isinstance(inner, list) else inner["layers"]
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        raise ValueError("The config lists something else than layers.")
    return [entry for entry in listed if not str(entry.get("module")).startswith(("keras.src.ops", "keras.ops"))]


def _name_of(entry: Config) -> str:
    config = entry.get("config")
    return str(entry.get("name") or (config.get("name") if isinstance(config, Mapping) else None))


def _inner(entry: Config | None, name: str) -> Any:
    """A part of a wrapper's config, such as its "layer"."""
    config = entry.get("config") if entry else None
    return config.get(name) if isinstance(config, Mapping) else None


def _holds_weights(entry: Config) -> bool:
    """Whether a layer of Keras' own has weights; a class that is not known counts as having none."""
    if is_model(entry):
        return any(map(_holds_weights, _entries(entry)))
    if isinstance(wrapped := _inner(entry, "layer"), Mapping):
        return _holds_weights(wrapped)
    return bool(_weight_names(entry))


def _weight_names(entry: Config | None) -> list[str]:
    """What the weights of a layer are called; nothing for a class that is not known."""
    if entry is None or not isinstance(entry.get("config"), Mapping):
        return []
    try:
        return [weight.name.rpartition("/")[2] for weight in read_layer(entry).weights]
    except (TypeError, ValueError):
        return []


class _Tree:
    """A .weights.h5: a group for each layer, named by its class and number, or by the attribute that holds it."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str]] = set()
        self._read: set[int] = set()

    def layer(self, group: Any, path: str, entry: Config | None) -> Node:
        """A layer or model, whose config is `entry` if that is known."""
        if (address := files.address(group)) in self._read:
            raise ValueError(f"{path} in the file is another name of a layer that was read.")
        self._read.add(address)
        parts = files.inside(group)
        own = _variables(parts.pop("vars", None), re.sub(r"_\d+$", "", path.rpartition("/")[2]))
        parts = {name: part for name, part in parts.items() if name.lstrip("_") not in _NO_WEIGHTS}
        if entry is not None and is_model(entry):
            queues = self._model(parts, path, entry)
        else:
            queues = self._unknown(parts, path, entry)
        node = Node(own, queues)
        if _is_spectral(path, entry) and len(own) == 2 and node.size > 2:
            node.queues[0][0] = Node(node.queues[0][0].own[1:])  # the kernel, kept twice
            return Node(own, node.queues)
        return Node([], []) if _is_generator(path, node) else node

    def _model(self, parts: dict[str, Any], path: str, entry: Config) -> list[list[Node]]:
        name = next((name for name in _CONTAINERS if name in parts), None)
        layers = files.inside(parts.pop(name)) if name else {}
        listed = [self._listed(layers, f"{path}/{name}", _entries(entry))]
        return listed + self._unknown(parts, path, None)  # attributes of a class of its own

    def _listed(self, layers: dict[str, Any], path: str, entries: Iterable[Config]) -> list[Node]:
        """The layers in the order of a config."""
        counts: Counter[str] = Counter()
        nodes, names = [], {_name_of(entry) for entry in entries if _holds_weights(entry)}
        for entry in entries:
            kind = snake_case(str(entry.get("class_name")).rpartition(">")[2]).replace("group_query", "grouped_query")
            key = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
            if key in layers:
                group = layers.pop(key)
                _check_name(group, f"{path}/{key}", _name_of(entry), names)
                nodes.append(self.layer(group, f"{path}/{key}", entry))
                lacks = not nodes[-1].size
            else:
                lacks = (kind, _name_of(entry)) not in self._seen  # a layer of two models is kept once
            if lacks and _holds_weights(entry):
                raise ValueError(f"The file has no weights for layer {_name_of(entry)!r}, in {path}/{key}.")
            self._seen.add((kind, _name_of(entry)))
        left = {key: self.layer(group, f"{path}/{key}", None) for key, group in layers.items()}
        if extra := [key for key, node in left.items() if node.size]:
            raise ValueError(f"The file has weights in {path}/{extra[0]}, of a layer that the config does not list.")
        return nodes

    def _entry(self, entry: Config | None, name: str) -> Any:
        """The config of a part, by the attribute that holds it."""
        if name == "backward_layer":
            return _inner(entry, name) or _inner(entry, "layer")
        return _inner(entry, {"forward_layer": "layer"}.get(name, name))

    def _unknown(self, parts: dict[str, Any], path: str, entry: Config | None) -> list[list[Node]]:
        """What the attributes of a layer hold, in a queue each; of a list of layers, a queue for each class."""
        queues: dict[str, list[tuple[int, Node]]] = {}
        for name, part in parts.items():
            where = f"{path}/{name}"
            held = files.inside(part)
            if "vars" in held or _known_order(held):
                queues[name] = [(0, self.layer(part, where, self._entry(entry, name)))]
            elif name == "cells" and isinstance(cells := _inner(entry, name), list):
                queues[name] = list(enumerate(self._listed(held, where, cells)))
            else:
                for key, item in held.items():
                    kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", key, re.DOTALL).groups()  # type: ignore[union-attr]
                    node = self.layer(item, f"{where}/{key}", None)
                    queues.setdefault(f"{name}/{kind}", []).append((int(number or 0), node))
        ordered = {key: [node for _, node in sorted(q, key=lambda pair: pair[0])] for key, q in queues.items()}
        weighted = {key: nodes for key, nodes in ordered.items() if any(node.size for node in nodes)}
        known = _known_order(weighted) or ()
        if len(known) == len(weighted):
            return [[node for key in known for node in weighted[key]]]
        return list(weighted.values())


def _variables(group: Any, kind: str) -> list[Stored]:
    """The arrays of one layer of a class, which are numbered."""
    if group is None:
        return []
    found = files.inside(group)
    for i in range(len(found)):
        if str(i) not in found:
            raise ValueError(f"{group.name} in the file has {', '.join(sorted(found)[:5])}, but no {i}.")
    roles = _ROLES.get((kind, len(found)), (None,) * len(found))
    return [_stored(found[str(i)].name, found[str(i)], role) for i, role in enumerate(roles)]


def _known_order(names: Iterable[str]) -> list[str] | None:
    """The parts of a layer in the order of their weights, for the layers of Keras' that have several."""
    bare = {name.lstrip("_"): name for name in names}
    for parts in _PARTS:
        if len(set(parts) & set(bare)) > 1:
            return [bare[part] for part in parts if part in bare]
    return None


def _check_name(group: Any, path: str, name: str, others: set[str]) -> None:
    """Refuse a layer that has the name of another layer of the config."""
    saved = files.attribute(files.child(group, "vars"), "name") if "vars" in group else None
    if isinstance(saved, str) and saved != name and saved in others and name in others:
        raise ValueError(f"{path} in the file is the layer {saved!r}; by its class and number in the config, {name!r}.")


def _is_spectral(path: str, entry: Config | None) -> bool:
    return bool(re.search(r"(^|/)spectral_normalization(_\d+)?$", path)) or (
        entry is not None and entry.get("class_name") == "SpectralNormalization"
    )


def _is_generator(path: str, node: Node) -> bool:
    """Whether it is the state of a SeedGenerator, no weight."""
    return path.endswith("generator") and not any(queue for queue in node.queues) and len(node.own) < 2


class _Legacy:
    """An .h5 file of Keras 2, or as Keras 2 wrote it: a group for each layer, with the names of its weights in a list.

    The list has what is trained first, so that of a model in a model goes through its layers twice.
    """

    def __init__(self, config: Config | None) -> None:
        self._config = config

    def model(self, group: Any) -> Node:
        names = files.texts(group, "layer_names")
        if names is None:
            raise ValueError(f"{group.name} in the file lacks layer_names: it is incomplete.")
        listed = _entries(self._config) if self._config else []
        entries = {_name_of(entry): entry for entry in listed}
        nodes = [self._layer(_named(files.child(group, name)), entries.get(name)) for name in names]
        top = "top_level_model_weights"  # Keras 3 has them first
        own = _named(files.child(group, top)) if top in group else []
        later = not str(files.attribute(group, "keras_version")).startswith("3")
        return Node([], [[*nodes, Node(own)]] if later else [[Node(own), *nodes]])

    def _layer(self, items: list[Stored], entry: Config | None) -> Node:
        if entry is not None and not items and _holds_weights(entry):
            raise ValueError(f"The file has no weights for layer {_name_of(entry)!r}.")
        leaves = [] if entry is None else list(_leaves(entry))
        if len(leaves) < 2:
            return _part(items, leaves[0][1] if leaves else entry)
        shares = self._shares(items, leaves)
        if shares is None:
            return _unordered(items)
        return Node([], [[_part(share, leaf) for share, (_, leaf) in zip(shares, leaves, strict=True)]])

    def _shares(self, items: list[Stored], leaves: list[tuple[tuple[str, ...], Config]]) -> list[list[Stored]] | None:
        """The weights of each layer in a model, by the names; None if these do not tell."""
        shares: list[list[Stored]] = [[] for _ in leaves]
        for item in items:
            parts = item.name.split("/")[:-1]
            found = [
                ([name in parts for name in chain].count(False), -len(chain), i)
                for i, (chain, _) in enumerate(leaves)
                if chain[-1] in parts
            ]
            found.sort()
            if not found or (len(found) > 1 and found[0][:2] == found[1][:2]):
                return None
            shares[found[0][2]].append(item)
        lacking = (_holds_weights(leaf) and not own for own, (_, leaf) in zip(shares, leaves, strict=True))
        return None if any(lacking) else shares


def _named(group: Any) -> list[Stored]:
    """The weights of a layer in the order of their list."""
    names = files.texts(group, "weight_names")
    if names is None:
        raise ValueError(f"{group.name} in the file lacks weight_names: it is incomplete.")
    found = []
    for name in names:
        role = name.rpartition("/")[2].removesuffix(":0")
        if "lora_" in role:
            raise lora_error(name)
        known = any(role in roles for roles in _ROLES.values())
        found.append(_stored(name, files.child(group, name), role if known else None))
    return found


def _leaves(entry: Config, chain: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Config]]:
    """The layers of a model, and of those in it, with the names that lead there."""
    wrapped = _inner(entry, "layer")
    if is_model(entry):
        for inner in _entries(entry):
            yield from _leaves(inner, (*chain, _name_of(inner)))
    elif isinstance(wrapped, Mapping) and len(leaves := list(_leaves(wrapped, (*chain, _name_of(wrapped))))) > 1:
        yield from leaves
    else:
        yield chain, entry


def _part(items: list[Stored], entry: Config | None) -> Node:
    """The weights of one layer, perhaps with others inside."""
    groups = _by_prefix(items)
    vectors = [item for item in items if re.match("vector_u|sn_u", item.name.rpartition("/")[2])]
    if vectors and len(items) < 4:  # of SpectralNormalization, not trained, and second in get_weights()
        rest = [item for item in items if item not in vectors]
        return Node([*rest[:1], *vectors, *rest[1:]])
    sides = [[item for item in items if f"/{side}_" in f"/{item.name}"] for side in ("forward", "backward")]
    if all(sides) and len(items) == sum(map(len, sides)):
        return Node([], [[_part(side, _inner(entry, "layer")) for side in sides]])
    parts = _known_order(group.rpartition("/")[2] for group in groups)
    if parts and len(parts) == len(groups):
        by_part = {group.rpartition("/")[2]: own for group, own in groups.items()}
        return Node([item for part in parts for item in by_part[part]])
    if len(groups) > 1:
        return Node(items) if _is_even_stack(entry) else _unordered(items)
    names = [item.name.rpartition("/")[2].removesuffix(":0") for item in items]
    known = _weight_names(entry)
    if sorted(names) == sorted(set(known)):  # one of them may not be trained
        items = [items[names.index(name)] for name in known]
    return Node(items)


def _is_even_stack(entry: Config | None) -> bool:
    """Whether it is an RNN of several cells, of which all are trained or none."""
    cells = _inner(_inner(entry, "cell") or entry, "cells") or ()
    return len({bool(_inner(cell, "trainable") in (None, True)) for cell in cells}) == 1


def _by_prefix(items: list[Stored]) -> dict[str, list[Stored]]:
    groups: dict[str, list[Stored]] = {}
    for item in items:
        groups.setdefault(item.name.rpartition("/")[0], []).append(item)
    return groups


def _unordered(items: list[Stored]) -> Node:
    """Layers of which the list does not tell the order, as some of them may not be trained."""
    return Node([], [[_part(group, None)] for group in _by_prefix(items).values()])


def lora_error(name: str) -> ValueError:
    return ValueError(
        f"Keras' layer of {name!r} has LoRA weights (`lora_rank`), of which a torch layer has none. Merge them: "
        "keras_model.save('merged.keras') stores the product in the kernel, and from_keras reads that file."
    )


def lora_layers(config: Any) -> list[str]:
    """The names of the layers in a config that have LoRA weights."""
    left, found = [config], []
    while left:
        item = left.pop()
        if isinstance(item, Mapping):
            left += reversed(list(item.values()))
            if item.get("lora_rank"):
                found.append(str(item.get("name")))
        elif isinstance(item, (list, tuple)):
            left += reversed(item)
    return found
