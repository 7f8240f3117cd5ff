"""Layers that are not recurrent, from dense to attention: their variables, and their twins in Keras."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from torch_kinit.layers.variable import Entry, InitializerOf, Options, Variable, entry, holds, initializers

BIAS = Variable("bias", "bias")
KERNEL_AND_BIAS = Variable("kernel", "weight"), BIAS
ALPHA = (Variable("alpha", "weight"),)
GAMMA = (Variable("gamma", "weight", "keras"),)
GAMMA_AND_BETA = *GAMMA, Variable("beta", "bias", "keras")
_STATISTICS = Variable("moving_mean", "running_mean"), Variable("moving_variance", "running_var")
_COUNTER = Variable("num_batches_tracked", "num_batches_tracked")  # torch's own, of what the statistics are made of
GAMMA_BETA_AND_STATISTICS = *GAMMA_AND_BETA, *_STATISTICS, _COUNTER


def dense(m: nn.Linear, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    return [entry("Dense", (m.in_features,), units=m.out_features, **initializers(m, KERNEL_AND_BIAS, initializer_of))]


def bilinear_variables(m: nn.Bilinear, options: Options) -> Sequence[Variable]:
    """(in1, in2, out), as in EinsumDense("bi,bj,ijo->bo"); Keras has no layer of this kind."""
    fans = m.in1_features * m.in2_features, m.out_features
    return Variable("kernel", "weight", lambda w: w.permute(1, 2, 0), fans), BIAS


def conv_variables(m: nn.Conv2d, options: Options) -> Sequence[Variable]:
    if not (options.depthwise and m.groups == m.in_channels > 1):
        return KERNEL_AND_BIAS
    # From (channels * multiplier, 1, *kernel_size) to (*kernel_size, channels, multiplier).
    sizes, axes = (m.in_channels, -1), (*range(2, 2 + len(m.kernel_size)), 0, 1)
    return Variable("depthwise_kernel", "weight", lambda w: torch.unflatten(w.squeeze(1), 0, sizes).permute(axes)), BIAS


def conv(m: nn.Conv2d, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    rank, variables = len(m.kernel_size), conv_variables(m, options)
    config = {"kernel_size": m.kernel_size, **initializers(m, variables, initializer_of)}
    if variables[0].role == "kernel":
        name, config = f"Conv{rank}D", {**config, "filters": m.out_channels, "groups": m.groups}
    elif rank < 3:
        name, config["depth_multiplier"] = f"DepthwiseConv{rank}D", m.out_channels // m.in_channels
    else:
        raise ValueError("Keras has no DepthwiseConv3D; with depthwise=False it is a Conv3D(groups=...).")
    return [entry(name, (*[None] * rank, m.in_channels), **config)]


def conv_transpose(m: nn.ConvTranspose2d, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    """Conv1DTranspose and its kin: kernels (in, out, *kernel_size) in torch, (*kernel_size, out, in) in Keras."""
    rank = len(m.kernel_size)
    if m.groups != 1:
        raise ValueError("Keras' transposed convolutions have no groups.")
    config = {"kernel_size": m.kernel_size, "filters": m.out_channels}
    config |= initializers(m, KERNEL_AND_BIAS, initializer_of)
    return [entry(f"Conv{rank}DTranspose", (*[None] * rank, m.in_channels), **config)]


def embedding_variables(m: nn.Embedding, options: Options) -> Sequence[Variable]:
    return (Variable("embeddings", "weight", "keras", zero_row=getattr(m, "padding_idx", None)),)


def embedding(m: nn.Embedding, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    given = initializers(m, embedding_variables(m, options), initializer_of)
    return [entry("Embedding", input_dim=m.num_embeddings, output_dim=m.embedding_dim, **given)]


def normalization(m: Any, options: Options, initializer_of: InitializerOf, class_name: str, sizes: str) -> list[Entry]:
    """The twin of a class whose attribute `sizes` tells its channels, or the shape of its last axes."""
    shape, config = getattr(m, sizes), initializers(m, GAMMA_BETA_AND_STATISTICS, initializer_of)
    if not isinstance(shape, int):
        config["axis"] = list(range(-len(shape), 0))
    without_statistics = class_name == "BatchNormalization" and not holds(m, "running_mean")
    name = "GroupNormalization" if without_statistics else class_name
    return [entry(name, (shape,) if isinstance(shape, int) else shape, **config)]


batch_norm = partial(normalization, class_name="BatchNormalization", sizes="num_features")
group_norm = partial(normalization, class_name="GroupNormalization", sizes="num_channels")
layer_norm = partial(normalization, class_name="LayerNormalization", sizes="normalized_shape")
rms_norm = partial(normalization, class_name="RMSNormalization", sizes="normalized_shape")


def attention_variables(m: nn.MultiheadAttention, options: Options) -> Sequence[Variable]:
    """Keras' kernels have three axes, (in, heads, head_dim), that of the output (heads, head_dim, out).

    Their fans are those of the matrices they stand for, up to Keras 3.14 those of the shape, as for convolutions.
    """
    width, heads = m.embed_dim, (m.num_heads, m.head_dim)
    by_shape = options.convention == "keras-3.14"

    def kernel(name: str, inputs: int, blocks: int = 1) -> Variable:
        fans = None if by_shape else (inputs, width)
        return Variable("kernel", name, lambda w: torch.unflatten(w.t(), 1, heads), fans, blocks)

    if m.kdim == m.vdim == m.embed_dim:  # asked without running a parametrization
        kernels = [kernel("in_proj_weight", width, blocks=3)]
    else:
        kernels = [kernel("q_proj_weight", width), kernel("k_proj_weight", m.kdim), kernel("v_proj_weight", m.vdim)]
    fans = None if by_shape else (width, width)
    return [
        *kernels,
        Variable("bias", "in_proj_bias", lambda b: torch.unflatten(b, 0, heads), blocks=3),
        Variable("kernel", "out_proj.weight", lambda w: torch.unflatten(w.t(), 0, heads), fans),
        Variable("bias", "out_proj.bias"),
        # Learned extra key and value, torch's own; (1, 1, width), which torch reads as a width-to-width matrix.
        *(Variable(name, name, "keras", (width, width), default="glorot_normal") for name in ("bias_k", "bias_v")),
    ]


def attention(m: nn.MultiheadAttention, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    biased = holds(m, "in_proj_bias")
    config = {"num_heads": m.num_heads, "key_dim": m.head_dim, "dropout": m.dropout, "use_bias": biased}
    config["kernel_initializer"] = initializer_of(attention_variables(m, options)[0].tensor)
    config["bias_initializer"] = initializer_of("in_proj_bias") if biased else "zeros"
    sizes = {"query_shape": m.embed_dim, "key_shape": m.kdim, "value_shape": m.vdim}
    shapes = {name: [None, None, size] for name, size in sizes.items()}
    return [{**entry("MultiHeadAttention", **config), "build_config": {"shapes_dict": shapes}}]


def prelu(m: nn.PReLU, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    return [entry("PReLU", (m.num_parameters,), **initializers(m, ALPHA, initializer_of))]


def dropout(m: Any, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    """Dropout, also for torch's dropout of whole channels: SpatialDropout draws as many seeds."""
    return [entry("Dropout", rate=m.p)]
