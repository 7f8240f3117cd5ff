"""What a port may compute in place of a Keras layer without weights, or of an activation: values to compare with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from torch_kinit.inspection.activations import LINEAR, USUAL
from torch_kinit.inspection.outputs.agreement import as_float
from torch_kinit.inspection.outputs.keras_functions import (
    Masks,
    activation_of,
    attended,
    computed,
    for_pad,
    global_pooled,
    is_first,
    padded,
    pooled,
    same_pads,
    several,
    upsampled,
)
from torch_kinit.keras.recorded import Call

_MERGED = {"Add": "x + y", "Multiply": "x * y", "Average": "(x + y) / 2", "Subtract": "x - y"}
_MERGED |= {"Concatenate": "torch.cat([x, y], -1), in Keras' order"}


@dataclass(frozen=True, eq=False)
class Mistake:
    """A value that a wrong port has, and why."""

    call: Call  # of the layer that is wrong
    value: Tensor  # in Keras' layout
    cause: str
    mend: str
    own: Tensor  # what the layer itself gives, where `value` is what later ones make of it


def mistakes(call: Call, inputs: Sequence[Tensor], masks: Masks) -> Iterator[Mistake]:
    """The mistakes of a layer without weights; its inputs are right."""
    if not call.own or not inputs:
        return
    found = activation_of(call)
    if found:
        yield from activations(call, inputs[0])
    for value, cause, mend in () if found else _of_kind(call, [as_float(x) for x in inputs], masks):
        if value is not None:
            yield Mistake(call, value, cause, mend, value)
    right = computed(call, inputs, masks)
    if not found and right is not None and right.shape == inputs[0].shape and len(inputs) == 1:
        x = as_float(inputs[0])
        yield Mistake(call, x, "the port goes without this layer", f"# {call.class_name} between the two modules", x)


def activations(call: Call, before: Tensor) -> Iterator[Mistake]:
    """What comes of `before`, the layer's values before its activation, by another activation, none, or two."""
    if (known := activation_of(call)) is None:
        return
    code = known.code
    before = as_float(before)
    right = known(before)
    if known != LINEAR:
        yield Mistake(call, before, f"its activation is missing: Keras has {known}", code, before)
        twice = known(right)
        yield Mistake(call, twice, f"its activation, {known}, is applied twice", f"once: {code}", twice)
    for other in USUAL:
        if other not in (LINEAR, known):
            value = other(before)
            cause = f"the port has the activation {other} where Keras has {known}"
            if known == LINEAR:
                cause = f"the port applies an activation, {other}, where Keras has none"
            yield Mistake(call, value, cause, code, value)
    if known.name == "softmax":
        for axis in range(before.ndim - 1):
            value = F.softmax(before, axis)
            yield Mistake(call, value, f"softmax is over axis {axis} of Keras' layout, not over the last", code, value)


Value = tuple[Tensor | None, str, str]


def _of_kind(call: Call, inputs: Sequence[Tensor], masks: Masks) -> Iterator[Value]:
    """Values with their causes and mends, by the layer's class."""
    kind, config, x = call.class_name, call.config, inputs[0]
    if kind in ("Flatten", "Reshape") and x.ndim > 2 and not is_first(config):
        yield from _flattened(call, x)
    elif kind.startswith(("MaxPooling", "AveragePooling")):
        yield from _windows(call, x)
    elif kind.startswith("Global") and not is_first(config):
        yield from _over_places(call, x, masks)
    elif kind.startswith("UpSampling"):
        mend = "nn.Upsample(scale_factor=..., mode={!r}{})"
        mode = config.get("interpolation", "nearest")
        right = mend.format(mode, ", align_corners=False" if mode == "bilinear" else "")
        yield (
            upsampled(x, config, mode="bilinear", corners=True),
            "align_corners=True; Keras does not align them",
            right,
        )
        other = "nearest" if mode == "bilinear" else "bilinear"
        yield upsampled(x, config, mode=other), f"the port interpolates {other}, Keras {mode}", right
    elif kind.startswith(("ZeroPadding", "Cropping")) and x.ndim == 4:
        cut = kind.startswith("Cropping")
        cause = "the axes are in the other order: F.pad takes (left, right, top, bottom)"
        yield padded(x, config, cut=cut, swapped=True), cause, "F.pad(x, (left, right, top, bottom))"
    elif kind == "Attention":
        cause = "the scores are scaled by 1 / sqrt(d); Keras' Attention does not unless use_scale"
        scaled = attended(inputs, config, masks, scale=1 / math.sqrt(x.shape[-1]))
        yield scaled, cause, "F.scaled_dot_product_attention(query, key, value, scale=1.0)"
    elif kind == "GetItem":
        for step in (0, -1):
            if step != config["step"]:
                yield x[:, step], f"the port takes step {step}, Keras {config['step']}", f"x[:, {config['step']}]"
        yield x.mean(1), f"the port takes the mean of all steps, Keras step {config['step']}", f"x[:, {config['step']}]"
    elif kind == "AddScaled":
        code = f"x + {config['scale']:.4g} * y"
        yield inputs[0] + inputs[1], f"the port adds both as they are, Keras {code}", code
        yield inputs[0], f"the port goes on with the first alone, Keras with {code}", code
    elif len(inputs) > 1:
        yield from _merged(call, inputs, masks)


