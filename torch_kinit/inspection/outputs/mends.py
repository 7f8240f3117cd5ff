"""What may be wrong in a module that is given Keras' inputs: the change with which it gives Keras' outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from torch_kinit.inspection.outputs.agreement import as_float, in_layout_of
from torch_kinit.inspection.outputs.keras_functions import cropped, for_pad, is_first, pads_of, several
from torch_kinit.inspection.outputs.trace import set_mode, tensors
from torch_kinit.keras.recorded import Call

_EPSILONS = ("eps", "epsilon", "variance_epsilon")
_DEFAULT_EPSILON = 1e-3  # of BatchNormalization, LayerNormalization, GroupNormalization in Keras
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Trial:
    """What a module gives with a mend; `value` is before the activation, if Keras' layer has one."""

    value: Tensor
    cause: str
    mend: str
    valid: Tensor | None = None  # the steps that are right by it, where it speaks of some alone


@dataclass(frozen=True, eq=False)
class Situation:
    """A layer of Keras beside the modules of the port that hold its weights."""

    call: Call
    inputs: Sequence[Tensor]  # Keras'
    masks: Mapping[str, Tensor]
    modules: Sequence[nn.Module]  # in the order of the weights
    arguments: tuple[Any, ...]  # of the last module's call
    keywords: Mapping[str, Any]
    given: Sequence[Tensor]  # the tensors among them
    mode: str

    @property
    def module(self) -> nn.Module:
        return self.modules[-1]


def trials(at: Situation) -> Iterator[Trial]:
    """Each mend of the module, and what it gives from Keras' inputs."""
    module = at.module
    if isinstance(at.modules[0], (*_CONVS, *_TRANSPOSED)):
        yield from _windows(at)
    elif isinstance(module, nn.RNNBase):
        yield from _recurrent(at)
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(at)
    else:
        if isinstance(module, _BATCH_NORMS):
            yield from _statistics(at, module)
        yield from _epsilons(at)


def alone(at: Situation) -> Tensor | None:
    """What the module gives from Keras' inputs."""
    if isinstance(at.module, nn.MultiheadAttention):
        return _attended(at)
    for x in in_layout_of(at.inputs[0], at.given[0]) if at.inputs and at.given else ():
        return _called(at, at.module, x)
    return None


def _called(at: Situation, module: nn.Module, x: Tensor, **more: Any) -> Tensor | None:
    """A copy's first output for `x` in place of the first argument; None if it raises."""
    reference = next(module.parameters(), None)
    x = x.to(at.given[0].dtype if at.given else x.dtype)
    x = x if reference is None else x.to(reference.device)
    own = copy.deepcopy(module)
    set_mode(own, at.mode)
    try:
        with torch.no_grad():
            found = tensors(own(x, *at.arguments[1:], **{**at.keywords, **more}))
    except Exception:  # a mend that does not suit the module
        return None
    return as_float(found[0]) if found else None


def _epsilons(at: Situation) -> Iterator[Trial]:
    """The module with another epsilon."""
    name = next((n for n in _EPSILONS if isinstance(getattr(at.module, n, None), float)), None)
    if name is None or not at.given:
        return
    kind, own = type(at.module).__name__, getattr(at.module, name)
    told = at.call.config.get("epsilon", _DEFAULT_EPSILON)
    for value in dict.fromkeys((told, 1e-3, 1e-5, 1e-6, 1e-7, 1e-12)):
        changed = copy.deepcopy(at.module)
        setattr(changed, name, value)
        for x in in_layout_of(at.inputs[0], at.given[0]):
            if value != own and (found := _called(at, changed, x)) is not None:
                cause = f"the {name} of {kind} is {own:g}, Keras' epsilon {value:g}"
                yield Trial(found, cause, f"nn.{kind}(..., {name}={value:g})")


def _statistics(at: Situation, module: Any) -> Iterator[Trial]:
    """BatchNorm with the statistics that it keeps, or those of the batch."""
    weight, bias, mean, variance = (
        None if t is None else as_float(t)
        for t in (module.weight, module.bias, module.running_mean, module.running_var)
    )
    for x in in_layout_of(at.inputs[0], at.given[0]):
        if mean is not None:
            cause = "it normalizes with the batch's mean and variance, Keras with the moving ones"
            mend = "model.eval(), track_running_stats=True, and no train() of this module in forward"
            if at.mode == "train":
                cause = "it is trained, and frozen in Keras (trainable=False), where it uses its moving statistics"
                mend = "bn.eval() after model.train()"
            yield Trial(F.batch_norm(as_float(x), mean, variance, weight, bias, False, eps=module.eps), cause, mend)
        if at.mode == "train":
            cause = "it normalizes with its running statistics in training mode, Keras with the batch's"
            found = F.batch_norm(as_float(x), None, None, weight, bias, True, eps=module.eps)
            yield Trial(found, cause, "no eval() of this module in model.train()")


