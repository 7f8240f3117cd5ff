"""What a Keras layer draws and holds: `Source`, `Weight`, `Layer`; and the seeds that its sources draw."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]
Shape = tuple[int | None, ...]

SCALED = {f"{name}_{law}" for name in ("glorot", "he", "lecun") for law in ("normal", "uniform")} | {"variance_scaling"}
RANDOM = SCALED | {"random_normal", "truncated_normal", "random_uniform", "orthogonal"}
# The arguments of random initializers and their defaults. With others it was made as an object, not given by name.
_DEFAULTS: dict[str, object] = {
    **{"seed": None, "input_axes": None, "output_axes": None, "gain": 1.0, "mean": 0.0, "stddev": 0.05},
    **{"minval": -0.05, "maxval": 0.05, "scale": 1.0, "mode": "fan_in", "distribution": "truncated_normal"},
}


def snake_case(name: str) -> str:
    """A class' name as Keras makes names of it: "Conv2DTranspose" gives "conv2d_transpose"."""
    return re.sub("(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", name).lower()


class Source:
    """An initializer of a layer; or a SeedGenerator, which draws a seed and gives no weight. Equal only to itself."""

    def __init__(self, config: Config | str | None, seed: object = None) -> None:
        self.config = config  # as Keras saves it, a dict or the name; None for a SeedGenerator
        self._arguments: Config = (config.get("config") or {}) if isinstance(config, Mapping) else {}
        name = config.get("class_name") if isinstance(config, Mapping) else config
        name = snake_case(str(name)).removesuffix("_initializer")  # "he_normal"
        self.name = f"random_{name}" if name in ("normal", "uniform") else name
        self.random = config is None or self.name in RANDOM  # whether Keras' class has a seed
        if isinstance(config, Mapping) and self.random:
            seed = self._arguments.get("seed")
        while isinstance(seed, Mapping):  # a SeedGenerator as Keras saves it
            seed = (seed.get("config") or {}).get("seed")
        self.seed: int | None = seed if isinstance(seed, int) else None  # None if it is to be drawn
        self.given = False  # whether it is an argument of a layer's, which may have been an object
        self.default = False  # whether it is what the layer has anyway for the argument it was given to
        self.seed_lost = False  # whether the layer's config has no seed, given or not
        self.object_id: int | None = None  # of an object that the file says to be in several places

    def entry(self) -> dict[str, Any]:
        """The config as a dict, whichever way it was saved."""
        if isinstance(self.config, Mapping):
            return {**self.config, "config": dict(self._arguments)}
        return {"class_name": str(self.config), "config": {}}

    @property
    def written(self) -> str:
        """The config as text, without the id of the object: equal for what one object may be."""
        entry = {key: value for key, value in self.entry().items() if key != "shared_object_id"}
        return json.dumps(entry, sort_keys=True, default=str)

    @property
    def scaled(self) -> bool:
        """Whether the fans are the layer's to tell: a VarianceScaling, or one of its names, without both axes."""
        return self.name in SCALED and None in (self._arguments.get("input_axes"), self._arguments.get("output_axes"))

    @property
    def draws(self) -> bool:
        """Whether it draws a seed when it is made."""
        return self.random and self.seed is None

    @property
    def with_arguments(self) -> bool:
        """Whether no name says all of it: it was an object or a dict."""
        return self.random and any(_DEFAULTS.get(key, value) != value for key, value in self._arguments.items())

    @property
    def shared_object_id(self) -> int | None:
        """What a .keras file gives an object that is in several places."""
        found = self.config.get("shared_object_id") if isinstance(self.config, Mapping) else None
        return found if isinstance(found, int) and self.random else None

    def take_seed(self, generator: random.Random) -> int | None:
        """The seed that it uses, which is the next one of `generator` unless the config gives it; None without one."""
        return _next_seed(generator) if self.random and self.seed is None else self.seed


class SavedDraw(Source):
    """The two draws of RandomCrop, whose config has the seed it drew where none was given."""

    def take_seed(self, generator: random.Random) -> int | None:
        """Its own seed, before that of a SeedGenerator; none is taken if the saved seed was given, not drawn."""
        state = generator.getstate()
        seed, _ = _next_seed(generator), _next_seed(generator)
        if self.seed not in (None, seed):
            generator.setstate(state)
        return seed


