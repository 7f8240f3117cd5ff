"""What a saved Keras layer says of its weights and of the seeds it draws: one small function a class, and `read_layer`.

As of Keras 3.15; the order of draws is that of each class' `__init__` and `build`, read there and tested against it.
Each takes the `Layer` to fill, the layer's config, and the shape of its inputs, None where the config does not tell it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_kinit.keras.draws import Config, Layer, SavedDraw, Shape, Source, axes_of, product


def _at(shape: Any, axis: int) -> int | None:
    """The size of an axis, if it is known."""
    return shape[axis] if shape and -len(shape) <= axis < len(shape) else None


def _several(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def _kernel_size(layer: Layer, config: Config) -> tuple[int, ...]:
    return _several(config["kernel_size"], int(next(c for c in layer.class_name if c.isdigit())))


def _channels(config: Config, shape: Any, axis: int = 1) -> int | None:
    return _at(shape, axis if config.get("data_format") == "channels_first" else -1)


def _sizes_of(config: Config, shape: Any) -> Shape:
    return tuple(_at(shape, axis) for axis in sorted(_several(config.get("axis", -1), 1)))


def dense(layer: Layer, config: Config, shape: Any) -> None:
    kernel, bias = layer.given(config, kernel="glorot_uniform", bias="zeros")
    layer.add("kernel", (_at(shape, -1), config["units"]), kernel)
    layer.add_bias(config, (config["units"],), bias)
    layer.add_lora(config, "kernel", (_at(shape, -1),), (config["units"],))


def einsum_dense(layer: Layer, config: Config, shape: Any) -> None:
    kernel, bias = layer.given(config, kernel="glorot_uniform", bias="zeros")
    inputs, rest = config["equation"].replace(" ", "").split(",")
    letters, outputs = rest.split("->")
    inputs, outputs, left = inputs.replace("...", ""), outputs.replace("...", ""), inputs.startswith("...")
    known = _several(config["output_shape"], 1)  # without the batch; what is elided is the input's
    sizes = dict(zip(reversed(inputs), reversed(shape[: None if left else len(inputs)]), strict=False)) if shape else {}
    given = (reversed(outputs), reversed(known)) if left else (outputs[1:], known)
    sizes |= {letter: size for letter, size in zip(*given, strict=False) if size is not None}
    kernel_shape = tuple(sizes.get(letter) for letter in letters)
    axes = axes_of(config["equation"]) if kernel and kernel.scaled else None
    layer.add("kernel", kernel_shape, kernel, axes=axes)
    if biased := config.get("bias_axes"):
        spec = outputs[min(outputs.find(letter) for letter in biased) :]
        ones = (1,) * (len(shape) - len(inputs)) if shape and not left else ()
        layer.add("bias", (*(sizes.get(letter) if letter in biased else 1 for letter in spec), *ones), bias)
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
    layer.add_bias(config, (filters,), bias)
    layer.add_lora(config, "kernel", size, (filters,))


def depthwise_conv(layer: Layer, config: Config, shape: Any) -> None:
    kernel, bias = layer.given(config, depthwise="glorot_uniform", bias="zeros")
    channels, multiplier = _channels(config, shape), config.get("depth_multiplier", 1)
    layer.add("kernel", (*_kernel_size(layer, config), channels, multiplier), kernel)
    layer.add_bias(config, (product(channels, multiplier),), bias)


def separable_conv(layer: Layer, config: Config, shape: Any) -> None:
    first, second, bias = layer.given(config, depthwise="glorot_uniform", pointwise="glorot_uniform", bias="zeros")
    channels, multiplier = _channels(config, shape), config.get("depth_multiplier", 1)
    size = _kernel_size(layer, config)
    layer.add("depthwise_kernel", (*size, channels, multiplier), first)
    layer.add("pointwise_kernel", (*(1 for _ in size), product(channels, multiplier), config["filters"]), second)
    layer.add_bias(config, (config["filters"],), bias)


def recurrent(layer: Layer, config: Config, shape: Any) -> None:
    kind = layer.class_name.removesuffix("Cell")
    kernel, recurrent_kernel, bias = layer.given(config, kernel="glorot_uniform", recurrent="orthogonal", bias="zeros")
    last = kind in ("LSTM", "GRU")  # others make their SeedGenerator first
    generator = Source(None, config.get("seed"))
    generator.seed_lost = layer.class_name == "SimpleRNN"
    layer.constructor.insert(len(layer.constructor) if last else 0, generator)
    size: tuple[int, ...] = ()
    channels, units = _at(shape, -1), config.get("units")
    if kind.startswith("ConvLSTM"):
        size = _kernel_size(layer, config)
        channels, units = _channels(config, shape, axis=2), config["filters"]
    wide = product(units, {"SimpleRNN": 1, "GRU": 3}.get(kind, 4))
    layer.add("kernel", (*size, channels, wide), kernel)
    layer.add("recurrent_kernel", (*size, units, wide), recurrent_kernel)
    two = kind == "GRU" and config.get("reset_after", True)
    forget = "LSTM" in kind and config.get("unit_forget_bias", True)
    layer.add_bias(config, (2, wide) if two else (wide,), bias, unit_forget=forget)


def normalization(layer: Layer, config: Config, shape: Any) -> None:
    statistics = {"moving_mean": "zeros", "moving_variance": "ones"} if layer.class_name.startswith("Batch") else {}
    beta, gamma, *moving = layer.given(config, beta="zeros", gamma="ones", **statistics)
    size, by_squares = _sizes_of(config, shape), config.get("rms_scaling")
    if config.get("scale", True) or by_squares:
        layer.add("gamma", size, gamma)
    if config.get("center", True) and not by_squares:
        layer.add("beta", size, beta)
    for name, source in zip(statistics, moving, strict=True):
        layer.add(name, size, source)
    if config.get("renorm"):  # whose deviations start at the square roots of the initializer's values
        mean, variance = moving
        for name, source in (("moving_stddev", variance), ("renorm_mean", mean), ("renorm_stddev", variance)):
            layer.add(name, size, source and source.config)


def attention(layer: Layer, config: Config, shape: Any) -> None:
    """MultiHeadAttention and GroupQueryAttention: projections made in `build`, each with copies of the initializers."""
    shapes = shape if isinstance(shape, dict) else {}
    query, value = shapes.get("query_shape"), shapes.get("value_shape")
    key = shapes.get("key_shape") or value
    if layer.class_name == "MultiHeadAttention":
        heads, others, width = config["num_heads"], config["num_heads"], config["key_dim"]
        value_width = config.get("value_dim") or width
    else:
        heads, others, width = config["num_query_heads"], config["num_key_value_heads"], config["head_dim"]
        value_width = width
    output = _several(config.get("output_shape") or (_at(query, -1),), 1)
    kernel, bias = layer.given(config, kernel="glorot_uniform", bias="zeros")

    def project(part: str, inputs: Shape, outputs: Shape) -> None:
        layer.build += (copies := [Source(source.config, source.seed) for source in (kernel, bias) if source])
        axes = list(range(len(inputs))), list(range(len(inputs), len(inputs) + len(outputs)))
        layer.add(f"{part}/kernel", (*inputs, *outputs), copies[0], axes=axes if copies[0].scaled else None)
        if config.get("use_bias", True):
            layer.add(f"{part}/bias", outputs, copies[-1])

    project("query", (_at(query, -1),), (heads, width))
    project("key", (_at(key, -1),), (others, width))
    if config.get("use_gate"):
        project("gate", (_at(query, -1),), (heads, value_width))
    project("value", (_at(value, -1),), (others, value_width))
    if config.get("dropout", 0) > 0:
        layer.build.append(Source(None, config.get("seed")))
    project("attention_output", (heads, value_width), output)


def scored_attention(layer: Layer, config: Config, shape: Any) -> None:
    dropout(layer, config, shape)
    additive = layer.class_name == "AdditiveAttention"
    if config.get("use_scale", additive):
        layer.add("scale", (_at(shape and shape[0], -1),) if additive else (), "glorot_uniform" if additive else "ones")
    if config.get("score_mode") == "concat":
        layer.add("concat_score_weight", (), "ones")


def dropout(layer: Layer, config: Config, shape: Any) -> None:
    """Layers that have a SeedGenerator if their rate is above zero."""
    rate = {"GaussianNoise": "stddev", "Attention": "dropout", "AdditiveAttention": "dropout"}
    if (config.get(rate.get(layer.class_name, "rate")) or 0) > 0:
        layer.constructor.append(Source(None, config.get("seed")))


def augmentation(layer: Layer, config: Config, shape: Any) -> None:
    """Layers with one SeedGenerator, and those that hold others with the same seed; RandomCrop keeps a seed it drew."""
    jitters = sum(config.get(f"{name}_factor") is not None for name in ("brightness", "contrast", "saturation", "hue"))
    inside = {"RandAugment": 9, "AugMix": 9 if config.get("all_ops", True) else 5, "RandomColorJitter": jitters}
    source = SavedDraw if layer.class_name == "RandomCrop" else Source
    layer.constructor += [source(None, config.get("seed")) for _ in range(1 + inside.get(layer.class_name, 0))]
    layer.constructor[0].seed_lost = layer.class_name == "RandomGrayscale"


def rms_normalization(layer: Layer, config: Config, shape: Any) -> None:
    layer.add("scale", _sizes_of(config, shape), "ones")


def prelu(layer: Layer, config: Config, shape: Any) -> None:
    (alpha,) = layer.given(config, alpha="zeros")
    shared = config.get("shared_axes") or ()
    layer.add("alpha", tuple(1 if i in shared else n for i, n in enumerate(shape or ()) if i), alpha)


def adapted_normalization(layer: Layer, config: Config, shape: Any) -> None:
    if config.get("mean") is None:
        axis = config.get("axis", -1)
        axes = [axis] if isinstance(axis, int) else axis or ()
        rank = len(shape or ())
        size = tuple(_at(shape, a) for a in sorted(a + rank if a < 0 else a for a in axes))
        for name, initializer in (("mean", "zeros"), ("variance", "ones")):
            layer.add(name, size, initializer)
        layer.add("count", (), "zeros")


def spectrogram(layer: Layer, config: Config, shape: Any) -> None:
    length = config["frame_length"]
    bins = (config.get("fft_length") or 1 << (length - 1).bit_length()) // 2 + 1
    arguments = {name: config[name] for name in ("window", "scaling", "periodic") if name in config}
    for side, other in (("real", "imag"), ("imag", "real")):
        if config.get("mode", "log") != other:
            stft = {"class_name": "STFT", "config": {"side": side, **arguments}}
            layer.add(f"{side}_kernel", (length, 1, bins), stft)


def nothing(layer: Layer, config: Config, shape: Any) -> None:
    """A layer without weights or draws."""


def _take(layer: Layer, inner: Layer, part: str = "") -> None:
    """Draw and weigh what the layer inside does."""
    layer.constructor += inner.constructor
    layer.natural += inner.natural
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
    # From a config, Keras makes the two that are saved there, and then a copy of the first.
    natural = (template, backward, forward) if config.get("backward_layer") else made
    layer.natural += [source for part in natural for source in part.natural]
    for name, part in (("forward", forward), ("backward", backward)):
        part.constructor, part.natural = [], []
        _take(layer, part, name)


def _dimensions(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{n}D" for name in names for n in (1, 2, 3))


_NAMES: dict[Callable[[Layer, Config, Any], None], tuple[str, ...]] = {
    dense: ("Dense",),
    einsum_dense: ("EinsumDense",),
    embedding: ("Embedding", "ReversibleEmbedding"),
    conv: (*_dimensions("Conv"), "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    depthwise_conv: _dimensions("DepthwiseConv"),
    separable_conv: _dimensions("SeparableConv"),
    recurrent: ("SimpleRNN", "LSTM", "GRU", "SimpleRNNCell", "LSTMCell", "GRUCell", *_dimensions("ConvLSTM")),
    normalization: ("BatchNormalization", "LayerNormalization", "GroupNormalization"),
    rms_normalization: ("RMSNormalization",),
    prelu: ("PReLU",),
    adapted_normalization: ("Normalization",),
    spectrogram: ("STFTSpectrogram",),
    attention: ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention"),
    scored_attention: ("Attention", "AdditiveAttention"),
    dropout: ("Dropout", "GaussianDropout", "AlphaDropout", "GaussianNoise", *_dimensions("SpatialDropout")),
    augmentation: (
        *("AugMix", "CutMix", "MixUp", "RandAugment", "RandomBrightness", "RandomColorDegeneration"),
        *("RandomColorJitter", "RandomContrast", "RandomCrop", "RandomElasticTransform", "RandomErasing", "RandomFlip"),
        *("RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective"),
        *("RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear"),
        *("RandomTranslation", "RandomZoom", "Solarization"),
    ),
    nothing: (
        *("Activation", "ActivityRegularization", "Add", "AutoContrast", "Average", "CategoryEncoding", "CenterCrop"),
        *("Concatenate", "ContrastLimitedAdaptiveHistogramEqualization", "Discretization", "Dot", "ELU"),
        *("Equalization", "Flatten", "HashedCrossing", "Hashing", "Identity", "InputLayer", "IntegerLookup", "Lambda"),
        *("LeakyReLU", "Masking", "MaxNumBoundingBoxes", "Maximum", "MelSpectrogram", "Minimum", "Multiply", "Permute"),
        *("ReLU", "RepeatVector", "Rescaling", "Reshape", "Resizing", "Softmax", "StringLookup", "Subtract"),
        *("TextVectorization", "ThresholdedReLU", "UnitNormalization"),
        *_dimensions("AveragePooling", "MaxPooling", "GlobalAveragePooling", "GlobalMaxPooling", "ZeroPadding"),
        *_dimensions("AdaptiveAveragePooling", "AdaptiveMaxPooling", "Cropping", "UpSampling"),
    ),
    wrapper: ("TimeDistributed", "RNN"),
    stack: ("StackedRNNCells", "Pipeline"),
    spectral_normalization: ("SpectralNormalization",),
    bidirectional: ("Bidirectional",),
}
_READERS = {name: reader for reader, names in _NAMES.items() for name in names}


def read_layer(entry: Config, *, copied: bool = False) -> Layer:
    """Read one layer's entry of a saved model; if `copied`, Keras makes it from its config, with its initializers.

    In code, initializers count as given by name, unless they have other arguments: those are made before the layer.
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
    if shapes and reader is not attention:
        shape = next(iter(shapes.values()))
    try:
        reader(found, config, shape)
    except KeyError as error:
        raise ValueError(f"The config of layer {found.name!r} ({class_name}) lacks {error}.") from None
    for weight in found.weights:
        weight.dtype = weight.dtype or _variable_dtype(config.get("dtype"))
    if reader in (wrapper, stack, spectral_normalization, bidirectional):
        return found
    found.natural = list(found.constructor)
    if not copied:
        for source in found.constructor:
            source.object_id = source.shared_object_id
        found.constructor.sort(key=lambda source: not (source.with_arguments or source.object_id))
    return found


def _variable_dtype(policy: Any) -> str | None:
    """The dtype in which a layer of this policy draws its weights, if the policy is a plain one."""
    if isinstance(policy, dict):
        policy = (policy.get("config") or {}).get("name")
    if not isinstance(policy, str):
        return None
    return "float32" if policy.startswith("mixed_") else policy


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