def _windows(at: Situation) -> Iterator[Trial]:
    """Convolutions with Keras' strides, dilation and padding."""
    first, config = at.modules[0], at.call.config
    if not isinstance(first, (*_CONVS, *_TRANSPOSED)) or len(at.inputs) != 1:
        return
    x = at.inputs[0] if is_first(config) else at.inputs[0].movedim(-1, 1)
    rank = x.ndim - 2
    window, steps = several(config["kernel_size"], rank), several(config.get("strides", 1), rank)
    wide = several(config.get("dilation_rate", 1), rank)
    if isinstance(first, _TRANSPOSED):
        found, ours = _transposed(first, x, config, window, steps, wide), _own_crop(first)
    else:
        found, ours = _convolved(first, x, config, window, steps, wide), f"padding={first.padding!r}"
    if found is None:
        return
    value, place, mend = found
    with torch.no_grad():
        for module in copy.deepcopy(list(at.modules[1:])):
            value = module(value)
    other = []
    if tuple(first.stride) != steps:
        other.append(f"stride {tuple(first.stride)} where Keras has {steps}")
    if tuple(first.dilation) != wide:
        other.append(f"dilation {tuple(first.dilation)} where Keras has {wide}")
    shifted = f"its windows are shifted: {ours}; Keras {place} at strides {steps}"
    yield Trial(as_float(value.detach()), " and ".join(other) or shifted, mend)


def _convolved(
    module: Any, x: Tensor, config: Any, window: tuple[int, ...], steps: tuple[int, ...], wide: tuple[int, ...]
) -> tuple[Tensor, str, str] | None:
    spans = [d * (k - 1) + 1 for d, k in zip(wide, window, strict=True)]
    pads = {"valid": [(0, 0)] * len(spans), "same": pads_of(x.shape[2:], spans, steps)}
    pads["causal"] = [(span - 1, 0) for span in spans]
    if (padding := config.get("padding", "valid")) not in pads:
        return None
    own = pads[padding]
    function = (F.conv1d, F.conv2d, F.conv3d)[len(spans) - 1]
    weight, bias = module.weight, module.bias
    value = function(F.pad(x.to(weight), for_pad(own)), weight, bias, steps, 0, wide, module.groups)
    kind = f"nn.Conv{len(spans)}d(..., stride={steps}{f', dilation={wide}' if max(wide) > 1 else ''}"
    if all(a == b for a, b in own):
        mend = f"{kind}, padding={tuple(a for a, _ in own)})"
    else:
        mend = f"x = F.pad(x, {for_pad(own)}), then {kind}, padding=0)"
    return value, f"pads {own} (before, after)", mend


