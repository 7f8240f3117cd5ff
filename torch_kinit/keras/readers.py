"""What a saved Keras layer says of its weights and of the seeds it draws: one small function a class.

As of Keras 3.15; the order of draws is that of each class' `__init__` and `build`, read there and tested against it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]
Shape = tuple[int | None, ...]

SCALED = {f"{name}_{law}" for name in ("glorot", "he", "lecun") for law in ("normal", "uniform")} | {"variance_scaling"}
RANDOM = SCALED | {"random_normal", "truncated_normal", "random_uniform", "orthogonal", "normal", "uniform"}
# The arguments of random initializers and their defaults. With others it was made as an object, not given by name.
_DEFAULTS: dict[str, object] = {
    **{"seed": None, "input_axes": None, "output_axes": None, "gain": 1.0, "mean": 0.0, "stddev": 0.05},
    **{"minval": -0.05, "maxval": 0.05, "scale": 1.0, "mode": "fan_in", "distribution": "truncated_normal"},
}


def snake_case(name: str) -> str:
    """A class' name as Keras makes names of it: "Conv2DTranspose" gives "conv2d_transpose"."""
    return re.sub("(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", name).lower()


class Source:
    """An initializer of a layer; or a SeedGenerator, which draws a seed and gives no weight.

    Attributes:
        config: as Keras saves it, {"class_name": "HeNormal", "config": {...}}, or the name; None for a SeedGenerator.
        seed: the one in the config, or the one drawn last.
        given: whether the seed is the config's.
        random: whether Keras' class has a seed.
    """

    def __init__(self, config: Config | str | None, seed: object = None) -> None:
        self.settle(config, seed)

    def settle(self, config: Config | str | None, seed: object = None) -> None:
        """Be the source of this initializer."""
        self.config = config
        name = config.get("class_name") if isinstance(config, Mapping) else config
        self.name = snake_case(str(name)).removesuffix("_initializer")
        self.random = config is None or self.name in RANDOM
        if isinstance(config, Mapping) and self.random:
            seed = self._arguments.get("seed")
        while isinstance(seed, Mapping):  # a SeedGenerator as Keras saves it
            seed = (seed.get("config") or {}).get("seed")
        self.seed: int | None = seed if isinstance(seed, int) else None
        self.given = self.seed is not None

    @property
    def _arguments(self) -> Config:
        return self.config.get("config") or {} if isinstance(self.config, Mapping) else {}

    @property
    def scaled(self) -> bool:
        """Whether the fans are the layer's to tell: a VarianceScaling, or one of its names, without both axes."""
        return self.name in SCALED and None in (self._arguments.get("input_axes"), self._arguments.get("output_axes"))

    @property
    def made_first(self) -> bool:
        """Whether it must have been made as an object, so before the layer that was given it."""
        return self.random and any(_DEFAULTS.get(key, value) != value for key, value in self._arguments.items())

    def draw(self, take: Callable[[], int]) -> None:
        """Take one seed, if Keras would."""
        if self.random and not self.given:
            self.seed = take()

    def copy(self) -> Source:
        """What Keras makes of its config: drawn anew unless the seed is given."""
        return Source(self.config, self.seed if self.given else None)


class SavedDraw(Source):
    """The two draws of RandomCrop, whose config has the seed it drew where none was given: `saved`."""

    def __init__(self, saved: int | None) -> None:
        super().__init__(None)
        self.saved = saved

    def draw(self, take: Callable[[], int]) -> None:
        """Take the seed that is saved, then that of a SeedGenerator."""
        self.seed = take()
        take()


@dataclass(eq=False)
class Weight:
    """One weight of a layer.

    Args:
        name: "kernel", "bias", "gamma", "moving_mean", ...; "query/kernel", "forward/kernel" in a part of the layer.
        shape: Keras' shape; None for a size that the config does not tell, and for all of it where none is told.
        source: where its values come from.
        axes: the input and the output axes from which Keras 3.15 computes the fans, where it does not by the shape.
        unit_forget: whether it is an LSTM's bias whose second quarter is ones; the first and the last half are then
            two calls of the initializer.
        root: whether its values are the square roots of the initializer's.
    """

    name: str
    shape: Shape | None
    source: Source
    axes: tuple[Sequence[int], Sequence[int]] | None = None
    unit_forget: bool = False
    root: bool = False

    @property
    def fans(self) -> tuple[int, int] | None:
        """Keras 3.15's fans where they are not those of the shape, and the config tells them."""
        if self.axes is None or self.shape is None:
            return None
        inputs, outputs = (times(*(self.shape[a] for a in axes)) for axes in self.axes)
        return None if inputs is None or outputs is None else (inputs, outputs)


