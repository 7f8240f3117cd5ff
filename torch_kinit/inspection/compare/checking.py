"""The checks of a comparison: of one layer and its modules, and of what stands between layers with weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from torch_kinit.inspection import activations
from torch_kinit.inspection.activations import plain
from torch_kinit.inspection.compare import spatial
from torch_kinit.inspection.compare.differences import MEASURED, NONE, Difference, Note
from torch_kinit.inspection.compare.events import Event, twin_class
from torch_kinit.inspection.compare.fields import Field, agree, attribute_of, base_of, fields_of
from torch_kinit.inspection.compare.keras_graph import Unit
from torch_kinit.inspection.compare.port_order import Item
from torch_kinit.inspection.compare.windows import compare_windows
from torch_kinit.inspection.sharded import own_class
from torch_kinit.keras.readers import READERS

Found = list[Difference | Note]
_WINDOWS = ("Conv", "DepthwiseConv", "ConvTranspose", "MaxPooling", "AveragePooling")


def check_layer(unit: Unit, items: Sequence[Item], *, certain: bool) -> Found:
    """The differences of a layer with weights and the modules that hold them."""
    parts = _parts(unit)
    if unit.class_name not in READERS:
        return [Note(unit.name, f"of class {unit.class_name}, not Keras' own", "compare its arguments by hand")]
    if len(parts) != len(items):
        return [Note(unit.name, f"{unit.class_name} made of {len(items)} modules", "compare its arguments by hand")]
    found: Found = []
    for part, item in zip(parts, items, strict=True):
        found += check_fields(part, item)
        found += check_windows(part, item, certain=certain)
        for class_name, config in unit.wrappers.items():
            found += check_fields(dataclasses.replace(part, class_name=class_name, config=config), item)
    return found


def _parts(unit: Unit) -> list[Unit]:
    """A layer as the layers that torch makes it of."""
    if base_of(unit.class_name) != "SeparableConv":
        return [unit]
    rank = spatial.rank_of(unit.class_name)
    plain = {"kernel_size": 1, "strides": 1, "dilation_rate": 1, "padding": "valid", "groups": 1}
    first = dataclasses.replace(unit, class_name=f"DepthwiseConv{rank}D")
    return [first, dataclasses.replace(unit, class_name=f"Conv{rank}D", config={**unit.config, **plain}, before=[])]


def check_fields(unit: Unit, item: Item) -> list[Difference]:
    """The rows of the table for this layer and module."""
    found = []
    for row in fields_of(unit.class_name, item.module):
        value = _value(unit, row)
        if not row.when(unit, item.module) or (row.key and value is None and row.default is not None):
            continue
        wanted = row.expected(value, unit, item.module)
        got = attribute_of(item.module, row.attribute) if row.attribute else value
        if not agree(wanted, got):
            found.append(_difference(row, unit, item, value, wanted, got))
    return found


def _value(unit: Unit, row: Field) -> Any:
    value = unit.get(row.key, row.default)
    if row.key.endswith("activation"):
        return str(activations.named(value))
    return value


def _difference(row: Field, unit: Unit, item: Item, value: Any, wanted: Any, got: Any) -> Difference:
    value, wanted = plain(value), plain(wanted)
    keras = f"{row.key}={value!r}" if row.key else f"as {row.attribute}={wanted!r}"
    port = f"{row.attribute}={got!r}" if row.attribute else f"{own_class(item.module).__name__} has none"
    mend = row.mend.format(value=wanted) if row.mend else f"{item.code}.{row.attribute} = {wanted!r}"
    return Difference(unit.name, item.path, row.key or row.attribute, keras, port, MEASURED[row.weight], mend)


def check_windows(unit: Unit, item: Item, *, certain: bool) -> Found:
    """Padding, where both have windows."""
    base = base_of(unit.class_name)
    if base not in _WINDOWS or not hasattr(item.module, "padding") or not hasattr(item.module, "kernel_size"):
        return []
    finding = compare_windows(unit, item, certain=certain)
    if finding is None:
        return []
    if finding.unseen:
        return [Note(unit.name, f"padding {finding.keras}", finding.mend)]
    kind = "conv_transpose" if base.endswith("Transpose") else "max_pool" if "Pool" in base else "padding"
    return [Difference(unit.name, item.path, "padding", finding.keras, finding.port, MEASURED[kind], finding.mend)]


# --- between layers with weights --------------------------------------------------------------------------------------


def check_pair(event: Event, item: Item, *, certain: bool = False) -> Found:
    """The differences of a layer without weights, or an activation, and its module."""
    if event.activation:
        return [*_check_activation(event, item)]
    wanted, unit = twin_class(event.unit), event.unit
    if unit.class_name.startswith("Global") and own_class(item.module).__name__.startswith(("AvgPool", "MaxPool")):
        return _check_global(unit, item)
    if wanted and not isinstance(item.module, wanted):
        kind = "dropout" if event.kind == "dropout" else "function"
        return [_other_class(event, item, made(unit), kind)]
    return [*check_fields(unit, item), *check_windows(unit, item, certain=certain)]


def _check_global(unit: Unit, item: Item) -> Found:
    """A pooling of the whole by a module with a window, which must be as large as the inputs."""
    sizes, module = spatial.inputs_of(unit), item.module
    same = own_class(module).__name__[:3] == ("Avg" if "Average" in unit.class_name else "Max")
    if same and sizes and agree(sizes, getattr(module, "kernel_size", None)):
        return []
    return [_other_class(Event(unit, "pooling"), item, made(unit), "function")]


def made(unit: Unit) -> str:
    """The module of a Keras layer without weights, as Python makes it; its padding aside."""
    cls, name = twin_class(unit), base_of(unit.class_name)
    arguments = ""
    if name.startswith("Global"):
        arguments = "1"
    elif name.endswith("Pooling"):
        axes = spatial.axes_of(unit)
        arguments = f"{tuple(axis.window for axis in axes)}, {tuple(axis.stride for axis in axes)}"
    elif name.endswith("Dropout"):
        arguments = repr(unit.get("rate"))
    elif name == "UpSampling":
        size = spatial.several(unit.get("size", 2), spatial.rank_of(unit.class_name))
        arguments = f"scale_factor={size}, mode={unit.get('interpolation', 'nearest')!r}"
    return f"nn.{cls.__name__}({arguments})" if cls else ""


def _other_class(event: Event, item: Item, mend: str, weight: str) -> Difference:
    port = own_class(item.module).__name__
    return Difference(
        *(event.unit.name, item.path, event.kind, str(event), port, MEASURED[weight], f"{item.code} = {mend}")
    )


def _check_activation(event: Event, item: Item) -> list[Difference]:
    keras, port = event.activation, activations.of_module(item.module)
    assert keras
    assert port
    if keras.name == port.name == "softmax":
        return _check_dim(event, item)
    agrees = keras.name == port.name and all(agree(v, port.arguments.get(k)) for k, v in keras.arguments.items())
    softmaxes = {keras.name, port.name} == {"softmax", "log_softmax"}  # the loss says which
    if not keras.name or agrees or softmaxes:
        return []
    weight = keras.name if keras.name == port.name and keras.name in ("leaky_relu", "gelu") else "function"
    if port.name in ("softmax", "sigmoid"):
        weight = port.name
    mend = f"{item.code} = {keras.module}" if keras.module else f"{keras} has no module: write it in `forward`"
    return [Difference(event.unit.name, item.path, "activation", str(keras), str(port), MEASURED[weight], mend)]


def _check_dim(event: Event, item: Item) -> list[Difference]:
    """The axis of a softmax: Keras' last is torch's second where channels come first."""
    axis, got = event.unit.get("axis", -1), getattr(item.module, "dim", None)
    shape = event.unit.shape
    rank = len(shape) if shape else None
    spatial_data = "Conv" in event.unit.class_name or any("Conv" in unit.class_name for unit in event.unit.inputs)
    wanted = 1 if spatial_data and axis == -1 else axis
    got = got + rank if isinstance(got, int) and got < 0 and rank else got
    wanted = wanted + rank if isinstance(wanted, int) and wanted < 0 and rank else wanted
    if rank is None or got == wanted or (spatial_data and axis != -1):
        return []
    port, code = f"dim={getattr(item.module, 'dim', None)!r}", f"{item.code}.dim = {wanted!r}"
    return [Difference(event.unit.name, item.path, "axis", f"axis={axis}", port, MEASURED["function"], code)]


def check_missing(event: Event, after: Item) -> Found:
    """A layer or activation whose module is not there, though all modules in its place are known."""
    unit, activation = event.unit, event.activation
    if activation and activation.name in ("softmax", "sigmoid") and unit.is_output:
        return [Note(unit.name, f"{activation} at the end", "the port gives logits: its loss must take logits")]
    cls = twin_class(unit)
    if (
        event.kind in ("shape", "flatten", "padding")
        or (activation and not activation.module)
        or not (activation or cls)
    ):
        return [Note(unit.name, f"{event}: no module", "see that `forward` does it")]
    if event.kind == "dropout" and not unit.get("rate"):
        return []
    weight = MEASURED["dropout" if event.kind == "dropout" else "function"]
    mend = f"{activation.module if activation else made(unit)} after {after.code}"
    return [Difference(unit.name, after.path, event.kind, str(event), "none", weight, mend)]


def check_inside(unit: Unit, item: Item, events: Sequence[Event]) -> Found:
    """Dropout between two recurrent layers in one module, which has it as an argument."""
    wanted = next((event.unit.get("rate") for event in events), 0.0)
    got = getattr(item.module, "dropout", 0.0)
    if agree(wanted, got):
        return []
    name = events[0].unit.name if events else unit.name
    mend = f"{item.code}.dropout = {wanted!r}"
    return [Difference(name, item.path, "dropout", f"rate={wanted!r}", f"dropout={got!r}", MEASURED["dropout"], mend)]


def check_extra(item: Item, unit: Unit | None) -> Found:
    """A module that no Keras layer stands for."""
    kind = activations.of_module(item.module)
    if isinstance(item.module, (nn.Identity, nn.Flatten, nn.Unflatten)) or getattr(item.module, "p", 1) == 0:
        return []
    weight = kind.name if kind and kind.name in ("softmax", "sigmoid") else "function" if kind else "unmeasured"
    if hasattr(item.module, "p"):
        weight = "dropout"
    name = own_class(item.module).__name__
    what = "activation" if kind else name
    return [
        Difference(
            *(
                unit.name if unit else NONE,
                item.path,
                what,
                "none",
                name,
                MEASURED[weight],
                f"{item.code} = nn.Identity()",
            )
        )
    ]


def check_moved(event: Event, item: Item, after: Item) -> Difference:
    """A module on the other side of a layer with weights, which Keras has right after another module."""
    weight = MEASURED["norm_and_activation" if event.kind == "activation" else "dropout"]
    mend = f"move {item.code} to right after {after.code}"
    where = f"{event} right after {after.path}"
    return Difference(event.unit.name, item.path, f"order of {event.kind}", where, "elsewhere", weight, mend)
