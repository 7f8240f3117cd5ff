"""The table of arguments: which key of a Keras layer is which attribute of a torch module, and what a difference does.

A new argument is one row. What the rows cannot say, padding and activations, is in `windows` and `activations`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from torch_kinit.inspection.compare.keras_graph import Unit
from torch_kinit.inspection.compare.spatial import rank_of, several

Expected = Callable[[Any, Unit, Any], Any]  # from Keras' value, the layer and the module, to the attribute


class Field(NamedTuple):
    """A key of some Keras layers beside an attribute of some torch modules."""

    layers: tuple[str, ...]  # Keras classes, without the number of axes
    key: str  # "" for what Keras always has so
    modules: tuple[type[nn.Module], ...]
    attribute: str  # "" for what torch does not have
    expected: Expected  # the attribute that computes the same; for what torch does not have, what it always does
    weight: str
    default: Any = None  # Keras' own, for a config without the key
    mend: str = ""  # "" for setting the attribute
    when: Callable[[Unit, Any], bool] = lambda unit, module: True


def _equal(value: Any, unit: Unit, module: Any) -> Any:
    return value


def _always(wanted: Any) -> Expected:
    return lambda value, unit, module: wanted


def _sizes(value: Any, unit: Unit, module: Any) -> Any:
    return several(value, rank_of(unit.class_name))


def _strides_of_pooling(value: Any, unit: Unit, module: Any) -> Any:
    return several(unit.get("pool_size", 2) if value is None else value, rank_of(unit.class_name))


def _false_or_none(value: Any, unit: Unit, module: Any) -> Any:
    return module.align_corners if module.align_corners is None else False


def _of_last_axis(value: Any, unit: Unit, module: Any) -> Any:
    """An equation, if what it sums over are the last axes of the inputs and what it makes are those of the outputs."""
    inputs, _, rest = str(value).replace(" ", "").partition(",")
    kernel, _, outputs = rest.partition("->")
    summed = "".join(letter for letter in kernel if letter not in outputs)
    made = "".join(letter for letter in kernel if letter in outputs)
    whole = inputs.endswith(summed) and outputs == inputs.removesuffix(summed) + made and kernel == summed + made
    return value if whole else "of the last axis"


def _groups(value: Any, unit: Unit, module: Any) -> Any:
    channels = getattr(module, "num_channels", None) or module.num_features
    return channels if value == -1 else value


_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORM = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_RNN = (nn.RNN, nn.LSTM, nn.GRU)
_ANY_RNN = (*_RNN, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
_MHA = (nn.MultiheadAttention,)
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_CONVS = ("Conv", "DepthwiseConv", "SeparableConv", "ConvTranspose")
_RECURRENT = ("LSTM", "GRU", "SimpleRNN")
_POOLING = ("MaxPooling", "AveragePooling")
_GLOBAL = ("GlobalAveragePooling", "GlobalMaxPooling")
_GLOBALS: tuple[type[nn.Module], ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_GLOBALS += (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_MOVE = "x.movedim(axis, -1) before it"
_HEADS = "make it with num_heads={value}"
_SAME_DROP = "drop the inputs, alike at all steps, before it"
_NO_TWIN = "torch's module cannot; write this layer in `forward`"
_BOTH = (*_CONV, *_TRANSPOSE)

FIELDS: tuple[Field, ...] = (
    Field(("EinsumDense",), "equation", (nn.Linear,), "", _of_last_axis, "function", mend=_MOVE),
    Field(_CONVS, "kernel_size", _BOTH, "kernel_size", _sizes, "function", mend="make it with kernel_size={value}"),
    Field(_CONVS, "strides", _BOTH, "stride", _sizes, "function", 1),
    Field(_CONVS, "dilation_rate", _BOTH, "dilation", _sizes, "function", 1),
    Field(_CONVS, "", _CONV, "padding_mode", _always("zeros"), "padding"),
    Field(("BatchNormalization",), "epsilon", _BATCH_NORM, "eps", _equal, "batch_norm_epsilon", 1e-3),
    Field(("BatchNormalization",), "momentum", _BATCH_NORM, "momentum", lambda m, *_: 1 - m, "momentum", 0.99),
    Field(("LayerNormalization",), "epsilon", (nn.LayerNorm,), "eps", _equal, "norm_epsilon", 1e-3),
    Field(("LayerNormalization",), "rms_scaling", (nn.LayerNorm,), "", _always(False), "function", False, _NO_TWIN),
    Field(("GroupNormalization",), "epsilon", (nn.GroupNorm, *_INSTANCE_NORM), "eps", _equal, "norm_epsilon", 1e-3),
    Field(("GroupNormalization",), "groups", (nn.GroupNorm,), "num_groups", _groups, "function", 32),
    Field(("GroupNormalization",), "groups", _INSTANCE_NORM, "num_features", _groups, "function", 32, _NO_TWIN),
    Field(("RMSNormalization",), "epsilon", (nn.RMSNorm,), "eps", _equal, "norm_epsilon", 1e-6),
    Field(
        *(("SpectralNormalization",), "power_iterations", (nn.Module,), "n_power_iterations", _equal, "unmeasured", 1),
        *("nn.utils.parametrizations.spectral_norm(module, n_power_iterations={value})",),
        lambda unit, module: not hasattr(module, "weight_u"),  # of the older function, which keeps it out of sight
    ),
    Field(("Embedding",), "mask_zero", (nn.Embedding,), "padding_idx", _always(None), "none", False),
    Field(_RECURRENT, "", _RNN, "batch_first", _always(True), "function"),
    Field(("SimpleRNN",), "activation", (nn.RNN, nn.RNNCell), "nonlinearity", _equal, "function", "tanh"),
    Field(("LSTM", "GRU"), "activation", _ANY_RNN, "", _always("tanh"), "function", "tanh", _NO_TWIN),
    Field(("LSTM", "GRU"), "recurrent_activation", _ANY_RNN, "", _always("sigmoid"), "function", "sigmoid", _NO_TWIN),
    Field(_RECURRENT, "dropout", _ANY_RNN, "", _always(0), "dropout", 0, _SAME_DROP),
    Field(_RECURRENT, "recurrent_dropout", _ANY_RNN, "", _always(0), "dropout", 0, _NO_TWIN),
    Field(_RECURRENT, "go_backwards", _ANY_RNN, "", _always(False), "function", False, "x.flip(1) before it"),
    Field(_RECURRENT, "stateful", _ANY_RNN, "", _always(False), "function", False, "give it the last state"),
    Field(("Bidirectional",), "merge_mode", _RNN, "", _always("concat"), "function", "concat", _NO_TWIN),
    Field(("MultiHeadAttention",), "num_heads", _MHA, "num_heads", _equal, "function", None, _HEADS),
    Field(("MultiHeadAttention",), "key_dim", _MHA, "head_dim", _equal, "function", mend=_NO_TWIN),
    Field(("MultiHeadAttention",), "dropout", _MHA, "dropout", _equal, "dropout", 0.0),
    Field(("MultiHeadAttention",), "", _MHA, "batch_first", _always(True), "function"),
    Field(("MultiHeadAttention",), "", _MHA, "bias_k", _always(None), "function"),
    Field(("MultiHeadAttention",), "", _MHA, "add_zero_attn", _always(False), "function"),
    Field(
        *(("MultiHeadAttention",), "attention_axes", _MHA, "", _always([1]), "function", [1], _NO_TWIN),
        lambda unit, module: unit.get("attention_axes") is not None,
    ),
    Field(("MultiHeadAttention",), "sliding_window", _MHA, "", _always(None), "function", None, _NO_TWIN),
    Field(_POOLING, "pool_size", _POOLS, "kernel_size", _sizes, "function", 2),
    Field(_POOLING, "strides", _POOLS, "stride", _strides_of_pooling, "function"),
    Field(("MaxPooling",), "", _POOLS[:3], "dilation", _always(1), "function"),
    Field(
        *(("AveragePooling",), "", _AVERAGES, "count_include_pad", _always(False), "max_pool"),
        when=lambda unit, module: any(several(module.padding, 1)),
    ),
    Field(_GLOBAL, "", _GLOBALS, "output_size", _always(1), "function"),
    Field(
        *(("UpSampling",), "size", (nn.Upsample,), "scale_factor", _sizes, "function", 2, ""),
        lambda unit, module: module.scale_factor is not None,
    ),
    Field(
        *(("UpSampling",), "interpolation", (nn.Upsample,), "mode"),
        *(lambda v, unit, m: m.mode if m.mode == v + "-exact" else v, "function", "nearest"),
    ),
    Field(
        *(("UpSampling",), "interpolation", (nn.Upsample,), "align_corners", _false_or_none, "align_corners"),
        *("nearest", "", lambda unit, module: unit.get("interpolation") == "bilinear"),
    ),
    Field(
        *(("UpSampling",), "interpolation", (nn.Upsample,), "", _always("bilinear"), "function", "nearest", _NO_TWIN),
        lambda unit, module: unit.get("interpolation") not in (None, "nearest", "bilinear"),
    ),
    Field(
        *(("Resizing",), "interpolation", (nn.Upsample,), "mode", _always("nearest-exact"), "function", "bilinear", ""),
        lambda unit, module: unit.get("interpolation") == "nearest",
    ),
    Field(("Dropout", "SpatialDropout", "AlphaDropout"), "rate", _DROPOUT, "p", _equal, "dropout"),
    Field(("Dropout",), "noise_shape", _DROPOUT, "", _always(None), "dropout", None, _NO_TWIN),
    Field(("Flatten",), "", (nn.Flatten,), "start_dim", _always(1), "function"),
)  # fmt: skip

# The torch class of a Keras layer without weights, by the number of its axes: rows 1, 2 and 3.
LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "MaxPooling": _POOLS[:3],
    "AveragePooling": _AVERAGES,
    "GlobalAveragePooling": _GLOBALS[:3],
    "GlobalMaxPooling": _GLOBALS[3:],
    "UpSampling": (nn.Upsample,) * 3,
    "Dropout": (nn.Dropout,),
    "AlphaDropout": (nn.AlphaDropout,),
    "SpatialDropout": (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    "Resizing": (nn.Upsample,),
    "Flatten": (nn.Flatten,),
}


def base_of(class_name: str) -> str:
    """A class without the number of its axes, and one name for what is one layer."""
    rank = rank_of(class_name)
    name = class_name.replace(f"{rank}D", "") if rank else class_name
    name = name.removesuffix("Cell") if name.endswith(("LSTMCell", "GRUCell", "RNNCell")) else name
    same = ("BatchNormalizationV1", "BatchNormalizationV2", "SyncBatchNormalization")
    return "BatchNormalization" if name in same else name


def fields_of(class_name: str, module: nn.Module) -> list[Field]:
    """The rows for a Keras class and a module."""
    base = base_of(class_name)
    return [row for row in FIELDS if base in row.layers and isinstance(module, row.modules)]


def attribute_of(module: nn.Module, name: str) -> Any:
    """An attribute of a module, or of what one of its weights passes through; None if it has none."""
    lists = getattr(module, "parametrizations", {})
    holders = [module, *(part for name in lists for part in lists[name])]
    return next((getattr(holder, name) for holder in holders if hasattr(holder, name)), None)


def agree(wanted: Any, got: Any) -> bool:
    """Whether two values are one, but for rounding, for a tuple of equal values and for True as 1."""
    if isinstance(wanted, (list, tuple)) or isinstance(got, (list, tuple)):
        length = max(len(v) for v in (wanted, got) if isinstance(v, Sequence) and not isinstance(v, str))
        both = zip(several(wanted, length), several(got, length), strict=False)
        return len(several(wanted, length)) == len(several(got, length)) and all(agree(a, b) for a, b in both)
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (wanted, got))
    return math.isclose(wanted, got, rel_tol=1e-6) if numbers else wanted == got
