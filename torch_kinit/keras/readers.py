"""What a saved Keras layer says of its weights and of the seeds it draws: one small function a class.

As of Keras 3.15; the order of draws is that of each class' `__init__` and `build`, read there and tested against it.
Each takes the `Layer` to fill, the layer's config, and the shape of its inputs, None where the config does not tell it.
"""

from __future__ import annotations

from typing import Any

from torch_kinit.keras.draws import Config, Layer, SavedDraw, Shape, Source, product


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
    axis = config.get("axis", -1)
    return tuple(_at(shape, a) for a in ([axis] if isinstance(axis, int) else sorted(axis)))


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
    layer.constructor.insert(len(layer.constructor) if last else 0, Source(None, config.get("seed")))
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
    """BatchNormalization, LayerNormalization and GroupNormalization."""
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
        heads = others = config["num_heads"]
        width = config["key_dim"]
        value_width = config.get("value_dim") or width
    else:
        heads, others = config["num_query_heads"], config["num_key_value_heads"]
        width = value_width = config["head_dim"]
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
    """Attention and AdditiveAttention."""
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
    """Layers with one SeedGenerator, and those that hold others with the same seed."""
    jitters = sum(config.get(f"{name}_factor") is not None for name in ("brightness", "contrast", "saturation", "hue"))
    inside = {"RandAugment": 9, "AugMix": 9 if config.get("all_ops", True) else 5, "RandomColorJitter": jitters}
    layer.constructor += [Source(None, config.get("seed")) for _ in range(1 + inside.get(layer.class_name, 0))]


def random_crop(layer: Layer, config: Config, shape: Any) -> None:
    layer.constructor.append(SavedDraw(None, config.get("seed")))


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
    for side, other in (("real", "imag"), ("imag", "real")):
        if config.get("mode", "log") != other:
            arguments = {name: config[name] for name in ("window", "scaling", "periodic") if name in config}
            stft = {"class_name": "STFT", "config": {"side": side, **arguments}}
            layer.add(f"{side}_kernel", (length, 1, bins), stft)


def nothing(layer: Layer, config: Config, shape: Any) -> None:
    """A layer without weights or draws."""