@dataclass(eq=False)
class Layer:
    """A layer: the sources in the order in which `__init__` and `build` draw, the weights in `get_weights()`'s."""

    name: str
    class_name: str
    constructor: list[Source] = field(default_factory=list)
    build: list[Source] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)

    def given(self, config: Config, **defaults: str) -> list[Source | None]:
        """Initializers that `__init__` makes of its arguments; one that is None is made by `add`."""
        configs = [config.get(f"{name}_initializer", default) for name, default in defaults.items()]
        sources = [None if c is None else Source(c) for c in configs]
        self.constructor += [source for source in sources if source]
        return sources

    def add(self, name: str, shape: Shape, source: Source | Config | str | None, **more: Any) -> None:
        """A weight; an initializer that is no Source yet is made now, for None a glorot_uniform."""
        if not isinstance(source, Source):
            source = Source(source or "glorot_uniform")
            self.build.append(source)
        self.weights.append(Weight(name, shape, source, **more))

    def add_lora(self, config: Config, what: str, a: Shape, b: Shape) -> None:
        """The two factors of a low-rank update, where the layer has one."""
        if rank := config.get("lora_rank"):
            self.add(f"lora_{what}_a", (*a, rank), "he_uniform")
            self.add(f"lora_{what}_b", (rank, *b), "zeros")


def times(*sizes: int | None) -> int | None:
    """The product, if all sizes are known."""
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def at(shape: Any, axis: int) -> int | None:
    """The size of an axis, if it is known."""
    return shape[axis] if shape and -len(shape) <= axis < len(shape) else None


