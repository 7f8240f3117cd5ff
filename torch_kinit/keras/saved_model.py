"""The layers of a saved Keras model, and the order in which building it in code draws its seeds."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch_kinit import checks
from torch_kinit.keras.draws import Config, Layer, Source
from torch_kinit.keras.program import CALLED, MADE, Node, inputs_of, numbers_of, program, settle_input
from torch_kinit.keras.read import read_layer

BUILDS = ("sequential", "functional")
_MODELS = ("Sequential", "Functional", "Model")


def load_config(keras_config: object) -> Config:
    """The config of a model that lists its layers, from a dict, from JSON, or from a .json or .keras file."""
    if isinstance(keras_config, (str, os.PathLike)) and not str(keras_config).lstrip().startswith("{"):
        keras_config = _read_file(Path(keras_config))
    if isinstance(keras_config, str):
        try:
            keras_config = json.loads(keras_config)
        except json.JSONDecodeError as error:
            raise ValueError(f"`keras_config` is no JSON: {error}.") from None
    if not isinstance(keras_config, Mapping):
        hint = " Give model.to_json()." if hasattr(keras_config, "to_json") else ""
        raise TypeError(
            "`keras_config` must be a dict, JSON as model.to_json() gives it, or the path of a .json or .keras file, "
            f"got {type(keras_config).__name__}.{hint}"
        )
    if "class_name" not in keras_config and "layers" in keras_config:  # what get_config() gives
        class_name = "Functional" if "input_layers" in keras_config else "Sequential"
        keras_config = {"class_name": class_name, "config": keras_config}
    if not _is_model(keras_config):
        raise ValueError(
            f"The config of {keras_config.get('class_name')} does not list its layers, as that of a subclassed model. "
            "Give the config of a Sequential or functional model, or the model's draws through `order`."
        )
    return keras_config


def _read_file(path: Path) -> str:
    if path.suffix not in (".json", ".keras"):
        raise ValueError(
            f"`keras_config` must be JSON or the path of a .json or .keras file, got {str(path)!r}. "
            "model.save('model.keras') and model.to_json() make them."
        )
    if path.suffix == ".json":
        return path.read_text(encoding="utf-8")
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read("config.json").decode("utf-8")
    except (zipfile.BadZipFile, KeyError):
        raise ValueError(f"{str(path)!r} is no model saved by Keras 3: it is no zip file with a config.json.") from None


def _is_model(entry: Config) -> bool:
    config = entry.get("config")
    if isinstance(config, list):  # a Sequential before Keras 2.2
        return True
    if not isinstance(config, Mapping) or "layers" not in config:
        return False
    return entry.get("class_name") in _MODELS or "input_layers" in config


Guesses = list[tuple[str, str]]  # layers of which only their places in the config tell which draws first
Draws = tuple[list[Source], list[Source]]  # the sources that draw when a layer or model is made, and when it is built


class Model:
    """A saved model, from what `load_config` gives.

    Its `layers` are those with weights or draws, in the config's order, a shared one once; those of a nested model
    "encoder" are named "encoder/dense".
    """

    def __init__(self, config: Config) -> None:
        self._seen: dict[tuple[str, ...], Layer] = {}
        self._root = self._model(config, "", "")
        self.layers = [x for x in self._root.layers() if x.weights or x.constructor or x.build]

    def schedule(self, build: str | None = None, names: Sequence[str] | None = None) -> tuple[list[Source], Guesses]:
        """All sources, in the order in which making the model in code has them drawn; and what of it is a guess.

        `build` and `names` are the `build` and `order` of `replay_keras`; a model in `names` stands for its layers.
        """
        if build is not None:
            checks.choice("build", build, BUILDS)
        guesses: Guesses = []
        if names is None:
            draws = [self._draws(self._root, build, guesses)]
        else:
            draws = [self._draws(node, None, guesses) for node in self._named(names)]
        made, built = in_turn(draws, build or BUILDS[self._root.functional])
        return list(dict.fromkeys([*made, *built])), guesses

    def _named(self, names: Sequence[str]) -> list[Node]:
        """The layers and models that `names` names."""
        nodes = {node.path: node for part in self._root.parts for node in part.nodes()}
        for name, count in Counter(names).items():
            if name not in nodes:
                raise ValueError(f"`order` has {name!r}, which is no layer of the model.{checks.near(name, nodes)}")
            if count > 1:
                raise ValueError(f"`order` has {name!r} twice.")
        covered = {layer for name in names for layer in nodes[name].layers()}
        lacking = [path for path, node in nodes.items() if node.layer and node.draws() and node.layer not in covered]
        if lacking:
            raise ValueError(f"`order` lacks layers that draw seeds: {', '.join(map(repr, lacking))}.")
        return [nodes[name] for name in names]

    def _model(self, entry: Config, path: str, prefix: str) -> Node:
        config = entry["config"]
        functional = "input_layers" in config
        entries = config if isinstance(config, list) else config["layers"]
        parts = [self._part(part, prefix) for part in entries]
        inputs = [number for part in parts if part.is_input() for number in part.numbers]
        for part in parts:
            settle_input(part, min(inputs, default=None))
        numbers = [number for part in parts for number in part.numbers] + numbers_of(entry)
        return Node(path, path, None, parts, functional, built_when_made=functional, numbers=numbers)

    def _part(self, entry: Config, prefix: str) -> Node:
        """A layer of a model, or a model in it."""
        inner = entry
        while inner.get("class_name") == "TimeDistributed":
            inner = inner["config"]["layer"]
        config = entry.get("config")
        name = str(entry.get("name") or (config.get("name") if isinstance(config, Mapping) else None))
        if _is_model(inner):
            node = self._model(inner, prefix + name, f"{prefix}{name}/")
        else:
            node = Node(prefix + name, name, self._shared(entry, prefix), numbers=numbers_of(entry))
        node.name = name
        node.calls = [list(inputs_of(call)) for call in entry.get("inbound_nodes") or []]
        return node

    def _shared(self, entry: Config, prefix: str) -> Layer:
        """A layer; the same again where its automatic name, which Keras gives once, comes again."""
        layer = read_layer(entry)
        path = prefix + layer.name
        key = layer.class_name, layer.name if numbers_of(entry) else path, json.dumps(entry.get("config"), default=str)
        layer.name = path
        return self._seen.setdefault(key, layer)

    def _draws(self, node: Node, build: str | None, guesses: Guesses) -> Draws:
        """What a layer or model draws, and into `guesses` what of its order is one."""
        if node.layer is not None:
            return node.layer.constructor, node.layer.build
        parts = [self._draws(part, None, guesses) for part in node.parts]
        steps = [(i, time) for i in range(len(parts)) for time in (MADE, CALLED)]
        if node.functional:
            steps, own = program(node.parts)
            guesses += own
        drawn: list[Draws] = [
            (parts[i][0], []) if time == MADE else ([], parts[i][1]) for i, time in steps if time <= CALLED
        ]
        made, built = in_turn(drawn, build or BUILDS[node.functional])
        return ([*made, *built], []) if node.built_when_made else (made, built)


def in_turn(steps: Sequence[Draws], build: str) -> Draws:
    """What is made and what is built: one step after the other, or all that is made before all that is built."""
    if build == "functional":
        return [source for step in steps for part in step for source in part], []
    return [source for made, _ in steps for source in made], [source for _, built in steps for source in built]