def _transposed(
    module: Any, x: Tensor, config: Any, window: tuple[int, ...], steps: tuple[int, ...], wide: tuple[int, ...]
) -> tuple[Tensor, str, str] | None:
    """The whole of a transposed convolution, and Keras' part of it."""
    if config.get("output_padding") is not None or any(d != 1 for d in wide):
        return None
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(steps) - 1]
    sides, weight = list(zip(window, steps, strict=True)), module.weight
    extra = [max(s - k, 0) for k, s in sides]
    value = function(x.to(weight), weight, module.bias, steps, 0, extra, module.groups, wide)
    same = config.get("padding") == "same"
    starts = [max(k - s, 0) // 2 if same else 0 for k, s in sides]
    ends = [
        start + n * s if same else size
        for start, n, s, size in zip(starts, x.shape[2:], steps, value.shape[2:], strict=True)
    ]
    part = cropped(value, starts, [b - a for a, b in zip(starts, ends, strict=True)])
    written = ", ".join(f"{a}:{b}" for a, b in zip(starts, ends, strict=True))
    mend = f"padding=0, output_padding={tuple(extra)}, then y[..., {written}]"
    return part, f"crops the full output to [{written}]", mend


def _own_crop(module: Any) -> str:
    return f"padding={module.padding!r}, output_padding={module.output_padding!r}"


def _recurrent(at: Situation) -> Iterator[Trial]:
    """A recurrent module on the valid steps of each sample alone, or backwards."""
    module: Any = at.module
    x, mask = at.inputs[0], at.masks.get("mask")
    if x.ndim != 3:
        return
    if mask is not None and not bool(mask.all()) and (found := _on_valid_steps(at, mask)) is not None:
        count = int((~mask.bool()).any(1).sum())
        cause = f"the mask is ignored: {count} of {len(mask)} samples have masked steps, which Keras skips"
        mend = "nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)"
        yield Trial(found, cause, mend, valid=mask.bool())
    order = x if module.batch_first else x.transpose(0, 1)
    found = _called(at, module, order.flip(1 if module.batch_first else 0))
    if found is not None and not module.bidirectional:
        found = found if module.batch_first else found.transpose(0, 1)
        sequences = at.call.config.get("return_sequences", False)
        cause = "Keras runs it backwards (go_backwards=True)"
        yield Trial(found if sequences else found[:, -1], cause, "rnn(x.flip(1))")
    if not module.batch_first:
        changed = copy.deepcopy(module)
        changed.batch_first = True
        for own in in_layout_of(x, at.given[0]):
            if own.shape == x.shape and (found := _called(at, changed, x)) is not None:
                value = found if at.call.config.get("return_sequences") else found[:, -1]
                yield Trial(value, "it takes the first axis for time: batch_first=False", "batch_first=True")


def _on_valid_steps(at: Situation, mask: Tensor) -> Tensor | None:
    """What the module gives for each sample without its masked steps, these left at zero; or the last states."""
    module: Any = at.module
    x, parts = at.inputs[0], []
    for sample, steps in zip(x, mask.bool(), strict=True):
        if not bool(steps.any()):
            return None
        own = sample[steps][None]
        found = _called(at, module, own if module.batch_first else own.transpose(0, 1))
        if found is None:
            return None
        out = (found if module.batch_first else found.transpose(0, 1))[0]
        if not _returns_sequences(at.call):
            half = out.shape[-1] // 2
            parts.append(torch.cat([out[-1, :half], out[0, half:]]) if module.bidirectional else out[-1])
        else:
            parts.append(torch.zeros(len(sample), out.shape[-1]).masked_scatter(steps[:, None], out))
    return torch.stack(parts)


def _returns_sequences(call: Call) -> bool:
    inner = call.config.get("layer")
    config = inner.get("config", {}) if isinstance(inner, Mapping) else call.config
    return bool(config.get("return_sequences", False))


def _attention(at: Situation) -> Iterator[Trial]:
    """nn.MultiheadAttention with a mask."""
    query = at.inputs[0]
    found = {
        "the mask is ignored: Keras leaves out masked keys": ("key_padding_mask=~mask", _padding_mask(at)),
        "the causal mask is missing": ("attn_mask=causal", _causal(query.shape[1])),
    }
    if query.ndim != 3:
        return
    for cause, (mend, mask) in found.items():
        if mask is not None:
            value = _attended(at, **{"key_padding_mask" if "padding" in mend else "attn_mask": mask})
            yield Trial(value, cause, f"attention(query, key, value, {mend})")


def _attended(at: Situation, **masks: Tensor) -> Tensor:
    """Attention of Keras' query, value and key, with these masks alone."""
    module: Any = copy.deepcopy(at.module).eval()
    module.batch_first = True
    like = next(module.parameters())
    query, value, key = [part.to(like) for part in (*at.inputs, at.inputs[-1], at.inputs[-1])][:3]
    with torch.no_grad():
        return as_float(module(query, key, value, **{name: mask.to(like.device) for name, mask in masks.items()})[0])


def _padding_mask(at: Situation) -> Tensor | None:
    mask = at.masks.get("key_mask", at.masks.get("value_mask"))
    return None if mask is None or bool(mask.all()) else ~mask.bool()


def _causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def heads_mixed(at: Situation, projected: Sequence[Tensor], scale: bool, masked: bool) -> Tensor | None:
    """The input of a MultiHeadAttention's last projection, from those of query, key and value."""
    heads = at.call.config.get("num_heads")
    if not isinstance(heads, int) or any(part.ndim != 3 for part in projected):
        return None
    query, key, value = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in map(as_float, projected))
    scores = query @ key.transpose(-1, -2)
    scores = scores / math.sqrt(query.shape[-1]) if scale else scores
    mask = _padding_mask(at)
    if masked and mask is not None:
        scores = scores.masked_fill(mask[:, None, None], -math.inf)
    mixed: Tensor = torch.softmax(scores, -1) @ value
    return mixed.transpose(1, 2).flatten(2)
