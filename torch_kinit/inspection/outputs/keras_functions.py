"""What Keras' layers without weights compute, in torch on tensors of Keras' layout: `computed`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from torch_kinit.inspection.activations import LINEAR, Activation, of_layer
from torch_kinit.inspection.outputs.agreement import as_float
from torch_kinit.keras.recorded import Call

Masks = Mapping[str, Tensor]


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*parts))  # type: ignore[no-untyped-call]


_AROUND_ONE = ("TimeDistributed", "SpectralNormalization")  # layers that do to the outputs what the one inside does
_WITH_ACTIVATION = (
    *("Dense", "EinsumDense", "Conv", "DepthwiseConv", "SeparableConv"),
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax"),
)
_IDENTITIES = ("Dropout", "SpatialDropout", "Gaussian", "AlphaDropout", "ActivityRegularization", "Masking", "Identity")
_MERGES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "Add": lambda parts: _stacked(parts).sum(0),
    "Average": lambda parts: _stacked(parts).mean(0),
    "Multiply": lambda parts: _stacked(parts).prod(0),
    "Maximum": lambda parts: _stacked(parts).amax(0),
    "Minimum": lambda parts: _stacked(parts).amin(0),
    "Subtract": lambda parts: parts[0] - parts[1],
}


def computed(call: Call, inputs: Sequence[Tensor], masks: Masks) -> Tensor | None:
    """What a layer without weights makes of its inputs; None for one that is not known here."""
    if not call.own or not inputs:
        return None
    kind, config = call.class_name, call.config
    x, *_ = inputs = [as_float(tensor) for tensor in inputs]
    if kind.startswith(_IDENTITIES):
        return x
    if kind in _MERGES:
        return _MERGES[kind](inputs)
    if kind == "Concatenate":
        return torch.cat(list(inputs), config.get("axis", -1))
    if kind == "Flatten" and not is_first(config):
        return x.reshape(len(x), -1)
    if kind == "Reshape":
        return x.reshape(len(x), *config["target_shape"])
    if kind == "GetItem":  # a step of a sequence
        return x[:, config["step"]]
    if kind == "AddScaled":
        return inputs[0] + float(config["scale"]) * inputs[1]
    if kind == "Permute":
        return x.permute(0, *config["dims"])
    if kind == "Rescaling" and all(isinstance(config.get(key, 0), (int, float)) for key in ("scale", "offset")):
        return x * float(config["scale"]) + float(config.get("offset", 0.0))
    if kind.startswith("Global") and not is_first(config):
        return global_pooled(x, "Max" in kind, masks.get("mask"), keep=config.get("keepdims", False))
    if kind.startswith(("MaxPooling", "AveragePooling")):
        return pooled(x, config, average=kind.startswith("Average"), pads=same_pads(x, config))
    if kind.startswith("UpSampling"):
        return upsampled(x, config)
    if kind.startswith(("ZeroPadding", "Cropping")):
        return padded(x, config, cut=kind.startswith("Cropping"))
    if kind == "Attention":
        return attended(inputs, config, masks)
    found = activation_of(call)
    return found(x) if found else None


def activation_of(call: Call) -> Activation | None:
    """The activation of a layer's outputs; None if it is not known."""
    kind, config = call.class_name, call.config
    while kind in _AROUND_ONE and isinstance(inner := config.get("layer"), Mapping):
        kind, config = str(inner.get("class_name")), inner.get("config") or {}
    if not call.own or kind.startswith("ConvLSTM") or not kind.startswith(_WITH_ACTIVATION):
        return None
    found = of_layer(kind, config) or LINEAR
    return found if found.is_known else None


def is_first(config: Mapping[str, Any]) -> bool:
    return config.get("data_format") == "channels_first"


def several(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value)


def cropped(x: Tensor, starts: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """A part of a tensor with the channels first."""
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), 2):
        x = x.narrow(axis, start, size)
    return x