def _next_seed(generator: random.Random) -> int:
    """As keras.utils.rng_utils.make_default_seed draws it."""
    return generator.randint(1, 10**9)


def seeds_of(sources: Iterable[Source], seed: int) -> dict[Source, int]:
    """The seed of each source that has one, made in this order after `keras.utils.set_random_seed(seed)`."""
    generator = random.Random(seed)
    found = [(source, source.take_seed(generator)) for source in sources]
    return {source: own for source, own in found if own is not None}


@dataclass(eq=False)
class Weight:
    """One weight of a layer."""

    name: str  # "kernel", "moving_mean", ...; "query/kernel", "forward/kernel" in a part of the layer
    shape: Shape | None  # Keras'; None for a size that the config does not tell, or for all of it
    source: Source  # where its values come from
    axes: tuple[Sequence[int], Sequence[int]] | None = None  # of Keras 3.15's fans, where they are not by the shape
    unit_forget: bool = False  # an LSTM's bias, whose second quarter is ones; the others are two calls of the source
    dtype: str | None = None  # in which Keras draws it; None where the config does not tell

    @property
    def fans(self) -> tuple[int, int] | None:
        """Keras 3.15's fans where they are not those of the shape, and the config tells them."""
        if self.axes is None or self.shape is None:
            return None
        inputs, outputs = (product(*(self.shape[a] for a in axes)) for axes in self.axes)
        return None if inputs is None or outputs is None else (inputs, outputs)


@dataclass(eq=False)
class Layer:
    """A layer: the sources in the order in which `__init__` and `build` draw, the weights in `get_weights()`'s."""

    name: str
    class_name: str
    constructor: list[Source] = field(default_factory=list)
    build: list[Source] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    natural: list[Source] = field(default_factory=list)  # the constructor's, if all initializers are given by name
    no_twin: str = ""  # "a GRU with reset_after=False": what it is, where torch has no such layer

    def sources(self) -> list[Source]:
        """All that it draws from, of the constructor first."""
        return [*self.constructor, *self.build]

    def given(self, config: Config, **defaults: str) -> list[Source | None]:
        """Initializers that `__init__` makes of its arguments; one that is None is made by `add`."""
        configs = [config.get(f"{name}_initializer", default) for name, default in defaults.items()]
        sources = [None if c is None else Source(c) for c in configs]
        for source, default in zip(sources, defaults.values(), strict=True):
            if source:
                source.given = True
                source.default = source.name == Source(default).name and not source.with_arguments
        self.constructor += [source for source in sources if source]
        return sources

    def add(self, name: str, shape: Shape, source: Source | Config | str | None, **more: Any) -> None:
        """A weight; an initializer that is no Source yet is made now, for None a glorot_uniform."""
        if not isinstance(source, Source):
            source = Source(source or "glorot_uniform")
            self.build.append(source)
        self.weights.append(Weight(name, shape, source, **more))

    def add_bias(self, config: Config, shape: Shape, source: Source | None, **more: Any) -> None:
        if config.get("use_bias", True):
            self.add("bias", shape, source, **more)

    def add_lora(self, config: Config, what: str, a: Shape, b: Shape) -> None:
        """The two factors of a low-rank update, where the layer has one."""
        if rank := config.get("lora_rank"):
            self.add(f"lora_{what}_a", (*a, rank), "he_uniform")
            self.add(f"lora_{what}_b", (rank, *b), "zeros")


def axes_of(equation: str) -> tuple[list[int], list[int]]:
    """The axes of an EinsumDense's kernel that are inputs and outputs; one that is both counts as an output."""
    letters, outputs = equation.replace(" ", "").partition(",")[2].split("->")
    ins = [i for i, letter in enumerate(letters) if letter not in outputs]
    return ins, [i for i, letter in enumerate(letters) if letter in outputs]


def lora_error(name: str) -> ValueError:
    """For a layer with weights that no torch layer has."""
    return ValueError(
        f"Keras' layer {name!r} has LoRA weights (`lora_rank`), of which a torch layer has none. Merge them: "
        "keras_model.save('merged.keras') adds their product to the kernel, and from_keras reads that file; "
        "a config is to be from before enable_lora."
    )


def product(*sizes: int | None) -> int | None:
    """The product, if all sizes are known."""
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None
