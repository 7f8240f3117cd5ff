"""Keras layers of somebody else's, told to the readers of configs: `register_keras_layer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch_kinit import checks
from torch_kinit.initializers.names import recipe
from torch_kinit.keras.draws import Config, Layer, Source, Weight
from torch_kinit.keras.read import OWN_NAMES, OWN_PACKAGES, REGISTERED, objects_first
from torch_kinit.keras.twin import Twin
from torch_kinit.keras.wrappers import Read

Initializer = str | float | Mapping[str, Any] | None
Weights = Mapping[str, Initializer]
Made = Sequence[str | int | Twin | Config]  # what a method makes, in its order


def register_keras_layer(
    class_name: str,
    *,
    weights: Weights | Callable[[Config], Weights] | None = None,
    seed_generators: int | None = None,
    constructor: Made | Callable[[Config], Made] | None = None,
    build: Made | Callable[[Config], Made] | None = None,
) -> None:
    """Tell what a Keras layer that is not Keras' own holds and draws, so that configs with it can be read.

    Args:
        class_name: the class, such as "Sampling". If Keras has a class of that name, the module too:
            "my.layers.Attention" ("__main__.Attention" if it is the program), or the name it is registered by,
            "package>Attention". Registering it again replaces what was told.
        weights: the names of the layer's own weights, in the order of `get_weights()`, each with the initializer that
            it has by default: a Keras name, a config, or a number for a constant. Where the layer's config has
            "<name>_initializer", that counts.
        seed_generators: how many `keras.random.SeedGenerator(seed)` the constructor makes; each draws a seed if the
            layer's config has none.
        constructor: what `__init__` makes, in its order, where that is not the initializers in the layer's config and
            then the `seed_generators`: names of weights for their initializers, ints for so many SeedGenerators, and
            `twin`s, or layers as they are saved in the config, for layers, whose weights follow the layer's own. A twin
            with the `name=` of a module of the port is checked to be that module.
        build: what `build` makes likewise, before the layers of `constructor` are built; by default the initializers of
            the other weights.

    `weights`, `constructor` and `build` can be functions from the layer's config, a dict, to these.

    Raises:
        ValueError: a class of Keras' own, an unknown initializer, a weight that `weights` lacks.
        TypeError: an argument of another type.

    Example: a VAE's sampling, a scale, and a block that makes layers by its config.
        >>> register_keras_layer("Sampling", seed_generators=1)
        >>> register_keras_layer("Scale", weights={"gamma": "ones"})
        >>> register_keras_layer("FeedForward", constructor=lambda config: [
        ...     twin("Dense", units=config["width"]), twin("Dropout", rate=config["rate"]), twin("Dense")])
        >>> from torch import nn
        >>> config = {"class_name": "Sequential", "config": {"layers": [
        ...     {"class_name": "FeedForward", "config": {"width": 8, "rate": 0.1}},
        ...     {"class_name": "Sampling", "config": {}}]}}
        >>> rules_from_keras(config, nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)))["1.weight"]
        'glorot_uniform'
    """
    _check_name(class_name)
    if seed_generators is not None and constructor is not None:
        raise ValueError("`constructor` has all that `__init__` makes, so `seed_generators` goes into it, as an int.")
    count = checks.integer("seed_generators", 0 if seed_generators is None else seed_generators)
    if count < 0:
        raise ValueError(f"`seed_generators` must not be negative, got {count}.")
    known = _checked_weights({} if weights is None else weights)
    names = known if isinstance(known, Mapping) else None
    for argument, value in (("constructor", constructor), ("build", build)):
        if value is not None and not callable(value):
            _checked_made(argument, value, names)
    REGISTERED[class_name] = _Told(known, count, constructor, build)


def _check_name(class_name: object) -> None:
    if not isinstance(class_name, str):
        raise TypeError(f"`class_name` must be the name of a Keras class, got {checks.short(class_name)}.")
    if not class_name:
        raise ValueError("`class_name` must be the name of a Keras class, got ''.")
    if class_name.partition(".")[0] in OWN_PACKAGES and "." in class_name:
        raise ValueError(f"`class_name` must be no class of Keras' own, got {class_name!r}.")
    if class_name in OWN_NAMES:
        raise ValueError(
            f"{class_name!r} is a class of Keras' own, which is known. Another class of that name is told by its "
            f"module, 'my.module.{class_name}', or as it is registered in Keras, 'package>{class_name}'."
        )


def _checked_weights(weights: Any) -> Any:
    """The weights, if they are names with initializers; or the function."""
    if callable(weights):
        return weights
    if not isinstance(weights, Mapping):
        raise TypeError(f"`weights` must be a dict from names to initializers, got {checks.short(weights)}.")
    for name, value in weights.items():
        if not isinstance(name, str):
            raise TypeError(f"`weights` must be a dict from names to initializers, got the key {checks.short(name)}.")
        if not (value is None or isinstance(value, (str, float, int, Mapping))) or isinstance(value, bool):
            raise TypeError(
                f"`weights` gives {checks.short(name)} {checks.short(value)}; it takes a Keras name, a config or a "
                "number."
            )
        with checks.context(f"`weights`, {name!r}"):
            recipe("zeros" if value is None else value)
    return {name: _as_config(value) for name, value in weights.items()}


def _as_config(value: Initializer) -> str | Config:
    if value is None:
        return "glorot_uniform"
    return {"class_name": "Constant", "config": {"value": value}} if isinstance(value, (int, float)) else value


def _checked_made(argument: str, items: Any, names: Iterable[str] | None = None) -> list[Any]:
    """What a method makes, if all are names of weights, each once, numbers of draws and layers."""
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise TypeError(f"`{argument}` must be a list of names of weights, ints and twins, got {checks.short(items)}.")
    for item in items:
        count = isinstance(item, int) and not isinstance(item, bool) and item >= 0
        if not (count or isinstance(item, (str, Twin)) or (isinstance(item, Mapping) and "class_name" in item)):
            raise TypeError(f"`{argument}` lists names of weights, ints from 0 on and twins, got {checks.short(item)}.")
        if isinstance(item, str) and names is not None and item not in names:
            raise ValueError(
                f"`{argument}` has {checks.short(item)}, which is not in `weights`.{checks.near(item, names)}"
            )
        if isinstance(item, str) and items.count(item) > 1:
            raise ValueError(f"`{argument}` has {item!r} twice.")
    return list(items)


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Told:
    """What was told of a class, as a reader of its layers."""

    weights: Any
    seed_generators: int
    constructor: Any
    build: Any

    def __call__(self, layer: Layer, config: Config, read: Read) -> None:
        with checks.context(f"What kinit.register_keras_layer was told of {layer.class_name}"):
            weights, constructor, build = self._of(config)
        sources = {name: _source(config, name, default) for name, default in weights.items()}
        layer.weights = [Weight(name, None, source) for name, source in sources.items()]
        made_parts, built_parts = (
            [_part(item, sources, config, read) for item in items] for items in (constructor, build)
        )
        own = [sources[item] for item in constructor if isinstance(item, str)]
        layer.natural = [source for part in made_parts for source in part.natural]
        layer.constructor = objects_first([source for part in made_parts for source in part.constructor], own)
        layer.build = [source for part in built_parts for source in part.sources()]
        layer.build += [source for part in made_parts for source in part.build]
        for i, part in enumerate(part for part in (*made_parts, *built_parts) if part.class_name):
            layer.no_twin = layer.no_twin or part.no_twin
            for weight in part.weights:
                weight.name = f"{part.name or f'layers[{i}]'}/{weight.name}"
                layer.weights.append(weight)

    def _of(self, config: Config) -> tuple[Mapping[str, str | Config], list[Any], list[Any]]:
        """The weights of a layer with this config, what its constructor makes, and what `build` does."""
        weights = _checked_weights(self.weights(config)) if callable(self.weights) else self.weights
        given = [name for name in weights if config.get(f"{name}_initializer") is not None]
        constructor = [*given, self.seed_generators] if self.constructor is None else _called(self.constructor, config)
        constructor = _checked_made("constructor", constructor, weights)
        left = [name for name in weights if name not in constructor]
        build = _checked_made("build", left if self.build is None else _called(self.build, config), weights)
        if missing := [name for name in left if name not in build]:
            raise ValueError(f"`constructor` and `build` lack {missing[0]!r}, which is in `weights`.")
        return weights, constructor, build


def _called(value: Any, config: Config) -> Any:
    return value(config) if callable(value) else value


def _source(config: Config, name: str, default: str | Config) -> Source:
    """The initializer of a weight: that in the layer's config, or the one it has by default."""
    saved = config.get(f"{name}_initializer", default)
    found = Source("glorot_uniform" if saved is None else saved)
    found.given = config.get(f"{name}_initializer") is not None
    found.default = found.name == Source(default).name and not found.with_arguments
    return found


def _part(item: Any, sources: Mapping[str, Source], config: Config, read: Read) -> Layer:
    """One thing that a method makes, as a layer: without a class if it is an initializer or SeedGenerators."""
    if isinstance(item, (str, int)):
        found = [sources[item]] if isinstance(item, str) else [Source(None, config.get("seed")) for _ in range(item)]
        return Layer("", "", found, natural=found)
    part = read(item.entry() if isinstance(item, Twin) else item)
    part.name = str(item.config.get("name", "")) if isinstance(item, Twin) else part.name
    for weight in part.weights if isinstance(item, Twin) else ():
        weight.shape = None  # a twin goes without sizes
    return part
