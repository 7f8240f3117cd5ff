"""The layers of a saved Keras model, and what its config tells of the program that made them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch_kinit import checks
from torch_kinit.keras.configs import SHARING, is_model
from torch_kinit.keras.doubts import missing_numbers, other_convention, unsure_sources
from torch_kinit.keras.draws import Config, Layer, Source, Weight, snake_case
from torch_kinit.keras.entries import ATTENTIONS
from torch_kinit.keras.live import WITHOUT_SEED, captured_layers, is_captured
from torch_kinit.keras.order import WAYS, Doubt, Schedule
from torch_kinit.keras.program import BUILDS, Node, Number
from torch_kinit.keras.read import read_layer
from torch_kinit.keras.twin import Twin

_RECURRENT = ("SimpleRNN", "LSTM", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")


class Model:
    """A Keras model, from what `load_config` gives: its layers with weights or draws, and the order of the draws."""

    def __init__(self, config: Config) -> None:
        self.has_seeds = is_captured(config)  # nothing is to be drawn, and nothing to be guessed
        self._seen: dict[tuple[str, ...], Layer] = {}
        self._of_keras_2 = False
        self._in_time: list[Node] = []  # models in a TimeDistributed
        self._convention = config.get("convention")
        self._sharing_told = config.get(SHARING) is True
        if self.has_seeds:
            self._root = Node("")
            self.layers = captured_layers(config)
            rest = {layer.name: iter(layer.weights) for layer in self.layers}
            self._listed_weights = [next(rest[str(entry["layer"])]) for entry in config["weights"]]
        else:
            self._root = self._model(config, "", "")
            self._of_keras_2 = _is_of_keras_2(config)
            if self._of_keras_2:
                _draw_when_built(self._root.layers())
            _give_taken_numbers(self._root)
            # In the config's order, a shared one once; "dense" of a nested model "encoder" is "encoder/dense".
            self.layers = [x for x in self._root.layers() if x.weights or x.constructor or x.build]
            self._unsure_objects = _merge_objects(self.layers) if self._sharing_told else []

    def schedule(
        self,
        build: str | None = None,
        order: Sequence[str | int | Twin] | None = None,
        made: str | None = None,
    ) -> tuple[list[Source], list[Doubt]]:
        """All sources, in the order in which making the model in code has them drawn; and what of it is assumed.

        `build`, `order` and `made` are those of `replay_keras`; a model in `order` stands for its layers.
        """
        checks.choice("build", BUILDS[0] if build is None else build, BUILDS)
        checks.choice("made", WAYS[0] if made is None else made, WAYS)
        if self.has_seeds:
            weights = [weight for layer in self.layers for weight in layer.weights]
            for weight in weights:
                if weight.source.draws and weight.name != WITHOUT_SEED:
                    raise ValueError(f"A {weight.name} of `keras_config` has a random initializer and no seed.")
            return [weight.source for weight in weights], []
        schedule = Schedule()
        nodes = self._listed(order or ())
        named = any(isinstance(item, str) for item in order or ())
        before = [] if named else [source for node in nodes for source in schedule.draws(node)[0]]
        if named:
            drawn = schedule.listed(nodes, build or BUILDS[self._root.functional], doubting=build is None)
        elif made in WAYS[1:]:
            drawn = schedule.from_config(self._root, str(made))
        else:
            drawn = schedule.draws(self._root, build)
            schedule.doubts += [] if order else missing_numbers(self._root)
        sources = list(dict.fromkeys([*before, *drawn[0], *drawn[1]]))
        doubts = [*schedule.doubts, *unsure_sources(self.layers, sources, made, sharing_told=self._sharing_told)]
        if names := tuple(dict.fromkeys(layer.name for layer in self._unsure_objects)):
            doubts.append(
                Doubt(names, "of equal initializers, the last before a layer that shares one is the same object")
            )
        return sources, doubts

    def as_in_get_weights(self, weights: Sequence[Weight]) -> list[Weight]:
        """Weights that stand layer by layer in the order of `get_weights()`.

        They are the same, but that tf.keras has what is not trained of a model in a TimeDistributed after all of that.
        """
        if self.has_seeds:  # keras_config lists them so
            wanted = {id(weight) for weight in weights}
            return [weight for weight in self._listed_weights if id(weight) in wanted]
        last: dict[int, float] = {id(weight): i for i, weight in enumerate(weights)}
        for node in self._in_time if self._of_keras_2 else ():
            own = [weight for layer in node.layers() for weight in layer.weights if id(weight) in last]
            end = max((last[id(weight)] for weight in own), default=0)
            last |= {id(weight): end + 0.5 for weight in own if weight.name.startswith("moving_")}
        return sorted(weights, key=lambda weight: last[id(weight)])

    def check_backend(self, backend: str) -> None:
        """Refuse numbers that the model's Keras cannot have drawn."""
        if self._of_keras_2 and backend != "tensorflow":
            raise ValueError(f"`keras_config` is of tf.keras, which draws on TensorFlow, and `backend` is {backend!r}.")

    def check_convention(self, convention: str) -> list[Doubt]:
        """Raise if the fans of attention are known to be of another convention; a doubt where they seem to be."""
        if self._convention is None:  # of a saved config, and of what the recipe in the porting guide gives
            return other_convention(self.layers, convention)
        if self._convention != convention and any(w.axes for layer in self.layers for w in layer.weights):
            raise ValueError(
                f"`keras_config` is of a model with the fans of {self._convention}, and `convention` is "
                f"{convention!r}: give convention={self._convention!r}."
            )
        return []

    def _listed(self, order: Sequence[str | int | Twin]) -> list[Node]:
        """The nodes of an `order`; if it names layers, all that draw must be among them."""
        nodes = {node.path: node for part in self._root.parts for node in part.nodes()}
        names = [item for item in order if isinstance(item, str)]
        for name, count in Counter(names).items():
            if name not in nodes:
                raise ValueError(
                    f"`order` has {checks.short(name)}, which is no layer of the model.{checks.near(name, nodes)}"
                )
            if count > 1:
                raise ValueError(f"`order` has {checks.short(name)} twice.")
        covered = {layer for name in names for layer in nodes[name].layers()}
        drawing = ((path, node.layer) for path, node in nodes.items() if node.layer and node.draws())
        if names and (lacking := [path for path, layer in drawing if layer not in covered]):
            raise ValueError(f"`order` lacks layers that draw seeds: {checks.listed(map(repr, lacking))}.")
        return [nodes[item] if isinstance(item, str) else _apart(item) for item in order]

    def _model(self, entry: Config, path: str, prefix: str) -> Node:
        config = entry["config"]
        functional = "input_layers" in config
        entries = config if isinstance(config, list) else config["layers"]
        parts = [self._part(part, prefix) for part in entries]
        outer = min((number for part in parts if part.is_input() for number in part.numbers), default=None)
        for part in parts:
            if part.parts:
                _place_model(part, outer, in_list=not functional)
        numbers = [number for part in parts for number in part.numbers] + _numbers_of(entry)
        outputs = [] if isinstance(config, list) else config.get("output_layers") or []
        ends = [(prefix + name, k) for name, k in inputs_of(outputs)]
        return Node(path, None, parts, functional, built_when_made=functional, numbers=numbers, outputs=ends)

    def _part(self, entry: Config, prefix: str) -> Node:
        """A layer of a model, or a model in it."""
        inner = entry
        while inner.get("class_name") == "TimeDistributed":
            inner = inner["config"]["layer"]
        config = entry.get("config")
        name = str(entry.get("name") or (config.get("name") if isinstance(config, Mapping) else None))
        if is_model(inner):
            node = self._model(inner, prefix + name, f"{prefix}{name}/")
            self._in_time += [node] if inner is not entry else []
            node.named = inner is entry and not _numbers_of(entry)
            node.numbers += [number for number in _numbers_of(entry) if number not in node.numbers]  # of what wraps it
        else:
            node = Node(prefix + name, self._shared(entry, prefix), numbers=_numbers_of(entry))
        node.calls = [[(prefix + name, k) for name, k in inputs_of(call)] for call in entry.get("inbound_nodes") or []]
        return node

    def _shared(self, entry: Config, prefix: str) -> Layer:
        """A layer; the same again where its automatic name, which Keras gives once, comes again."""
        layer = read_layer(entry)
        path = prefix + layer.name
        key = layer.class_name, layer.name if _numbers_of(entry) else path, _text_of(entry)
        layer.name = path
        return self._seen.setdefault(key, layer)


