"""The saved Keras layers that hold others, draw without weights or have neither; and `layer`, which reads any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_kinit.keras import readers
from torch_kinit.keras.readers import Config, Layer, SavedDraw, Shape, Source, at, sizes_of


def attention(layer: Layer, config: Config, shape: Any) -> None:
    """MultiHeadAttention and GroupQueryAttention: projections made in `build`, each with copies of the initializers."""
    shapes = shape if isinstance(shape, dict) else {}
    query, value = shapes.get("query_shape"), shapes.get("value_shape")
    key = shapes.get("key_shape") or value
    if layer.class_name == "MultiHeadAttention":
        heads = others = config["num_heads"]
        width = config["key_dim"]
        value_width = config.get("value_dim") or width
    else:
        heads, others = config["num_query_heads"], config["num_key_value_heads"]
        width = value_width = config["head_dim"]
    output = config.get("output_shape") or (at(query, -1),)
    output = (output,) if isinstance(output, int) else tuple(output)
    kernel, bias = layer.given(config, kernel="glorot_uniform", bias="zeros")

    def project(part: str, inputs: Shape, outputs: Shape) -> None:
        layer.build += (copies := [source.copy() for source in (kernel, bias) if source])
        axes = list(range(len(inputs))), list(range(len(inputs), len(inputs) + len(outputs)))
        layer.add(f"{part}/kernel", (*inputs, *outputs), copies[0], axes=axes if copies[0].scaled else None)
        if config.get("use_bias", True):
            layer.add(f"{part}/bias", outputs, copies[-1])

    project("query", (at(query, -1),), (heads, width))
    project("key", (at(key, -1),), (others, width))
    if config.get("use_gate"):
        project("gate", (at(query, -1),), (heads, value_width))
    project("value", (at(value, -1),), (others, value_width))
    if config.get("dropout", 0) > 0:
        layer.build.append(Source(None, config.get("seed")))
    project("attention_output", (heads, value_width), output)


def scored_attention(layer: Layer, config: Config, shape: Any) -> None:
    """Attention and AdditiveAttention."""
    _generator(layer, config, "dropout")
    additive = layer.class_name == "AdditiveAttention"
    if config.get("use_scale", additive):
        layer.add("scale", (at(shape and shape[0], -1),) if additive else (), "glorot_uniform" if additive else "ones")
    if config.get("score_mode") == "concat":
        layer.add("concat_score_weight", (), "ones")


def _generator(layer: Layer, config: Config, rate: str) -> None:
    """The SeedGenerator of a layer that has one if its rate is above zero."""
    if (config.get(rate) or 0) > 0:
        layer.constructor.append(Source(None, config.get("seed")))


def dropout(layer: Layer, config: Config, shape: Any) -> None:
    _generator(layer, config, "stddev" if layer.class_name == "GaussianNoise" else "rate")


def augmentation(layer: Layer, config: Config, shape: Any) -> None:
    """Layers with one SeedGenerator, and those that hold others with the same seed."""
    count = 1
    if layer.class_name == "RandAugment":
        count += 9
    elif layer.class_name == "AugMix":
        count += 9 if config.get("all_ops", True) else 5
    elif layer.class_name == "RandomColorJitter":
        factors = ("brightness", "contrast", "saturation", "hue")
        count += sum(config.get(f"{name}_factor") is not None for name in factors)
    layer.constructor += [Source(None, config.get("seed")) for _ in range(count)]


def random_crop(layer: Layer, config: Config, shape: Any) -> None:
    layer.constructor.append(SavedDraw(config.get("seed")))


def rms_normalization(layer: Layer, config: Config, shape: Any) -> None:
    layer.add("scale", sizes_of(config, shape), "ones")


def prelu(layer: Layer, config: Config, shape: Any) -> None:
    (alpha,) = layer.given(config, alpha="zeros")
    shared = config.get("shared_axes") or ()
    layer.add("alpha", tuple(1 if i in shared else n for i, n in enumerate(shape or ()) if i), alpha)


def adapted_normalization(layer: Layer, config: Config, shape: Any) -> None:
    if config.get("mean") is None:
        axis = config.get("axis", -1)
        axes = [axis] if isinstance(axis, int) else axis or ()
        rank = len(shape or ())
        size = tuple(at(shape, a) for a in sorted(a + rank if a < 0 else a for a in axes))
        for name, initializer in (("mean", "zeros"), ("variance", "ones")):
            layer.add(name, size, initializer)
        layer.add("count", (), "zeros")


def spectrogram(layer: Layer, config: Config, shape: Any) -> None:
    length = config["frame_length"]
    bins = (config.get("fft_length") or 1 << (length - 1).bit_length()) // 2 + 1
    for side, other in (("real", "imag"), ("imag", "real")):
        if config.get("mode", "log") != other:
            arguments = {name: config[name] for name in ("window", "scaling", "periodic") if name in config}
            stft = {"class_name": "STFT", "config": {"side": side, **arguments}}
            layer.add(f"{side}_kernel", (length, 1, bins), stft)


def nothing(layer: Layer, config: Config, shape: Any) -> None:
    """A layer without weights or draws."""


def _take(layer: Layer, inner: Layer, part: str = "") -> None:
    """Draw and weigh what the layer inside does."""
    layer.constructor += inner.constructor
    layer.build += inner.build
    for weight in inner.weights:
        weight.name = f"{part}/{weight.name}" if part else weight.name
        layer.weights.append(weight)


def wrapper(layer: Layer, config: Config, shape: Any) -> None:
    """TimeDistributed of a layer, RNN of a cell."""
    _take(layer, read(config["layer"] if "layer" in config else config["cell"]))


def stack(layer: Layer, config: Config, shape: Any) -> None:
    """StackedRNNCells, Pipeline."""
    for i, inner in enumerate(config["cells"] if "cells" in config else config["layers"]):
        _take(layer, read(inner), str(i))


def spectral_normalization(layer: Layer, config: Config, shape: Any) -> None:
    _take(layer, read(config["layer"]))
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
    template = read(config["layer"])
    forward = read(config["layer"], copied=True)
    backward = read(saved, copied=mirrored)
    # What is not made by Bidirectional itself was made before it.
    made = (template, forward, backward) if mirrored else (template, backward, forward)
    layer.constructor += [source for part in made for source in part.constructor]
    for name, part in (("forward", forward), ("backward", backward)):
        part.constructor = []
        _take(layer, part, name)


def _dimensions(*names: str) -> list[str]:
    return [f"{name}{n}D" for name in names for n in (1, 2, 3)]


Reader = Callable[[Layer, Config, Any], None]
_READERS: dict[str, Reader] = {
    "Dense": readers.dense,
    "EinsumDense": readers.einsum_dense,
    **dict.fromkeys(("Embedding", "ReversibleEmbedding"), readers.embedding),
    **dict.fromkeys((*_dimensions("Conv"), *(f"Conv{n}DTranspose" for n in (1, 2, 3))), readers.conv),
    **dict.fromkeys(_dimensions("DepthwiseConv"), readers.depthwise_conv),
    **dict.fromkeys(_dimensions("SeparableConv"), readers.separable_conv),
    **dict.fromkeys(("SimpleRNN", "LSTM", "GRU", *_dimensions("ConvLSTM")), readers.recurrent),
    **dict.fromkeys(("SimpleRNNCell", "LSTMCell", "GRUCell"), readers.recurrent),
    "BatchNormalization": readers.batch_normalization,
    **dict.fromkeys(("LayerNormalization", "GroupNormalization"), readers.normalization),
    "RMSNormalization": rms_normalization,
    "PReLU": prelu,
    "Normalization": adapted_normalization,
    "STFTSpectrogram": spectrogram,
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention"), attention),
    **dict.fromkeys(("Attention", "AdditiveAttention"), scored_attention),
    **dict.fromkeys(("Dropout", "GaussianDropout", "AlphaDropout", "GaussianNoise"), dropout),
    **dict.fromkeys(_dimensions("SpatialDropout"), dropout),
    "RandomCrop": random_crop,
    **dict.fromkeys(
        (
            *("AugMix", "CutMix", "MixUp", "RandAugment", "RandomBrightness", "RandomColorDegeneration"),
            *("RandomColorJitter", "RandomContrast", "RandomElasticTransform", "RandomErasing", "RandomFlip"),
            *("RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective"),
            *("RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear"),
            *("RandomTranslation", "RandomZoom", "Solarization"),
        ),
        augmentation,
    ),
    **dict.fromkeys(
        (
            *("Activation", "ActivityRegularization", "Add", "AutoContrast", "Average", "CategoryEncoding"),
            *("CenterCrop", "Concatenate", "ContrastLimitedAdaptiveHistogramEqualization", "Discretization", "Dot"),
            *("ELU", "Equalization", "Flatten", "HashedCrossing", "Hashing", "Identity", "InputLayer"),
            *("IntegerLookup", "Lambda", "LeakyReLU", "Masking", "MaxNumBoundingBoxes", "Maximum", "MelSpectrogram"),
            *("Minimum", "Multiply", "Permute", "ReLU", "RepeatVector", "Rescaling", "Reshape", "Resizing", "Softmax"),
            *("StringLookup", "Subtract", "TextVectorization", "ThresholdedReLU", "UnitNormalization"),
            *_dimensions("AveragePooling", "MaxPooling", "GlobalAveragePooling", "GlobalMaxPooling", "ZeroPadding"),
            *_dimensions("AdaptiveAveragePooling", "AdaptiveMaxPooling", "Cropping", "UpSampling"),
        ),
        nothing,
    ),
}
_WRAPPERS: dict[str, Reader] = {
    **dict.fromkeys(("TimeDistributed", "RNN"), wrapper),
    **dict.fromkeys(("StackedRNNCells", "Pipeline"), stack),
    "SpectralNormalization": spectral_normalization,
    "Bidirectional": bidirectional,
}


def layer(config: Config) -> Layer:
    """Read one layer's entry of a saved model, `{"class_name": ..., "config": {...}, "build_config": {...}}`.

    Initializers count as given by name, or as a config, to a layer made in code, unless they have arguments that no
    name has: those were made before the layer.

    Raises:
        ValueError: a class that Keras does not have, or quantized weights.

    Example:
        >>> dense = layer({"class_name": "Dense", "config": {"name": "fc", "units": 3}})
        >>> [(weight.name, weight.shape, weight.source.config) for weight in dense.weights]
        [('kernel', (None, 3), 'glorot_uniform'), ('bias', (3,), 'zeros')]
    """
    return read(config)


def read(entry: Config, *, copied: bool = False) -> Layer:
    """Read a layer made in code; or one `copied` from its config, which makes the initializers in `__init__`."""
    class_name, config = str(entry.get("class_name")), entry.get("config") or {}
    found = Layer(str(config.get("name", entry.get("name"))), class_name)
    module = entry.get("module") or "keras"
    if module.startswith(("keras.src.ops", "keras.ops")):  # a function of tensors in a functional model
        return found
    reader = _READERS.get(class_name) or _WRAPPERS.get(class_name)
    if reader is None or module.partition(".")[0] not in ("keras", "tf_keras"):
        raise ValueError(
            f"Layer {found.name!r} is of class {class_name}, which is no layer of Keras itself: what it draws is "
            "not known. Give its draws through `order`."
        )
    _check(found, config)
    built = entry.get("build_config") or {}
    shapes = built.get("shapes_dict")
    shape = built.get("input_shape") if shapes is None else shapes
    if shapes and reader is not attention:
        shape = next(iter(shapes.values()))
    try:
        reader(found, config, shape)
    except KeyError as error:
        raise ValueError(f"The config of layer {found.name!r} ({class_name}) lacks {error}.") from None
    if class_name in _READERS and not copied:
        found.constructor.sort(key=lambda source: not source.made_first)
    return found


def _check(found: Layer, config: Config) -> None:
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