def channels_first(x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """A tensor as torch has it."""
    return x if is_first(config) else x.movedim(-1, 1)


def channels_back(x: Tensor, config: Mapping[str, Any]) -> Tensor:
    return x if is_first(config) else x.movedim(1, -1)


def pads_of(sizes: Sequence[int], window: Sequence[int], steps: Sequence[int]) -> list[tuple[int, int]]:
    """How much padding="same" adds before and after each axis."""
    total = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, window, steps, strict=True)]
    return [(t // 2, t - t // 2) for t in total]


def for_pad(pads: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Padding before and after each axis as F.pad takes it: of the last axis first."""
    return tuple(size for pair in reversed(pads) for size in pair)


def same_pads(x: Tensor, config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """What a pooling layer pads its inputs with."""
    rank = x.ndim - 2
    if config.get("padding") != "same":
        return [(0, 0)] * rank
    window, steps = several(config["pool_size"], rank), several(config.get("strides") or config["pool_size"], rank)
    return pads_of(channels_first(x, config).shape[2:], window, steps)


def pooled(
    x: Tensor,
    config: Mapping[str, Any],
    *,
    average: bool,
    pads: Sequence[tuple[int, int]],
    ceil: bool = False,
    count_pad: bool = False,
) -> Tensor:
    """Pooling with this padding, which is never the largest and counts for nothing unless `count_pad`."""
    rank = x.ndim - 2
    window, steps = several(config["pool_size"], rank), several(config.get("strides") or config["pool_size"], rank)
    moved, at = channels_first(x, config), rank - 1
    if not average:
        full = F.pad(moved, for_pad(pads), value=-math.inf)
        most = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[at]
        return channels_back(most(full, window, steps, ceil_mode=ceil), config)
    mean = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[at]
    full = mean(F.pad(moved, for_pad(pads)), window, steps, ceil_mode=ceil)
    if not count_pad:
        full = full / mean(F.pad(torch.ones_like(moved), for_pad(pads)), window, steps, ceil_mode=ceil)
    return channels_back(full, config)


def global_pooled(x: Tensor, most: bool, mask: Tensor | None, keep: bool = False) -> Tensor:
    """The largest or the mean over all places, of steps that are not masked."""
    axes = tuple(range(1, x.ndim - 1))
    if most:
        return x.amax(axes, keepdim=keep)
    if mask is None or mask.ndim != 2:
        return x.mean(axes, keepdim=keep)
    weight = mask.float()[..., None]
    return (x * weight).sum(1, keepdim=keep) / weight.sum(1, keepdim=keep)


def upsampled(x: Tensor, config: Mapping[str, Any], *, mode: str | None = None, corners: bool = False) -> Tensor | None:
    """UpSampling, bilinear with the corners' centres aligned or not."""
    mode = mode or config.get("interpolation", "nearest")
    moved = channels_first(x, config)
    sizes = several(config["size"], x.ndim - 2)
    if mode == "nearest":
        for axis, size in enumerate(sizes, 2):
            moved = moved.repeat_interleave(size, axis)
        return channels_back(moved, config)
    if mode != "bilinear" or x.ndim != 4:
        return None
    larger = [n * k for n, k in zip(moved.shape[2:], sizes, strict=True)]
    return channels_back(F.interpolate(moved, larger, mode=mode, align_corners=corners), config)


def padded(x: Tensor, config: Mapping[str, Any], *, cut: bool, swapped: bool = False) -> Tensor:
    """ZeroPadding or Cropping; `swapped` with the axes in the other order."""
    pairs = _pairs(config["cropping" if cut else "padding"], x.ndim - 2)
    pairs = pairs[::-1] if swapped else pairs
    signed = [(-a, -b) if cut else (a, b) for a, b in pairs]
    return channels_back(F.pad(channels_first(x, config), for_pad(signed)), config)


def _pairs(value: Any, rank: int) -> list[tuple[int, int]]:
    if rank == 1 and not isinstance(value, int):
        value = [value]
    return [(v, v) if isinstance(v, int) else (v[0], v[1]) for v in several(value, rank)]


def attended(inputs: Sequence[Tensor], config: Mapping[str, Any], masks: Masks, scale: float = 1.0) -> Tensor | None:
    """Attention of (query, value) or (query, value, key) by their dot products."""
    if config.get("use_scale") or config.get("score_mode", "dot") != "dot" or len(inputs) not in (2, 3):
        return None
    query, value = inputs[:2]
    scores = query @ inputs[-1 if len(inputs) == 3 else 1].transpose(-1, -2) * scale
    return torch.softmax(scores, -1) @ value if not masks else None
