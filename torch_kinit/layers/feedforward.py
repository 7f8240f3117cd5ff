"""Layers that are not recurrent, from dense to attention: their variables, and their twins in Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit.layers.entries import Entry, InitializerOf, Twins, entry, holds, initializers
from torch_kinit.layers.variable import Options, Variable

KERNEL_AND_BIAS = Variable("kernel", "weight"), Variable("bias", "bias")
ALPHA = (Variable("alpha", "weight"),)
GAMMA = (Variable("gamma", "weight", "keras"),)
GAMMA_AND_BETA = *GAMMA, Variable("beta", "bias", "keras")
GAMMA_BETA_AND_STATISTICS = (
    *GAMMA_AND_BETA,
    Variable("moving_mean", "running_mean"),
    Variable("moving_variance", "running_var"),
    Variable("num_batches_tracked", "num_batches_tracked"),  # torch's own counter of what the statistics are made of
)


def dense(m: nn.Linear, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    return [entry("Dense", (m.in_features,), units=m.out_features, **initializers(m, KERNEL_AND_BIAS, initializer_of))]


def bilinear_variables(m: nn.Bilinear, options: Options) -> Sequence[Variable]:
    """(in1, in2, out), as in EinsumDense("bi,bj,ijo->bo"); Keras has no layer of this kind."""
    fans = m.in1_features * m.in2_features, m.out_features
    return Variable("kernel", "weight", lambda w: w.permute(1, 2, 0), fans), KERNEL_AND_BIAS[1]


def _is_depthwise(m: nn.Conv2d, options: Options) -> bool:
    return options.depthwise and m.groups == m.in_channels > 1


def conv_variables(m: nn.Conv2d, options: Options) -> Sequence[Variable]:
    if not _is_depthwise(m, options):
        return KERNEL_AND_BIAS

    def depthwise(w: Tensor) -> Tensor:
        """From (channels * multiplier, 1, *kernel_size) to (*kernel_size, channels, multiplier)."""
        split = torch.unflatten(w.squeeze(1), 0, (m.in_channels, -1))
        return split.permute(*range(2, split.ndim), 0, 1)

    return Variable("depthwise_kernel", "weight", depthwise), KERNEL_AND_BIAS[1]


def conv(m: nn.Conv2d, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    rank = len(m.kernel_size)
    config = {"kernel_size": m.kernel_size, **initializers(m, conv_variables(m, options), initializer_of)}
    if not _is_depthwise(m, options):
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
    return (Variable("embeddings", "weight", "keras", zero_row=m.padding_idx),)


def embedding(m: nn.Embedding, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    given = initializers(m, embedding_variables(m, options), initializer_of)
    return [entry("Embedding", input_dim=m.num_embeddings, output_dim=m.embedding_dim, **given)]


def normalization(class_name: str, sizes: str) -> Twins:
    """The twin of a class whose attribute `sizes` tells its channels, or the shape of its last axes."""

    def normalize(m: nn.Module, options: Options, initializer_of: InitializerOf) -> list[Entry]:
        shape: Any = getattr(m, sizes)
        config = initializers(m, GAMMA_BETA_AND_STATISTICS, initializer_of)
        if not isinstance(shape, int):
            config["axis"] = list(range(-len(shape), 0))
        without_statistics = class_name == "BatchNormalization" and not holds(m, "running_mean")
        name = "GroupNormalization" if without_statistics else class_name
        return [entry(name, (shape,) if isinstance(shape, int) else shape, **config)]

    return normalize


def _is_packed(m: nn.MultiheadAttention) -> bool:
    """Whether one parameter has the kernels of query, key and value; asked without running its parametrization."""
    return bool(m.kdim == m.vdim == m.embed_dim)


def attention_variables(m: nn.MultiheadAttention, options: Options) -> Sequence[Variable]:
    """Keras' kernels have three axes, (in, heads, head_dim), that of the output (heads, head_dim, out).

    Their fans are those of the matrices they stand for, up to Keras 3.14 those of the shape, as for convolutions.
    """
    width, heads = m.embed_dim, (m.num_heads, m.head_dim)
    by_shape = options.convention == "keras-3.14"

    def kernel(name: str, inputs: int, blocks: int = 1) -> Variable:
        fans = None if by_shape else (inputs, width)
        return Variable("kernel", name, lambda w: torch.unflatten(w.t(), 1, heads), fans, blocks)

    if _is_packed(m):
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
    config["kernel_initializer"] = initializer_of("in_proj_weight" if _is_packed(m) else "q_proj_weight")
    config["bias_initializer"] = initializer_of("in_proj_bias") if biased else "zeros"
    sizes = {"query_shape": m.embed_dim, "key_shape": m.kdim, "value_shape": m.vdim}
    shapes = {name: [None, None, size] for name, size in sizes.items()}
    return [{**entry("MultiHeadAttention", **config), "build_config": {"shapes_dict": shapes}}]


def prelu(m: nn.PReLU, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    return [entry("PReLU", (m.num_parameters,), **initializers(m, ALPHA, initializer_of))]


def dropout(m: Any, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    """Dropout, also for torch's dropout of whole channels: SpatialDropout draws as many seeds."""
    return [entry("Dropout", rate=m.p)]
