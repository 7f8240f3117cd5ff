"""Layers of timm 1.0 and torchvision 0.28: tokens, positions, relative positions, scales and norms."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor

from torch_kinit.layers.known import Known, setting
from torch_kinit.layers.variable import Variable

_timm, _torchvision = partial(Known, "timm"), partial(Known, "torchvision")
_by_timm = partial(Variable, tensor="", layout="keras", origin="timm")
_by_torchvision = partial(Variable, tensor="", layout="keras", origin="torchvision")
_GAMMA, _BETA, _BIAS = Variable("gamma", "", "keras"), Variable("beta", "", "keras"), Variable("bias", "", "keras")
_CONVNEXT = Variable("gamma", "", "keras", default=1e-6)  # as the LayerScale of Keras' ConvNeXt
# Both packages' trunc_normal_ have bounds of 2, a hundred standard deviations away: it is a normal law.
_SMALL = "random_normal(std=0.02)"
_TRUNCATED = "trunc_normal(std=0.02)"  # timm's trunc_normal_tf_, which counts its bounds in standard deviations
_RELATIVE = "relative_positions"


def _layer_scale(module: Any, tensor: Tensor) -> Variable:
    """What timm's LayerScale keeps of what it was made with, or its usual value."""
    return _by_timm("gamma", default=setting(module, "init_values", 1e-5))


def _by_heads(module: Any, tensor: Tensor) -> Variable:
    return _by_timm(_RELATIVE, default=f"random_normal(std={tensor.shape[-1] ** -0.5!r})")


ROWS = [
    # Tokens and positions
    _timm("VisionTransformer|NaFlexEmbeds", "(cls|reg)_token", _by_timm("token", default="random_normal(std=1e-06)")),
    _timm("VisionTransformerDistilled", "cls_token", _by_timm("token", default="random_normal(std=1e-06)")),
    _timm(r"\w+", r"(cls|dist|mask|reg)_token(_?\d+)?", _by_timm("token", default=_SMALL)),
    _timm("VisionTransformerSAM", "pos_embed", _by_timm("position_embeddings", default="zeros")),
    _timm("Gemma4PatchEmbed", "position_embedding_table", _by_timm("position_embeddings", default=_TRUNCATED)),
    _timm(r"\w+", r"pos_embed(_?\d+|_window)?|(patch|pixel)_pos", _by_timm("position_embeddings", default=_SMALL)),
    _torchvision("VisionTransformer", "class_token", _by_torchvision("token", default="zeros")),
    _torchvision("Encoder", "pos_embedding", _by_torchvision("position_embeddings", default=_SMALL)),
    _torchvision("PositionalEncoding", "class_token", _by_torchvision("token", default=_SMALL)),
    _torchvision("PositionalEncoding", r"\w+_pos", _by_torchvision("position_embeddings", default=_SMALL)),
    # Relative positions
    _timm("Attention", "rel_pos_[hw]", _by_timm(_RELATIVE, default="zeros")),
    _timm("MultiScaleAttention", "rel_pos_[hw]", _by_timm(_RELATIVE, default=_TRUNCATED)),
    _timm("PosEmbedRel", "(height|width)_rel", _by_heads),
    _timm("LambdaLayer", "pos_emb", _by_timm(_RELATIVE, default=_SMALL)),
    _timm("Attention", "relative_position_bias_table", _by_timm(_RELATIVE, default="zeros")),
    _timm(r"\w+", "relative_position_bias_table", _by_timm(_RELATIVE, default=_SMALL)),
    _timm(r"\w+", "attention_biases", _by_timm(_RELATIVE, default="zeros")),
    _torchvision(r"\w+", "relative_position_bias_table", _by_torchvision(_RELATIVE, default=_SMALL)),
    _torchvision("MultiscaleAttention", "rel_pos_[hwt]", _by_torchvision(_RELATIVE, default=_SMALL)),
    # Scales of residuals and of attention
    _timm("LayerScale|LayerScale2d", "gamma", _layer_scale),
    _timm("ConvNeXtBlock|MetaNeXtBlock|DenseBlock|Residual", "gamma", _CONVNEXT),
    _timm("ConvBlock|SplitTransposeBlock", "gamma(_xca)?", _CONVNEXT),
    _timm("Scale", "scale", _by_timm("gamma", default="ones")),
    _timm("NormFreeBlock", "skipinit_gain", _by_timm("gamma", default="zeros")),
    _timm(r"WindowAttention|WindowMultiHeadAttention", "logit_scale", _by_timm("scale", default=math.log(10))),
    _timm("CrossCovarianceAttn|XCA", "temperature", _by_timm("scale", default="ones")),
    _timm("GPSA", "gating_param", _by_timm("scale", default="ones")),
    _torchvision("CNBlock", "layer_scale", _CONVNEXT),
    _torchvision(r"\w+Attention\w*", "logit_scale", _by_torchvision("scale", default=math.log(10))),
    # Norms, and what stands in their place
    _timm(r"\w*(RmsNorm|SimpleNorm)\w*", "weight", _GAMMA),
    _timm(r"\w*(RmsNorm|SimpleNorm)\w*", "bias", _BETA),
    _timm("GlobalResponseNorm", "weight", _by_timm("gamma", default="zeros")),
    _timm("GlobalResponseNorm", "bias", _BETA),
    _timm("Affine", "alpha", _by_timm("gamma", default="ones")),
    _timm("Affine", "beta", _BETA),
    _timm("LearnableAffineBlock|StarReLU", "scale", _by_timm("gamma", default="ones")),
    _timm("LearnableAffineBlock|StarReLU", "bias", _BETA),
    _timm(r"ScaledStdConv2d\w*", "gain", _by_timm("gamma", default="ones")),
    _timm(r"\w*(FrozenBatchNorm|FrozenBatchNormAct)2d", "weight", _GAMMA, buffers=True),
    _timm(r"\w*(FrozenBatchNorm|FrozenBatchNormAct)2d", "bias", _BETA, buffers=True),
    _timm(r"\w*(FrozenBatchNorm|FrozenBatchNormAct)2d", "running_mean", Variable("moving_mean", ""), buffers=True),
    _timm(r"\w*(FrozenBatchNorm|FrozenBatchNormAct)2d", "running_var", Variable("moving_variance", ""), buffers=True),
    _torchvision("FrozenBatchNorm2d", "weight", _GAMMA, buffers=True),
    _torchvision("FrozenBatchNorm2d", "bias", _BETA, buffers=True),
    _torchvision("FrozenBatchNorm2d", "running_mean", Variable("moving_mean", ""), buffers=True),
    _torchvision("FrozenBatchNorm2d", "running_var", Variable("moving_variance", ""), buffers=True),
    # Biases of queries and values, beside a packed kernel
    _timm(r"\w*Attention", "[qkv]_bias", _BIAS),
]
