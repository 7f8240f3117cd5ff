"""What happens between layers with weights, on both sides: activations, pooling, dropout, padding, by kind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from torch_kinit.inspection import activations
from torch_kinit.inspection.activations import Activation
from torch_kinit.inspection.compare import spatial
from torch_kinit.inspection.compare.fields import LAYERS, base_of
from torch_kinit.inspection.compare.keras_graph import Unit
from torch_kinit.inspection.compare.port_order import Item, Order

_KINDS = {
    "pooling": ("MaxPooling", "AveragePooling", "GlobalAveragePooling", "GlobalMaxPooling"),
    "dropout": ("Dropout", "SpatialDropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"),
    "padding": ("ZeroPadding", "Cropping"),
    "upsampling": ("UpSampling", "Resizing"),
    "flatten": ("Flatten",),
    "activation": ("Activation", "ReLU", "LeakyReLU", "ELU", "Softmax", "ThresholdedReLU"),
    "": ("InputLayer", "Identity", "ActivityRegularization", "Masking"),  # which change nothing
    "shape": ("Reshape", "Permute", "RepeatVector", "Rescaling", "UnitNormalization"),
}
KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WINDOWS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_POOLS)
_OWN_ACTIVATION = ("LSTM", "GRU", "SimpleRNN", "MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention")
_DROPOUT = (*LAYERS["Dropout"], *LAYERS["AlphaDropout"], *LAYERS["SpatialDropout"], nn.FeatureAlphaDropout)
_TORCH_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "activation": activations.TORCH,
    "pooling": (*_POOLS, *LAYERS["GlobalAveragePooling"], *LAYERS["GlobalMaxPooling"]),
    "dropout": _DROPOUT,
    "padding": spatial.PADDING,
    "upsampling": (nn.Upsample,),
    "flatten": (nn.Flatten,),
}


@dataclass(eq=False)
class Event:
    """A Keras layer without weights, or the activation in one that has some."""

    unit: Unit
    kind: str
    activation: Activation | None = None

    @property
    def twin(self) -> Any:
        """What its module should be: the name of an activation, or a torch class."""
        return self.activation.name if self.activation else twin_class(self.unit)

    def __str__(self) -> str:
        return str(self.activation or self.unit.class_name)


def twin_class(unit: Unit) -> type[nn.Module] | None:
    """The torch class of a Keras layer without weights."""
    classes, rank = LAYERS.get(base_of(unit.class_name), ()), spatial.rank_of(unit.class_name)
    return classes[rank - 1 if len(classes) > 1 else 0] if classes else None


def twin_of(item: Item) -> Any:
    """The same of a module."""
    activation = activations.of_module(item.module)
    own = type(item.module)
    return activation.name if activation else nn.Upsample if isinstance(item.module, nn.Upsample) else own


def kind_of(item: Item) -> str:
    return next((kind for kind, classes in _TORCH_KINDS.items() if isinstance(item.module, classes)), "")


def is_unknown(item: Item) -> bool:
    """Whether a module may do what a Keras layer does: one of somebody's own, or of a class that none is known for."""
    nothing = isinstance(item.module, (nn.Identity, nn.Unflatten, nn.Sequential))  # without modules in it
    return not (item.weighted or kind_of(item) or nothing)


def events_of(unit: Unit, weighted: Collection[str]) -> list[Event]:
    """What a layer does to data beside what its weights do."""
    kind = "weights" if unit.name in weighted else KIND_OF.get(base_of(unit.class_name), "")
    own = base_of(unit.class_name) in _OWN_ACTIVATION
    activation = None if own else activations.of_layer(unit.class_name, unit.config)
    if activation and activation != activations.LINEAR:
        return [Event(unit, "activation", activation)]
    attached = any(unit in (*other.before, *other.after) for other in (*unit.consumers, *unit.inputs))
    nothing = kind == "dropout" and not unit.get("rate", unit.get("stddev"))
    silent = nothing or kind in ("", "weights", "activation") or attached
    return [] if silent else [Event(unit, kind)]


def following(unit: Unit, weighted: Collection[str]) -> tuple[list[Event], bool]:
    """What happens to the outputs of a layer before the next one with weights; and whether that is all."""
    found = events_of(unit, weighted)
    current = unit
    while (after := current.follower) is not None:
        if after.name in weighted:
            return found, True
        if base_of(after.class_name) not in KIND_OF:  # a Lambda, a function of tensors, a class of somebody's own
            return found, False
        found += events_of(after, weighted)
        current = after
    return found, current.is_output and not current.consumers


def attach_padding(units: Iterable[Unit], order: Order) -> None:
    """Take padding together with the layer it is for, and cropping with the transposed convolution before."""
    for unit in units:
        base, after = base_of(unit.class_name), unit.follower
        if base == "ZeroPadding" and after and base_of(after.class_name).endswith(("Conv", "Pooling")):
            after.before.append(unit)
        before = unit.inputs[0] if len(unit.inputs) == 1 else None
        if base == "Cropping" and before and before.follower is unit and before.class_name.endswith("Transpose"):
            before.after.append(unit)
    for item in order.items:
        if kind_of(item) != "padding":
            continue
        previous, following_one = order.neighbour(item, -1), order.neighbour(item, 1)
        crops = min(spatial.several(item.module.padding, 2)) < 0
        if crops and previous and isinstance(previous.module, _TRANSPOSE):
            previous.after.append(item)
        elif not crops and following_one and isinstance(following_one.module, _WINDOWS):
            following_one.before.append(item)


def align(events: Sequence[Event], items: Sequence[Item]) -> list[tuple[Event | None, Item | None]]:
    """Both in their order, put together by kind where that leaves the fewest alone."""
    best: dict[tuple[int, int], tuple[int, list[tuple[Event | None, Item | None]]]] = {}
    for i in range(len(events), -1, -1):
        for j in range(len(items), -1, -1):
            ways: list[tuple[int, list[tuple[Event | None, Item | None]]]] = []
            if i < len(events) and j < len(items) and events[i].kind == kind_of(items[j]):
                score, rest = best[i + 1, j + 1]
                ways.append((score + 2 + (events[i].twin == twin_of(items[j])), [(events[i], items[j]), *rest]))
            if i < len(events):
                score, rest = best[i + 1, j]
                ways.append((score, [(events[i], None), *rest]))
            if j < len(items):
                score, rest = best[i, j + 1]
                ways.append((score, [(None, items[j]), *rest]))
            best[i, j] = max(ways, key=lambda way: way[0], default=(0, []))
    return best[0, 0][1]
