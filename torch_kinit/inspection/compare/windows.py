"""Padding on both sides: whether the windows of a convolution or pooling layer stand where Keras has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch_kinit.inspection.compare import spatial
from torch_kinit.inspection.compare.keras_graph import Unit
from torch_kinit.inspection.compare.port_order import Item
from torch_kinit.inspection.compare.spatial import Axis, Windows


class Finding(NamedTuple):
    """What is off: in words what Keras and the port have, and the mend; `unseen` if `forward` may well set it right."""

    keras: str
    port: str
    mend: str
    unseen: bool = False


def compare_windows(unit: Unit, item: Item, *, certain: bool) -> Finding | None:
    """The difference of padding between a layer and a module of one kind; `certain` if no function can come between."""
    axes, module = spatial.axes_of(unit), item.module
    if unit.class_name.endswith("Transpose"):
        return _transposed(unit, item, axes, certain)
    before = [spatial.padding_of(pad.module, len(axes)) for pad in item.before]
    if any(len(own) != len(axes) for own in before):
        return None
    extra = _sum([spatial.pairs(pad.get("padding", 1), len(axes)) for pad in unit.before], len(axes))
    given = _sum([*before, spatial.torch_padding(module, axes)], len(axes))
    verdicts = [_agrees(unit, module, axis, *own) for axis, *own in zip(axes, extra, given, strict=True)]
    if all(verdict is True for verdict in verdicts):
        return _other_fill(unit, item)
    padding = unit.get("padding", "valid")
    keras = " and ".join([f"{padding!r} at strides {[a.stride for a in axes]}" if padding == "same" else repr(padding)])
    keras += f" after ZeroPadding of {extra}" if unit.before else ""
    sizes = [axis.size for axis in axes]
    keras += f", inputs {sizes}" if None not in sizes else ""
    port = f"padding={module.padding!r}" + "".join(
        f" after {type(pad.module).__name__}{_sizes_of(pad)}" for pad in item.before
    )
    unseen = not certain and not item.before and not any(map(any, given))
    if None in verdicts:
        mend = "the size of the inputs is not known: give the config of a built model"
        return Finding(keras, port, mend, unseen=True)
    mend = _mend(unit, item, axes, extra)
    return Finding(keras, port, f"{mend}, or in `forward`" if unseen else mend, unseen)


def _sizes_of(pad: Item) -> str:
    return str(pad.module.padding)


def _sum(pads: Sequence[Sequence[tuple[int, int]]], rank: int) -> list[tuple[int, int]]:
    return [(sum(own[i][0] for own in pads), sum(own[i][1] for own in pads)) for i in range(rank)]


def _agrees(unit: Unit, module: Any, axis: Axis, extra: tuple[int, int], given: tuple[int, int]) -> bool | None:
    """Whether both have the same windows on one axis; None if that depends on a size that is not known."""
    padding, ceil = unit.get("padding", "valid"), getattr(module, "ceil_mode", False)
    first = 16 * axis.stride * axis.span
    sizes = range(first, first + axis.stride) if axis.size is None else (axis.size,)
    verdicts = set()
    for size in sizes:
        own = axis._replace(size=size)
        bare = axis._replace(size=size - sum(extra))
        verdicts.add(spatial.keras_windows(own, padding, extra) == spatial.torch_windows(bare, *given, ceil))
    return None if len(verdicts) > 1 else verdicts.pop()


def _other_fill(unit: Unit, item: Item) -> Finding | None:
    """Padding with other values than Keras': zeros, or of a max pooling's own nothing at all."""
    wanted = float("-inf") if unit.class_name.startswith("Max") and not unit.before else 0.0
    for pad in item.before:
        if any(pad.module.padding) and spatial.fill_of(pad.module) != wanted:  # type: ignore[arg-type]
            kind = f"nn.ConstantPad{spatial.rank_of(unit.class_name)}d({pad.module.padding}, {wanted})"
            mend = kind.replace("-inf", "float('-inf')")
            return Finding(f"padded with {wanted}", type(pad.module).__name__, f"{pad.code} = {mend}")
    return None


def _mend(unit: Unit, item: Item, axes: Sequence[Axis], extra: Sequence[tuple[int, int]]) -> str:
    """The padding that Keras has: as an argument if both ends are alike, or else as a module before."""
    if any(axis.size is None and axis.stride > 1 for axis in axes) and unit.get("padding") == "same":
        return "pad by the size of the inputs: give the config of a built model"
    known = [axis if axis.size is not None else axis._replace(size=16 * axis.span) for axis in axes]
    own = [spatial.keras_padding(axis, unit.get("padding", "valid")) for axis in known]
    pads = [(a + c, b + d) for (a, b), (c, d) in zip(own, extra, strict=True)]
    rank, module = len(axes), item.module
    pooling = "Pooling" in unit.class_name
    fits = not pooling or all(2 * low <= axis.window for axis, (low, _) in zip(axes, pads, strict=True))
    if all(low == high for low, high in pads) and fits:
        value = tuple(low for low, _ in pads)
        mend = f"{item.code}.padding = {value}"
        return f"{mend}; remove {item.before[0].code}" if item.before else mend
    sizes = spatial.as_torch_padding(pads)
    if unit.class_name.startswith("Average") and unit.get("padding") == "same":
        return f"pad(x, {sizes}) pooled, over pad(torch.ones_like(x), {sizes}) pooled: Keras' mean is of valid values"
    fill = pooling and unit.class_name.startswith("Max") and not unit.before
    pad = f"nn.ConstantPad{rank}d({sizes}, float('-inf'))" if fill else f"nn.ZeroPad{rank}d({sizes})"
    return (
        f"{pad} before {item.code}, whose padding is then 0"
        if any(spatial.several(module.padding, 1))
        else (f"{pad} before {item.code}")
    )


def _transposed(unit: Unit, item: Item, axes: Sequence[Axis], certain: bool) -> Finding | None:
    """The same of a transposed convolution, of which Keras keeps a part."""
    module: Any = item.module
    sizes = [axis.size or 16 for axis in axes]  # which part it is does not depend on the size
    known = [axis._replace(size=size) for axis, size in zip(axes, sizes, strict=True)]
    if unit.get("output_padding") is not None:
        return None
    wanted = [spatial.transposed(unit, axis) for axis in known]
    crops = _sum([spatial.padding_of(pad.module, len(axes)) for pad in item.after], len(axes))
    keras_crops = _sum([spatial.pairs(crop.get("cropping", 1), len(axes)) for crop in unit.after], len(axes))
    got = []
    more = zip(
        known,
        spatial.several(module.padding, len(axes)),
        spatial.several(module.output_padding, len(axes)),
        strict=True,
    )
    for axis, padding, beyond in more:
        assert axis.size is not None
        got.append(Windows(padding, (axis.size - 1) * axis.stride + axis.span - 2 * padding + beyond))
    got = [Windows(w.start - low, w.number + low + high) for w, (low, high) in zip(got, crops, strict=True)]
    whole = [Windows(w.start + low, w.number - low - high) for w, (low, high) in zip(wanted, keras_crops, strict=True)]
    if got == whole:
        return None
    port = f"padding={module.padding!r}, output_padding={module.output_padding!r}"
    unseen = not certain and not item.after and not any(module.padding)
    keras = f"{unit.get('padding', 'valid')!r}: {tuple(w.number for w in wanted)} of inputs {tuple(sizes)}"
    mend = _mend_transposed(item, known, wanted)
    return Finding(keras, port, f"{mend}, or in `forward`" if unseen else mend, unseen)


def _mend_transposed(item: Item, axes: Sequence[Axis], wanted: Sequence[Windows]) -> str:
    starts = tuple(w.start for w in wanted)
    beyond = []
    for axis, window in zip(axes, wanted, strict=True):
        assert axis.size is not None
        beyond.append(window.number - (axis.size - 1) * axis.stride - axis.span + 2 * window.start)
    code = item.code
    if min(beyond) >= 0:
        return f"{code}.padding, {code}.output_padding = {starts}, {tuple(beyond)}"
    crops = []
    for axis, window in zip(axes, wanted, strict=True):
        assert axis.size is not None
        whole = (axis.size - 1) * axis.stride + axis.span
        crops.append((-window.start, window.start + window.number - whole))
    return f"nn.ZeroPad{len(axes)}d({spatial.as_torch_padding(crops)}) after {code}, whose padding is then 0"
