"""What Keras' layers that hold other layers draw and hold: wrappers, stacks of cells, and Bidirectional's copies."""

from __future__ import annotations

from collections.abc import Callable

from torch_kinit.keras.draws import Config, Layer

Read = Callable[..., Layer]  # read_layer, which these ask for what is inside


def take(layer: Layer, inner: Layer, part: str = "") -> None:
    """Draw and weigh what the layer inside does."""
    layer.constructor += inner.constructor
    layer.natural += inner.natural
    layer.build += inner.build
    layer.no_twin = layer.no_twin or inner.no_twin
    for weight in inner.weights:
        weight.name = f"{part}/{weight.name}" if part else weight.name
        layer.weights.append(weight)


def wrapper(layer: Layer, config: Config, read: Read) -> None:
    """TimeDistributed of a layer, RNN of a cell."""
    take(layer, read(config["layer"] if "layer" in config else config["cell"]))


def stack(layer: Layer, config: Config, read: Read) -> None:
    """StackedRNNCells, Pipeline."""
    for i, inner in enumerate(config["cells"] if "cells" in config else config["layers"]):
        take(layer, read(inner), str(i))


def spectral_normalization(layer: Layer, config: Config, read: Read) -> None:
    take(layer, read(config["layer"]))
    kernel, *others = layer.weights
    layer.weights = [kernel]
    vector = {"class_name": "TruncatedNormal", "config": {"mean": 0.0, "stddev": 0.02, "seed": None}}
    layer.add("vector_u", (1, kernel.shape[-1] if kernel.shape else None), vector)
    layer.weights += others


def bidirectional(layer: Layer, config: Config, read: Read) -> None:
    """The layer given is thrown away: a copy runs forward, and one backward unless that layer was given, too."""
    saved = config.get("backward_layer") or config["layer"]
    name, backward_name = (str(inner["config"].get("name")) for inner in (config["layer"], saved))
    template_name = name.removeprefix("forward_").removeprefix("backward_")
    mirrored = saved is config["layer"] or backward_name == f"backward_{template_name}"
    template = read(config["layer"])
    forward = read(config["layer"], copied=True)
    backward = read(saved, copied=mirrored)
    # What is not made by Bidirectional itself was made before it.
    made = (template, forward, backward) if mirrored else (template, backward, forward)
    layer.constructor += [source for part in made for source in part.constructor]
    # From a config, Keras makes the two that are saved there, and then a copy of the first.
    natural = (template, backward, forward) if config.get("backward_layer") else made
    layer.natural += [source for part in natural for source in part.natural]
    for name, part in (("forward", forward), ("backward", backward)):
        part.constructor, part.natural = [], []
        take(layer, part, name)


WRAPPERS = {
    **dict.fromkeys(("TimeDistributed", "RNN"), wrapper),
    **dict.fromkeys(("StackedRNNCells", "Pipeline"), stack),
    "SpectralNormalization": spectral_normalization,
    "Bidirectional": bidirectional,
}
