"""The layers of a saved Keras model, and the order in which building it in code draws its seeds."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch_kinit import checks
from torch_kinit.keras import files
from torch_kinit.keras.draws import Config, Layer, Source, snake_case
from torch_kinit.keras.read import read_layer

BUILDS = ("sequential", "functional")
MADE, CALLED = -1, 0
Step = tuple[int, int]  # a part of a model, and the time: made, called first, called again
_URGENCY = {(True, CALLED): 0, (False, MADE): 1, (False, CALLED): 2, (True, MADE): 3}  # by whether it is of a layer
Waits = dict[Step, set[Step]]  # for each step, others that come before it
Guesses = list[tuple[str, str]]  # layers of which only their places in the config tell which draws first
Draws = tuple[list[Source], list[Source]]  # the sources that draw when a layer or model is made, and when it is built


def load_config(keras_config: object) -> Config:
    """The config of a model that lists its layers: a dict, JSON, a .json, .keras or .h5 file, or a live Keras model."""
    config: Config | None = read_config_of(keras_config)
    if config is None:
        raise ValueError(f"{str(keras_config)!r} holds weights and no config; save the whole model, or to_json().")
    if not isinstance(config, Mapping):
        raise TypeError(
            "`keras_config` must be a dict, JSON as model.to_json() gives it, a Keras model, or the path of a .json, "
            f".keras or .h5 file, got {type(config).__name__}."
        )
    if "class_name" not in config and "layers" in config:  # what get_config() gives
        config = {"class_name": "Model", "config": config}
    if not is_model(config):
        raise ValueError(
            f"The config of {config.get('class_name')} does not list its layers, as that of a subclassed model. "
            "Give the config of a Sequential or functional model, or the model's draws through `order`."
        )
    return config


def read_config_of(keras_config: object) -> Any:
    """What `load_config` takes, as it stands; None for a file without a config."""
    if not isinstance(keras_config, (str, Mapping)) and callable(to_json := getattr(keras_config, "to_json", None)):
        try:
            keras_config = str(to_json())
        except NotImplementedError:
            raise ValueError(
                f"{type(keras_config).__name__} does not list its layers: it is a subclassed model. "
                "Give its draws through `order`."
            ) from None
    if isinstance(keras_config, (str, os.PathLike)):
        if not str(keras_config).lstrip().startswith("{"):
            return files.read_config(Path(keras_config))
        return files.parse(str(keras_config), "`keras_config`")
    files.check_depth(keras_config, "`keras_config`")
    return keras_config


def is_model(entry: Config) -> bool:
    """Whether a config is that of a model that lists its layers."""
    config = entry.get("config")
    if isinstance(config, Mapping) and "layers" in config:
        return entry.get("class_name") in ("Sequential", "Functional", "Model") or "input_layers" in config
    return isinstance(config, list)  # a Sequential before Keras 2.2


@dataclass(eq=False)
class Node:
    """A layer, or a model with `parts`, and what tells its place in the program."""

    path: str  # "encoder/dense" for the layer "dense" of the model "encoder"
    layer: Layer | None = None
    parts: list[Node] = field(default_factory=list)
    functional: bool = False
    built_when_made: bool = False
    numbers: list[tuple[str, int]] = field(default_factory=list)  # from automatic names: ("conv2d", 12)
    calls: list[list[tuple[str, int]]] = field(default_factory=list)  # the layers, and which call, of each's inputs

    def nodes(self) -> Iterator[Node]:
        """The node itself and all inside."""
        yield self
        for part in self.parts:
            yield from part.nodes()

    def layers(self) -> list[Layer]:
        return list(dict.fromkeys(node.layer for node in self.nodes() if node.layer))

    def draws(self) -> bool:
        return any(source.random for layer in self.layers() for source in (*layer.constructor, *layer.build))

    def is_input(self) -> bool:
        return self.layer is not None and self.layer.class_name == "InputLayer"


class Model:
    """A saved model, from what `load_config` gives: its layers with weights or draws, and the order of the draws."""

    def __init__(self, config: Config) -> None:
        self._seen: dict[tuple[str, ...], Layer] = {}
        self._root = self._model(config, "", "")
        # In the config's order, a shared one once; the layer "dense" of a nested model "encoder" is "encoder/dense".
        self.layers = [x for x in self._root.layers() if x.weights or x.constructor or x.build]

    def schedule(self, build: str | None = None, names: Sequence[str] | None = None) -> tuple[list[Source], Guesses]:
        """All sources, in the order in which making the model in code has them drawn; and what of it is a guess.

        `build` and `names` are the `build` and `order` of `replay_keras`; a model in `names` stands for its layers.
        """
        checks.choice("build", BUILDS[0] if build is None else build, BUILDS)
        guesses: Guesses = []
        nodes, own = ([self._root], build) if names is None else (self._named(names), None)
        draws = [self._draws(node, own, guesses) for node in nodes]
        made, built = in_turn(draws, build or BUILDS[self._root.functional])
        return list(dict.fromkeys([*made, *built])), guesses

    def _named(self, names: Sequence[str]) -> list[Node]:
        nodes = {node.path: node for part in self._root.parts for node in part.nodes()}
        for name, count in Counter(names).items():
            if name not in nodes:
                raise ValueError(f"`order` has {name!r}, which is no layer of the model.{checks.near(name, nodes)}")
            if count > 1:
                raise ValueError(f"`order` has {name!r} twice.")
        covered = {layer for name in names for layer in nodes[name].layers()}
        drawing = ((path, node.layer) for path, node in nodes.items() if node.layer and node.draws())
        if lacking := [path for path, layer in drawing if layer not in covered]:
            raise ValueError(f"`order` lacks layers that draw seeds: {', '.join(map(repr, lacking))}.")
        return [nodes[name] for name in names]

    def _model(self, entry: Config, path: str, prefix: str) -> Node:
        config = entry["config"]
        functional = "input_layers" in config
        entries = config if isinstance(config, list) else config["layers"]
        parts = [self._part(part, prefix) for part in entries]
        outer = min((number for part in parts if part.is_input() for number in part.numbers), default=None)
        for part in parts:
            if part.parts and part.parts[0].is_input() and not part.functional:
                # A Sequential had this Input from the start, or got it when the model around called it. Keras saves
                # both alike, but then the automatic number is above that of the input of the model around.
                own = part.parts[0].numbers
                part.built_when_made = not own or outer is None or own[0] < outer
                if not part.built_when_made:
                    part.numbers = [number for number in part.numbers if number not in own]
        numbers = [number for part in parts for number in part.numbers] + _numbers_of(entry)
        return Node(path, None, parts, functional, built_when_made=functional, numbers=numbers)

    def _part(self, entry: Config, prefix: str) -> Node:
        """A layer of a model, or a model in it."""
        inner = entry
        while inner.get("class_name") == "TimeDistributed":
            inner = inner["config"]["layer"]
        config = entry.get("config")
        name = str(entry.get("name") or (config.get("name") if isinstance(config, Mapping) else None))
        if is_model(inner):
            node = self._model(inner, prefix + name, f"{prefix}{name}/")
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

    def _draws(self, node: Node, build: str | None, guesses: Guesses) -> Draws:
        """What a layer or model draws, and into `guesses` what of its order is one."""
        if node.layer is not None:
            return node.layer.constructor, node.layer.build
        parts = [self._draws(part, None, guesses) for part in node.parts]
        steps = [(i, k) for i in range(len(parts)) for k in (MADE, CALLED)]
        if node.functional:
            steps, own = _program(node.parts)
            guesses += own
        drawn: list[Draws] = [(parts[i][0], []) if k == MADE else ([], parts[i][1]) for i, k in steps if k <= CALLED]
        made, built = in_turn(drawn, build or BUILDS[node.functional])
        return ([*made, *built], []) if node.built_when_made else (made, built)


def _text_of(entry: Config) -> str:
    """The config of a layer, without the identities of shared objects, which a file has of each but once."""
    text = json.dumps(entry.get("config"), default=str)
    return re.sub(r', "shared_object_id": \d+', "", text)


def in_turn(steps: Sequence[Draws], build: str) -> Draws:
    """What is made and what is built: one step after the other, or all that is made before all that is built."""
    if build == "functional":
        return [source for step in steps for part in step for source in part], []
    return [source for made, _ in steps for source in made], [source for _, built in steps for source in built]


def _program(parts: Sequence[Node]) -> tuple[list[Step], Guesses]:
    """The steps of a functional model's program, and the pairs of layers whose order was a guess.

    A layer is made when the inputs of its first call are there, a model as early as can be, and those of a kind in
    the order of their automatic numbers; otherwise the place in the config decides.
    """
    index = {part.path: i for i, part in enumerate(parts)}
    last = [max(0, len(part.calls) - 1) for part in parts]
    before: Waits = {(i, k): set() for i, n in enumerate(last) for k in range(MADE, n + 1)}
    for (i, k), earlier in before.items():
        if k > MADE:
            earlier.add((i, k - 1))
        for path, node in parts[i].calls[k] if 0 <= k < len(parts[i].calls) else ():
            if (j := index.get(path)) is not None:
                earlier.add((j, min(node, last[j])))
    wanted = {(i, k): before[i, CALLED] - {(i, k)} if k == MADE and parts[i].layer else set() for i, k in before}
    numbered = sorted((number, i) for i, part in enumerate(parts) for number in part.numbers)
    for ((kind, _), i), ((other, _), j) in itertools.pairwise(numbered):
        if kind == other and i != j:
            before[j, MADE].add((i, MADE))
    return _in_order(parts, before, wanted)


def _in_order(parts: Sequence[Node], before: Waits, wanted: Waits) -> tuple[list[Step], Guesses]:
    """The steps, after all of `before`, and of `wanted` where that can be; and the pairs that may change places."""
    urgency = {(i, k): (_URGENCY[bool(parts[i].layer), min(k, CALLED)], i, k) for i, k in before}
    after: Waits = defaultdict(set)
    for step in before:
        for other in before[step] | wanted[step]:
            after[other].add(step)
    drawing = {(i, MADE) for i, part in enumerate(parts) if part.draws()}
    left, done, guesses = set(before), list[Step](), Guesses()
    ready = {step for step in left if not before[step] and not wanted[step]}
    while left:
        if not ready:  # A(B(x)) makes A before the inputs of its call are there, as the numbers say
            held_up = _held_up(before, wanted, left)
            if held_up is None:  # steps that wait for each other
                return sorted(before), []
            ready.add(held_up)
        step = min(ready, key=lambda step: urgency[step])
        ready.remove(step)
        left.remove(step)
        done.append(step)
        if step in drawing and (others := drawing & ready):
            guesses.append((parts[step[0]].path, parts[min(others)[0]].path))
        for other in after[step]:
            before[other].discard(step)
            wanted[other].discard(step)
            if other in left and not before[other] and not wanted[other]:
                ready.add(other)
    return done, guesses


def _held_up(before: Waits, wanted: Waits, left: Iterable[Step]) -> Step | None:
    """The first layer to make for one to be made whose inputs are there; None if layers wait in a circle."""
    step = min((step for step in left if step[1] == MADE and not wanted[step]), default=None)
    for _ in before:
        if step is None or not before[step]:
            return step
        step = min(before[step])
    return None


def _numbers_of(entry: Config) -> list[tuple[str, int]]:
    """The kind and number in an automatic name, conv2d_12, of a layer and of the one inside."""
    config = entry.get("config")
    if not isinstance(config, Mapping):
        return []
    name = str(config.get("name")).removeprefix("forward_").removeprefix("backward_")
    kind = snake_case(str(entry.get("class_name"))).replace("group_query", "grouped_query")
    number = name.removeprefix(kind).removeprefix("_")
    found = [(kind, int(number or 0))] if name.startswith(kind) and (not number or number.isdecimal()) else []
    inner = config.get("layer")
    return found + (_numbers_of(inner) if isinstance(inner, Mapping) else [])


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
