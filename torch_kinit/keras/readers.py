"""What each layer of Keras' own holds and draws by its config: one small function a class, and the table of them.

As of Keras 3.15; the order of draws is that of each class' `__init__` and `build`, read there and tested against it.
Each takes the `Layer` to fill, the layer's config, and the shape of its inputs, None where the config does not tell it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch_kinit.keras.draws import Config, Layer, SavedDraw, Shape, Source, axes_of, product

Reader = Callable[[Layer, Config, Any], None]


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
        layer.no_twin = f"a {kind}"
        size = _kernel_size(layer, config)
        channels, units = _channels(config, shape, axis=2), config["filters"]
    if kind == "GRU" and not config.get("reset_after", True):
        layer.no_twin = "a GRU with reset_after=False"
    wide = product(units, {"SimpleRNN": 1, "GRU": 3}.get(kind, 4))
    layer.add("kernel", (*size, channels, wide), kernel)
    layer.add("recurrent_kernel", (*size, units, wide), recurrent_kernel)
    two = kind == "GRU" and config.get("reset_after", True)
    forget = "LSTM" in kind and config.get("unit_forget_bias", True)
    layer.add_bias(config, (2, wide) if two else (wide,), bias, unit_forget=forget)


def cudnn(layer: Layer, config: Config, shape: Any) -> None:
    """CuDNNLSTM and CuDNNGRU of tf.keras, whose bias is that of the inputs and then that of the state."""
    layer.no_twin = f"a {layer.class_name}, whose two biases are one array"
    kernel, recurrent_kernel, bias = layer.given(config, kernel="glorot_uniform", recurrent="orthogonal", bias="zeros")
    units, gates = config["units"], 4 if layer.class_name == "CuDNNLSTM" else 3
    layer.add("kernel", (_at(shape, -1), gates * units), kernel)
    layer.add("recurrent_kernel", (units, gates * units), recurrent_kernel)
    if gates == 3 or not config.get("unit_forget_bias", True):
        layer.add("bias", (2 * gates * units,), bias)
    elif bias and bias.name == "zeros":
        ones_in_state = [0.0] * 5 * units + [1.0] * units + [0.0] * 2 * units
        array = {"class_name": "__numpy__", "config": {"value": ones_in_state, "dtype": "float32"}}
        layer.add("bias", (8 * units,), {"class_name": "Constant", "config": {"value": array}})
    else:
        raise ValueError(
            f"Layer {layer.name!r} (CuDNNLSTM) has unit_forget_bias=True and a bias_initializer other than zeros: what "
            "its bias starts with is not known."
        )


def locally_connected(layer: Layer, config: Config, shape: Any) -> None:
    """LocallyConnected1D and 2D of tf.keras: a kernel for each position, in one of three forms."""
    layer.no_twin = f"a {layer.class_name}"
    kernel, bias = layer.given(config, kernel="glorot_uniform", bias="zeros")
    window, filters, form = _kernel_size(layer, config), config["filters"], config.get("implementation", 1)
    rank, first = len(window), config.get("data_format") == "channels_first"
    channels = _channels(config, shape)
    inputs = [_at(shape, axis + (2 if first else 1)) for axis in range(rank)]
    cut = [0 if config.get("padding") == "same" else k - 1 for k in window]
    steps = _several(config.get("strides", 1), rank)
    outputs = [n and -(-(n - lost) // step) for n, lost, step in zip(inputs, cut, steps, strict=True)]
    if form == 1:
        layer.add("kernel", (product(*outputs), product(*window, channels), filters), kernel)
    elif form == 2:
        sides = [(channels, *inputs), (filters, *outputs)] if first else [(*inputs, channels), (*outputs, filters)]
        layer.add("kernel", (*sides[0], *sides[1]), kernel)
    else:
        layer.add("kernel", (None,), kernel)  # those of a matrix that are not zero
    layer.add_bias(config, (*outputs, filters), bias)


def normalization(layer: Layer, config: Config, shape: Any) -> None:
    statistics = {"moving_mean": "zeros", "moving_variance": "ones"} if "Batch" in layer.class_name else {}
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
    shapes = shape if isinstance(shape, dict) else config  # tf.keras has them among the arguments
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
    layer.no_twin = f"an {layer.class_name} with weights"
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
        layer.no_twin = "a Normalization"
        axis = config.get("axis", -1)
        axes = [axis] if isinstance(axis, int) else axis or ()
        rank = len(shape or ())
        size = tuple(_at(shape, a) for a in sorted(a + rank if a < 0 else a for a in axes))
        for name, initializer in (("mean", "zeros"), ("variance", "ones")):
            layer.add(name, size, initializer)
        layer.add("count", (), "zeros")


def spectrogram(layer: Layer, config: Config, shape: Any) -> None:
    layer.no_twin = "an STFTSpectrogram"
    length = config["frame_length"]
    bins = (config.get("fft_length") or 1 << (length - 1).bit_length()) // 2 + 1
    arguments = {name: config[name] for name in ("window", "scaling", "periodic") if name in config}
    for side, other in (("real", "imag"), ("imag", "real")):
        if config.get("mode", "log") != other:
            stft = {"class_name": "STFT", "config": {"side": side, **arguments}}
            layer.add(f"{side}_kernel", (length, 1, bins), stft)


def layer_scale(layer: Layer, config: Config, shape: Any) -> None:
    """That of ConvNeXt in keras.applications."""
    constant = {"class_name": "Constant", "config": {"value": config["init_values"]}}
    layer.add("gamma", (config["projection_dim"],), constant)


def nothing(layer: Layer, config: Config, shape: Any) -> None:
    """A layer without weights or draws."""


def _dimensions(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{n}D" for name in names for n in (1, 2, 3))


_NAMES: dict[Reader, tuple[str, ...]] = {
    dense: ("Dense",),
    einsum_dense: ("EinsumDense",),
    embedding: ("Embedding", "ReversibleEmbedding"),
    conv: (*_dimensions("Conv"), "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
    depthwise_conv: _dimensions("DepthwiseConv"),
    separable_conv: _dimensions("SeparableConv"),
    recurrent: ("SimpleRNN", "LSTM", "GRU", "SimpleRNNCell", "LSTMCell", "GRUCell", *_dimensions("ConvLSTM")),
    cudnn: ("CuDNNLSTM", "CuDNNGRU"),
    locally_connected: ("LocallyConnected1D", "LocallyConnected2D"),
    normalization: (
        *("BatchNormalization", "BatchNormalizationV1", "BatchNormalizationV2", "SyncBatchNormalization"),
        *("LayerNormalization", "GroupNormalization"),
    ),
    layer_scale: ("LayerScale",),
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
        *("RandomHeight", "RandomWidth"),  # of tf.keras
    ),
    nothing: (
        *("Activation", "ActivityRegularization", "Add", "AutoContrast", "Average", "CategoryEncoding", "CenterCrop"),
        *("Concatenate", "ContrastLimitedAdaptiveHistogramEqualization", "Discretization", "Dot", "ELU"),
        *("Equalization", "Flatten", "HashedCrossing", "Hashing", "Identity", "InputLayer", "IntegerLookup", "Lambda"),
        *("LeakyReLU", "Masking", "MaxNumBoundingBoxes", "Maximum", "MelSpectrogram", "Minimum", "Multiply", "Permute"),
        *("ReLU", "RepeatVector", "Rescaling", "Reshape", "Resizing", "Softmax", "StringLookup", "Subtract"),
        *("TextVectorization", "ThresholdedReLU", "UnitNormalization"),
        *("StochasticDepth", "CustomScaleLayer"),  # of keras.applications
        *("TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer"),  # functions of tensors in tf.keras
        *("ClassMethod", "InstanceMethod", "InstanceProperty"),
        *_dimensions("AveragePooling", "MaxPooling", "GlobalAveragePooling", "GlobalMaxPooling", "ZeroPadding"),
        *_dimensions("AdaptiveAveragePooling", "AdaptiveMaxPooling", "Cropping", "UpSampling"),
    ),
}
READERS = {name: reader for reader, names in _NAMES.items() for name in names}
IN_APPLICATIONS = ("LayerScale", "StochasticDepth", "CustomScaleLayer")  # names that classes of others have, too
