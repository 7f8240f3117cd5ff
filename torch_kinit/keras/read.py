"""The table of Keras classes and their readers, the layers that hold others, and `read_layer`, which reads any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_kinit.keras import readers
from torch_kinit.keras.draws import Config, Layer


def _take(layer: Layer, inner: Layer, part: str = "") -> None:
    """Draw and weigh what the layer inside does."""
    layer.constructor += inner.constructor
    layer.build += inner.build
    for weight in inner.weights:
        weight.name = f"{part}/{weight.name}" if part else weight.name
        layer.weights.append(weight)


def wrapper(layer: Layer, config: Config, shape: Any) -> None:
    """TimeDistributed of a layer, RNN of a cell."""
    _take(layer, read_layer(config["layer"] if "layer" in config else config["cell"]))


def stack(layer: Layer, config: Config, shape: Any) -> None:
    """StackedRNNCells, Pipeline."""
    for i, inner in enumerate(config["cells"] if "cells" in config else config["layers"]):
        _take(layer, read_layer(inner), str(i))


def spectral_normalization(layer: Layer, config: Config, shape: Any) -> None:
    _take(layer, read_layer(config["layer"]))
    kernel, *others = layer.weights
    layer.weights = [kernel]
    vector = {"class_name": "TruncatedNormal", "config": {"mean": 0.0, "stddev": 0.02, "seed": None}}
    layer.add("vector_u", (1, kernel.shape[-1] if kernel.shape else None), vector)
    layer.weights += others


def bidirectional(layer: Layer, config: Config, shape: Any) -> None:
    """The layer given is thrown away: a copy runs forward, and one backward unless that layer was given, too."""
    saved = config.get("backward_layer") or config["layer"]
    name, backward_name = (str(inner["config"].get("name")) for inner in (config["layer"], saved))
    template_name = name.removeprefix("forward_").removeprefix("backward_")
    mirrored = saved is config["layer"] or backward_name == f"backward_{template_name}"
    template = read_layer(config["layer"])
    forward = read_layer(config["layer"], copied=True)
    backward = read_layer(saved, copied=mirrored)
    # What is not made by Bidirectional itself was made before it.
    made = (template, forward, backward) if mirrored else (template, backward, forward)
    layer.constructor += [source for part in made for source in part.constructor]
    for name, part in (("forward", forward), ("backward", backward)):
        part.constructor = []
        _take(layer, part, name)


def _dimensions(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{n}D" for name in names for n in (1, 2, 3))


Reader = Callable[[Layer, Config, Any], None]
_NAMES: dict[Reader, tuple[str, ...]] = {
    readers.dense: ("Dense",),
    readers.einsum_dense: ("EinsumDense",),
    readers.embedding: ("Embedding", "ReversibleEmbedding"),
    readers.conv: (*_dimensions("Conv"), "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    readers.depthwise_conv: _dimensions("DepthwiseConv"),
    readers.separable_conv: _dimensions("SeparableConv"),
    readers.recurrent: (
        *("SimpleRNN", "LSTM", "GRU", "SimpleRNNCell", "LSTMCell", "GRUCell"),
        *_dimensions("ConvLSTM"),
    ),
    readers.normalization: ("BatchNormalization", "LayerNormalization", "GroupNormalization"),
    readers.rms_normalization: ("RMSNormalization",),
    readers.prelu: ("PReLU",),
    readers.adapted_normalization: ("Normalization",),
    readers.spectrogram: ("STFTSpectrogram",),
    readers.attention: ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention"),
    readers.scored_attention: ("Attention", "AdditiveAttention"),
    readers.dropout: (
        *("Dropout", "GaussianDropout", "AlphaDropout", "GaussianNoise"),
        *_dimensions("SpatialDropout"),
    ),
    readers.random_crop: ("RandomCrop",),
    readers.augmentation: (
        *("AugMix", "CutMix", "MixUp", "RandAugment", "RandomBrightness", "RandomColorDegeneration"),
        *("RandomColorJitter", "RandomContrast", "RandomElasticTransform", "RandomErasing", "RandomFlip"),
        *("RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective"),
        *("RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear"),
        *("RandomTranslation", "RandomZoom", "Solarization"),
    ),
    readers.nothing: (
        *("Activation", "ActivityRegularization", "Add", "AutoContrast", "Average", "CategoryEncoding", "CenterCrop"),
        *("Concatenate", "ContrastLimitedAdaptiveHistogramEqualization", "Discretization", "Dot", "ELU"),
        *("Equalization", "Flatten", "HashedCrossing", "Hashing", "Identity", "InputLayer", "IntegerLookup", "Lambda"),
        *("LeakyReLU", "Masking", "MaxNumBoundingBoxes", "Maximum", "MelSpectrogram", "Minimum", "Multiply"),
        *("Permute", "ReLU", "RepeatVector", "Rescaling", "Reshape", "Resizing", "Softmax", "StringLookup"),
        *("Subtract", "TextVectorization", "ThresholdedReLU", "UnitNormalization"),
        *_dimensions("AveragePooling", "MaxPooling", "GlobalAveragePooling", "GlobalMaxPooling", "ZeroPadding"),
        *_dimensions("AdaptiveAveragePooling", "AdaptiveMaxPooling", "Cropping", "UpSampling"),
    ),
    wrapper: ("TimeDistributed", "RNN"),
    stack: ("StackedRNNCells", "Pipeline"),
    spectral_normalization: ("SpectralNormalization",),
    bidirectional: ("Bidirectional",),
}
_READERS = {name: reader for reader, names in _NAMES.items() for name in names}
_WRAPPERS = (wrapper, stack, spectral_normalization, bidirectional)


def read_layer(entry: Config, *, copied: bool = False) -> Layer:
    """Read one layer's entry of a saved model; if `copied`, Keras makes it from its config, with its initializers.

    In code, initializers count as given by name, unless they have other arguments: those are made before the layer.

    Example:
        >>> dense = read_layer({"class_name": "Dense", "config": {"name": "fc", "units": 3}})
        >>> [(weight.name, weight.shape, weight.source.config) for weight in dense.weights]
        [('kernel', (None, 3), 'glorot_uniform'), ('bias', (3,), 'zeros')]
    """
    class_name, config = str(entry.get("class_name")), entry.get("config") or {}
    found = Layer(str(config.get("name", entry.get("name"))), class_name)
    module = entry.get("module") or "keras"
    if module.startswith(("keras.src.ops", "keras.ops")):  # a function of tensors in a functional model
        return found
    reader = _READERS.get(class_name)
    if reader is None or module.partition(".")[0] not in ("keras", "tf_keras"):
        raise ValueError(
            f"Layer {found.name!r} is of class {class_name}, which is no layer of Keras itself: what it draws is "
            "not known. Give its draws through `order`."
        )
    _refuse_unknown_draws(found, config)
    built = entry.get("build_config") or {}
    shapes = built.get("shapes_dict")
    shape = built.get("input_shape") if shapes is None else shapes
    if shapes and reader is not readers.attention:
        shape = next(iter(shapes.values()))
    try:
        reader(found, config, shape)
    except KeyError as error:
        raise ValueError(f"The config of layer {found.name!r} ({class_name}) lacks {error}.") from None
    if reader not in _WRAPPERS and not copied:
        found.constructor.sort(key=lambda source: not source.made_first)
    return found


def _refuse_unknown_draws(found: Layer, config: Config) -> None:
    """Refuse what draws in a way that the config does not tell."""
    policy = config.get("dtype")
    if isinstance(policy, dict) and str(policy.get("class_name")).startswith(("Quantized", "GPTQ", "AWQ")):
        raise ValueError(f"Layer {found.name!r} is quantized; give the config of the model before that.")
    for name, value in config.items():
        own = isinstance(value, dict) and not str(value.get("module") or "keras").startswith("keras")
        if own and name.endswith("_initializer") and (value.get("config") or {}).get("seed", 0) is None:
            raise ValueError(
                f"The {name} of layer {found.name!r} is of class {value.get('class_name')}, no initializer of Keras "
                "itself: whether it draws a seed is not known. Give the layer's draws through `order`."
            )