def _flattened(call: Call, x: Tensor) -> Iterator[Value]:
    sizes = (x.shape[-1], *x.shape[1:-1])
    cause = f"flattened as torch has it, channels first {sizes}; Keras flattens channels last"
    mend = f"kinit.flattened(linear, {sizes}) before from_keras, or x.movedim(1, -1).flatten(1)"
    moved = x.movedim(-1, 1)
    right = computed(call, [x], {})
    yield (None if right is None else moved.reshape(right.shape)), cause, mend


def _windows(call: Call, x: Tensor) -> Iterator[Value]:
    """Pooling with other padding than Keras'."""
    config, average = call.config, call.class_name.startswith("Average")
    rank, pads = x.ndim - 2, same_pads(x, call.config)
    window, name = several(config["pool_size"], rank), f"nn.{'Avg' if average else 'Max'}Pool{rank}d"
    value = "" if average else ', value=-float("inf")'
    steps = several(config.get("strides") or config["pool_size"], rank)
    right = f"F.pad(x, {for_pad(pads)}{value}), then {name}({window}, {steps})"
    for by in range(max(window) // 2 + 1):
        both = [(by, by)] * rank
        if both != pads:
            cause = f"its windows are shifted: the port pads {by} on both sides, Keras {pads} (before, after)"
            yield pooled(x, config, average=average, pads=both), cause, right
            yield pooled(x, config, average=average, pads=both, ceil=True), f"{cause}, with ceil_mode", right
            if average:
                yield pooled(x, config, average=True, pads=both, count_pad=True), f"{cause}, and counts them", right
    if average:
        cause = "Keras' torch backend repeats the edge where it pads, its other backends leave the padding out"
        yield pooled(x, config, average=True, pads=pads), cause, "record on JAX or TensorFlow"
        cause = "the padding counts in the mean; Keras leaves it out"
        yield pooled(x, config, average=True, pads=pads, count_pad=True), cause, f"{name}(..., count_include_pad=False)"
    cause = f"the port takes the {'largest value' if average else 'mean'} of each window"
    yield pooled(x, config, average=not average, pads=pads), f"{cause}; Keras has {call.class_name}", right


def _over_places(call: Call, x: Tensor, masks: Masks) -> Iterator[Value]:
    """Global pooling that ignores a mask, or of the other kind."""
    most, keep = "Max" in call.class_name, call.config.get("keepdims", False)
    mask = masks.get("mask")
    if mask is not None and not most:
        mend = "(x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)"
        yield global_pooled(x, most, None, keep), "the mask is ignored: masked steps are averaged, too", mend
    cause = f"the port takes the {'mean' if most else 'largest value'}; Keras has {call.class_name}"
    yield global_pooled(x, not most, mask, keep), cause, "x.amax(...)" if most else "x.mean(...)"


def _merged(call: Call, inputs: Sequence[Tensor], masks: Masks) -> Iterator[Value]:
    """A merge of the inputs in the other order, or of one alone."""
    code = _MERGED.get(call.class_name, f"as Keras' {call.class_name}")
    if call.class_name in ("Concatenate", "Subtract"):
        yield computed(call, inputs[::-1], masks), "the inputs are in the other order", code
    if call.class_name in ("Add", "Average", "Multiply"):
        for kind in ("Add", "Average", "Multiply"):
            if kind != call.class_name:
                other = dataclasses.replace(call, class_name=kind)
                yield computed(other, inputs, masks), f"the port has {kind} where Keras has {call.class_name}", code
        for i, x in enumerate(inputs):
            yield x, f"the port goes on with input {i} of this layer alone", code