def _several(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _kernel_size(layer: Layer, config: Config) -> tuple[int, ...]:
    return _several(config["kernel_size"], int(next(c for c in layer.class_name if c.isdigit())))


def _channels(config: Config, shape: Any, axis: int = 1) -> int | None:
    return at(shape, axis if config.get("data_format") == "channels_first" else -1)


def sizes_of(config: Config, shape: Any) -> Shape:
    axis = config.get("axis", -1)
    return tuple(at(shape, a) for a in ([axis] if isinstance(axis, int) else sorted(axis)))


def dense(layer: Layer, config: Config, shape: Any) -> None:
    kernel, bias = layer.given(config, kernel="glorot_uniform", bias="zeros")
    layer.add("kernel", (at(shape, -1), config["units"]), kernel)
    if config.get("use_bias", True):
        layer.add("bias", (config["units"],), bias)
    layer.add_lora(config, "kernel", (at(shape, -1),), (config["units"],))


def einsum_dense(layer: Layer, config: Config, shape: Any) -> None:
    kernel, bias = layer.given(config, kernel="glorot_uniform", bias="zeros")
    inputs, rest = config["equation"].replace(" ", "").split(",")
    letters, outputs = rest.split("->")
    inputs, outputs, left = inputs.replace("...", ""), outputs.replace("...", ""), inputs.startswith("...")
    known = _several(config["output_shape"], 1)  # without the batch; what is elided is the input's
    elided = len(shape) - len(inputs) if shape else 0
    sizes = dict(zip(reversed(inputs), reversed(shape[: None if left else len(inputs)]), strict=False)) if shape else {}
    given = (reversed(outputs), reversed(known)) if left else (outputs[1:], known)
    sizes |= {letter: size for letter, size in zip(*given, strict=False) if size is not None}
    kernel_shape = tuple(sizes.get(letter) for letter in letters)
    ins = [i for i, letter in enumerate(letters) if letter not in outputs]
    outs = [i for i, letter in enumerate(letters) if letter in outputs]
    layer.add("kernel", kernel_shape, kernel, axes=(ins, outs) if kernel and kernel.scaled else None)
    if axes := config.get("bias_axes"):
        spec = outputs[min(outputs.find(letter) for letter in axes) :]
        ones = () if left else (1,) * elided
        layer.add("bias", (*(sizes.get(letter) if letter in axes else 1 for letter in spec), *ones), bias)
    layer.add_lora(config, "kernel", kernel_shape[:-1], kernel_shape[-1:])


def embedding(layer: Layer, config: Config, shape: Any) -> None:
    (source,) = layer.given(config, embeddings="uniform")
    rows, columns = config["input_dim"], config["output_dim"]
    layer.add("embeddings", (rows, columns), source)
    layer.add_lora(config, "embeddings", (rows,), (columns,))
    if layer.class_name == "ReversibleEmbedding" and not config.get("tie_weights", True):
        layer.add("reverse_embeddings", (columns, rows), source)


def conv(layer: Layer, config: Config, shape: Any) -> None:
    kernel, bias = layer.given(config, kernel="glorot_uniform", bias="zeros")
    channels, filters = _channels(config, shape), config["filters"]
    size: Shape = _kernel_size(layer, config)
    if layer.class_name.endswith("Transpose"):
        layer.add("kernel", (*size, filters, channels), kernel)
    else:
        size = (*size, channels and channels // config.get("groups", 1))
        layer.add("kernel", (*size, filters), kernel)
    if config.get("use_bias", True):
        layer.add("bias", (filters,), bias)
    layer.add_lora(config, "kernel", size, (filters,))


def depthwise_conv(layer: Layer, config: Config, shape: Any) -> None:
    kernel, bias = layer.given(config, depthwise="glorot_uniform", bias="zeros")
    channels, multiplier = _channels(config, shape), config.get("depth_multiplier", 1)
    layer.add("kernel", (*_kernel_size(layer, config), channels, multiplier), kernel)
    if config.get("use_bias", True):
        layer.add("bias", (times(channels, multiplier),), bias)


def separable_conv(layer: Layer, config: Config, shape: Any) -> None:
    first, second, bias = layer.given(config, depthwise="glorot_uniform", pointwise="glorot_uniform", bias="zeros")
    channels, multiplier = _channels(config, shape), config.get("depth_multiplier", 1)
    size = _kernel_size(layer, config)
    layer.add("depthwise_kernel", (*size, channels, multiplier), first)
    layer.add("pointwise_kernel", (*(1 for _ in size), times(channels, multiplier), config["filters"]), second)
    if config.get("use_bias", True):
        layer.add("bias", (config["filters"],), bias)


def recurrent(layer: Layer, config: Config, shape: Any) -> None:
    generator = Source(None, config.get("seed"))
    kind = layer.class_name.removesuffix("Cell")
    if kind not in ("LSTM", "GRU"):  # which take it last
        layer.constructor.append(generator)
    kernel, recurrent_kernel, bias = layer.given(config, kernel="glorot_uniform", recurrent="orthogonal", bias="zeros")
    if kind in ("LSTM", "GRU"):
        layer.constructor.append(generator)
    size: tuple[int, ...] = ()
    channels, units = at(shape, -1), config.get("units")
    if kind.startswith("ConvLSTM"):
        size = _kernel_size(layer, config)
        channels, units = _channels(config, shape, axis=2), config["filters"]
    wide = times(units, {"SimpleRNN": 1, "GRU": 3}.get(kind, 4))
    layer.add("kernel", (*size, channels, wide), kernel)
    layer.add("recurrent_kernel", (*size, units, wide), recurrent_kernel)
    if config.get("use_bias", True):
        two = kind == "GRU" and config.get("reset_after", True)
        forget = "LSTM" in kind and config.get("unit_forget_bias", True)
        layer.add("bias", (2, wide) if two else (wide,), bias, unit_forget=forget)


def batch_normalization(layer: Layer, config: Config, shape: Any) -> None:
    beta, gamma, mean, variance = layer.given(
        config, beta="zeros", gamma="ones", moving_mean="zeros", moving_variance="ones"
    )
    size = sizes_of(config, shape)
    if config.get("scale", True):
        layer.add("gamma", size, gamma)
    if config.get("center", True):
        layer.add("beta", size, beta)
    layer.add("moving_mean", size, mean)
    layer.add("moving_variance", size, variance)
    if config.get("renorm"):
        layer.add("moving_stddev", size, variance and variance.config, root=True)
        layer.add("renorm_mean", size, mean and mean.config)
        layer.add("renorm_stddev", size, variance and variance.config, root=True)


def normalization(layer: Layer, config: Config, shape: Any) -> None:
    """LayerNormalization and GroupNormalization."""
    beta, gamma = layer.given(config, beta="zeros", gamma="ones")
    size = sizes_of(config, shape)
    if config.get("scale", True) or config.get("rms_scaling"):
        layer.add("gamma", size, gamma)
    if config.get("center", True) and not config.get("rms_scaling"):
        layer.add("beta", size, beta)