def _is_of_keras_2(config: Config) -> bool:
    """Whether Keras 2 or tf.keras saved it, which say so, and have another name for the shape of an Input."""
    inner = config.get("config")
    listed = inner.get("layers") if isinstance(inner, Mapping) else None
    first = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], Mapping) else {}
    old_input = "batch_input_shape" in (first.get("config") or {})
    return old_input or str(config.get("keras_version")).startswith(("1.", "2."))


def _draw_when_built(layers: Sequence[Layer]) -> None:
    """Have each layer draw as in tf.keras: a seed when an initializer is first called, and none for a Dropout."""
    for layer in layers:
        layer.constructor, layer.natural = [], []
        layer.build = list(dict.fromkeys(weight.source for weight in layer.weights))


def _text_of(entry: Config) -> str:
    """The config of a layer, without the identities of shared objects, which a file has of each but once."""
    text = json.dumps(entry.get("config"), default=str)
    return re.sub(r', "shared_object_id": \d+', "", text)


def _merge_objects(layers: Sequence[Layer]) -> list[Layer]:
    """Give layers the same source for what a .keras file says to be one object; those of which it says not enough.

    Keras gives an object that it saves again an id, but its first place, before, has none: it is an equal initializer.
    The initializers of recurrent layers are saved twice each, so that every one has an id.
    """
    sources = [(x, s) for x in layers if x.class_name != "Bidirectional" for s in x.natural if s.draws]
    unsure: list[Layer] = []
    for object_id in dict.fromkeys(s.shared_object_id for _, s in sources if s.shared_object_id is not None):
        places = [i for i, (_, source) in enumerate(sources) if source.shared_object_id == object_id]
        layer, first = sources[places[0]]
        equal = [(x, s) for x, s in sources[: places[0]] if s.shared_object_id is None and s.written == first.written]
        saved_twice = layer.class_name in _RECURRENT
        if saved_twice and (first.default or not equal):
            equal = []  # it is the first place itself
        if len(equal) > 1 or (saved_twice and equal):
            unsure += [*(x for x, _ in equal), layer]
        if len(places) > 1 or not saved_twice:
            _make_one([first, *(s for _, s in equal[-1:]), *(sources[i][1] for i in places)], layers, object_id)
    return unsure


def _make_one(sources: Sequence[Source], layers: Iterable[Layer], object_id: int) -> None:
    """Put one source, an object that is made before all layers that have it, in the place of several equal ones."""
    one, same = sources[0], set(sources)
    one.object_id = object_id
    for layer in layers:
        layer.constructor = [one if source in same else source for source in layer.constructor]
        layer.constructor.sort(key=lambda source: source.object_id is None)
        layer.natural = [one if source in same else source for source in layer.natural]
        for weight in layer.weights:
            weight.source = one if weight.source in same else weight.source


def _place_model(part: Node, outer: Number | None, *, in_list: bool) -> None:
    """Note what is known of when a model inside another was made and built.

    `outer` is the number of the Input of the model around, which is below the inner one's if that was made later.
    """
    own = part.parts[0].numbers if part.parts[0].is_input() else []
    # In Sequential([Dense(2), model]), a functional model was made in an earlier statement.
    if (own and outer is not None and own[0] < outer) or (part.functional and in_list):
        part.early = True
    if own and not part.functional:
        # A Sequential had this Input from the start, or got it when the model around called it. Keras saves both alike,
        # but then the automatic number is above that of the input of the model around.
        part.built_when_made = outer is None or own[0] < outer
        if not part.built_when_made:
            part.numbers = [number for number in part.numbers if number not in own]
            part.taken += own
    elif part.parts[0].is_input() and not part.functional:
        part.built_when_made = not part.parts[0].path.endswith("_input")  # which tf.keras makes when it is called


def _apart(item: int | Twin) -> Node:
    """What an `order` has that is no layer of the model: a layer of which only the draws matter, or so many draws."""
    if isinstance(item, Twin):
        return Node(item.class_name, read_layer(item.entry()))
    return Node(f"{item} draws", Layer("", "", [Source(None) for _ in range(item)]))


def _give_taken_numbers(root: Node) -> None:
    """Give each attention layer the number of the Dropout that Keras makes in it when it is built."""
    nodes = [node for node in root.nodes() if node.layer]
    attention = [node for node in nodes if node.layer and node.layer.class_name in ATTENTIONS]
    for kind in ATTENTIONS:  # those of a class in the order of their numbers
        own = [i for i, node in enumerate(attention) if node.layer and node.layer.class_name == kind]
        if all(attention[i].numbers for i in own):
            ordered = sorted((attention[i] for i in own), key=lambda node: node.numbers)
            for i, node in zip(own, ordered, strict=True):
                attention[i] = node
    for kind in ("dropout", "softmax"):
        present = {number for node in nodes for own, number in node.numbers if own == kind}
        missing = sorted(set(range(max(present, default=0))) - present)
        if len(missing) <= len(attention):
            for node, number in zip(attention, missing, strict=False):
                node.taken.append((kind, number))


def _numbers_of(entry: Config) -> list[tuple[str, int]]:
    """The kind and number in an automatic name, conv2d_12, of a layer and of the one inside."""
    config = entry.get("config")
    if not isinstance(config, Mapping):
        return []
    name = str(config.get("name")).removeprefix("forward_").removeprefix("backward_")
    kind = snake_case(str(entry.get("class_name"))).replace("group_query", "grouped_query")
    if kind == "input_layer" and (old := re.fullmatch(r"input_([1-9]\d*)", name)):  # of tf.keras, which counts from 1
        return [(kind, int(old[1]) - 1)]
    number = name.removeprefix(kind).removeprefix("_")
    automatic = name.startswith(kind) and (not number or (number.isdecimal() and number[0] != "0"))
    found = [(kind, int(number or 0))] if automatic else []
    several = config.get("cells") or ()
    inside = [config.get("layer"), config.get("cell"), *(several if isinstance(several, list) else ())]
    return found + [number for inner in inside if isinstance(inner, Mapping) for number in _numbers_of(inner)]


def inputs_of(call: Any) -> Iterator[tuple[str, int]]:
    """The layers that a call takes tensors from, and which of their calls; as Keras 2 and 3 save it."""
    if isinstance(call, Mapping):
        call = list(call.values())
    if isinstance(call, (list, tuple)):
        if len(call) >= 3 and isinstance(call[0], str) and type(call[1]) is type(call[2]) is int:
            yield call[0], call[1]
        else:
            for value in call:
                yield from inputs_of(value)
