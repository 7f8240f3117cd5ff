"""Which tensors of a torch port hold the weights of which Keras layer: in order, by `modules`, and what names say."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from torch_kinit import checks
from torch_kinit.keras.draws import Layer, Weight, lora_error, snake_case
from torch_kinit.keras.slots import Holdings, Slot, fits

Pairs = list[tuple[Weight, Slot]]
Modules = Mapping[str, str | Sequence[str] | None]
Slots = dict[str, list[Slot]]  # by the name of a Keras layer

# What a weight of Keras' may be called in torch's layouts, where that is not the same.
_ROLES = {"kernel": "depthwise_kernel", "scale": "gamma"}
_ROLES |= dict.fromkeys(("depthwise_kernel", "pointwise_kernel", "reverse_embeddings"), "kernel")
_NO_PLACE = "vector_u"  # of SpectralNormalization; torch's spectral_norm keeps vectors of another kind


class Place(NamedTuple):
    """A weight of a Keras layer, and where the torch model has it; None if it goes without."""

    layer: Layer
    weight: Weight
    slot: Slot | None

    def __str__(self) -> str:
        return f"Keras' layer {self.layer.name!r} ({self.layer.class_name}) has {self.weight.name} {self.weight.shape}"


def match(layers: Iterable[Layer], held: Holdings, modules: Modules | None = None) -> Pairs:
    """Each weight of a Keras model with its place in the torch model, as `modules` and equal names say, or in order."""
    return paired(places(layers, held, modules))


def paired(found: Iterable[Place]) -> Pairs:
    """The weights with a place."""
    return [(place.weight, place.slot) for place in found if place.slot]


def match_in_order(layers: Iterable[Layer], held: Holdings) -> Pairs:
    """The same without a look at names, for layers of which it was said which modules they are."""
    return paired(_in_order(_weighted(layers), held, {}))


def places(layers: Iterable[Layer], held: Holdings, modules: Modules | None = None) -> list[Place]:
    """The place of each weight, in the order of Keras' `get_weights()`."""
    weighted = _weighted(layers)
    mapped = _mapped(weighted, held, modules or {})
    try:
        found = _in_order(weighted, held, mapped)
    except ValueError:
        found = _by_names(weighted, held, mapped)
        if not found:
            raise
    else:
        _refuse_conflict(found, weighted, held, mapped)
    for layer, _, slot in found:
        if slot:
            slot.twin = layer.name
    return found


def in_order_of(names: Sequence[str], found: Sequence[Place]) -> list[Place]:
    """The places of Keras' layers in the order of their names; the name of a model stands for its layers."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"With a `keras_config`, `order` is a list of the names of its layers, got {checks.short(names)}."
        )
    ordered: list[Place] = []
    for name in names:
        own = [place for place in found if f"{place.layer.name}/".startswith(f"{name}/")]
        if not own:
            hint = checks.near(name, {place.layer.name for place in found})
            raise ValueError(f"`order` has {checks.short(name)}, which is no Keras layer with weights.{hint}")
        ordered += own
    listed = {id(place.weight) for place in ordered}
    if len(listed) < len(ordered):
        raise ValueError("`order` lists a layer twice.")
    if left := [place.layer.name for place in found if id(place.weight) not in listed]:
        raise ValueError(f"`order` leaves out Keras' layer {left[0]!r}.")
    return ordered


def _weighted(layers: Iterable[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer.weights]


def _in_order(layers: Iterable[Layer], held: Holdings, mapped: Slots) -> list[Place]:
    """The places of all weights: of layers in `mapped` those given there, of others what is left, in order."""
    taken = {id(slot) for slots in mapped.values() for slot in slots}
    rest = iter([slot for slot in held.slots if id(slot) not in taken])
    found: list[Place] = []
    for layer in layers:
        slots = mapped.get(layer.name)
        own = rest if slots is None else iter(slots)
        for weight in layer.weights:
            without = slots == [] or weight.name == _NO_PLACE
            found.append(place := Place(layer, weight, None if without else next(own, None)))
            if not without:
                _check(place)
        if own is not rest and (left := next(own, None)):
            raise ValueError(f"Keras' layer {layer.name!r} ({layer.class_name}) has no weight for {left}.")
    if left := next(rest, None):
        count = sum(place.slot is not None for place in found)
        raise ValueError(
            f"The Keras model has no weight for {left}: it has {count}, the torch model {len(held.slots)}."
        )
    return found


def _mapped(layers: Iterable[Layer], held: Holdings, modules: Modules) -> Slots:
    """The places of those Keras layers that `modules` speaks of."""
    if not isinstance(modules, Mapping):
        raise TypeError(f"`modules` must be a dict from names of Keras layers to paths, got {checks.short(modules)}.")
    names = {layer.name for layer in layers}
    taken: dict[int, str] = {}
    mapped: Slots = {}
    for name, value in modules.items():
        if name not in names:
            raise ValueError(
                f"`modules` speaks of {checks.short(name)}, which is no Keras layer with weights."
                f"{checks.near(name, names)}"
            )
        mapped[name] = []
        paths = (value,) if isinstance(value, str) else () if value is None else value
        if not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
            raise TypeError(
                f"`modules` gives {checks.short(value)} to Keras' layer {checks.short(name)}; it takes a path, a "
                "list or None."
            )
        for path in paths:
            for slot in held.inside(path, f"`modules` gives Keras' layer {name!r} the path"):
                if id(slot) in taken:
                    raise ValueError(f"`modules` gives {path!r} to both {taken[id(slot)]!r} and {name!r}.")
                taken[id(slot)] = name
                mapped[name].append(slot)
    return mapped


def _check(place: Place) -> None:
    """Raise unless the weight fits where it is put."""
    layer, weight, slot = place
    if "lora_" in weight.name:
        raise lora_error(layer.name)
    if layer.no_twin and (slot is None or hasattr(nn, slot.layer) or not _is_place_of(weight, slot)):
        raise ValueError(
            f"Keras' layer {layer.name!r} is {layer.no_twin}, for which torch has no twin. Where the port goes without "
            f"it, `modules` says so: {{{layer.name!r}: None}}."
        )
    if slot is None:
        raise ValueError(
            f"{place}, for which the torch model has no tensor left. A layer that the torch model goes without is "
            f"given None in `modules`: {{{layer.name!r}: None}}."
        )
    if not _is_place_of(weight, slot):
        raise ValueError(
            f"{place}, and the torch model in its place {slot}. If its modules stand in another order, `modules` "
            f"says which is which: {{{layer.name!r}: 'path.of.its.module'}}."
        )
    # An orthogonal matrix has the last axis for columns, so there a merged axis makes another matrix.
    if weight.source.name == "orthogonal" and weight.shape is not None and weight.shape[-1:] != slot.shape[-1:]:
        raise ValueError(
            f"Keras' layer {layer.name!r} has an orthogonal {weight.name} of shape {weight.shape}, which is "
            f"another law on {slot}."
        )


def _is_place_of(weight: Weight, slot: Slot) -> bool:
    """Whether role and shape are the weight's."""
    name, role = (whole.rpartition("/")[2] for whole in (weight.name, slot.role))
    return role in (name, _ROLES.get(name)) and (weight.shape is None or fits(weight.shape, slot.shape))


# --- what names say ---------------------------------------------------------------------------------------------------


def _by_names(layers: Sequence[Layer], held: Holdings, mapped: Slots) -> list[Place]:
    """The places with layers and modules of one name put together and the rest in order; empty if that fits no more."""
    named = _named(layers, held, mapped, {})
    try:
        return _in_order(layers, held, {**mapped, **named}) if named else []
    except ValueError:
        return []


def _refuse_conflict(found: list[Place], layers: Sequence[Layer], held: Holdings, mapped: Slots) -> None:
    """Raise if names put a layer elsewhere than its order does."""
    in_order = _slots_of(found)
    by_name = _conflicts(layers, held, mapped, in_order)
    if not by_name:
        return
    more = by_name
    while more:  # layers whose names agreed until others were moved
        try:
            moved = _slots_of(_in_order(layers, held, {**mapped, **by_name}))
        except ValueError:
            break
        more = _conflicts(layers, held, {**mapped, **by_name}, moved)
        by_name = {**by_name, **more}
    name, slots = next(iter(by_name.items()))
    by_order = {name: in_order[name] for name in by_name}
    ways = [f"`modules={line}` by name" if (line := _argument(by_name, held)) else ""]
    ways += [f"`modules={line}` by order" if (line := _argument(by_order, held)) else ""]
    raise ValueError(
        f"Keras' layer {name!r} is {_paths(slots)} of the torch model by its name, and {_paths(in_order[name])} by its "
        f"order; both fit. Say which is meant: {', or '.join(filter(None, ways))}."
    )


def _slots_of(found: Iterable[Place]) -> Slots:
    slots: Slots = defaultdict(list)
    for layer, _, slot in found:
        slots[layer.name] += [slot] if slot else []
    return slots


def _conflicts(layers: Sequence[Layer], held: Holdings, mapped: Slots, in_order: Slots) -> Slots:
    """The layers that names put elsewhere, and where."""
    named = _named(layers, held, mapped, in_order)
    return {name: slots for name, slots in named.items() if list(map(id, slots)) != list(map(id, in_order[name]))}


def _named(layers: Sequence[Layer], held: Holdings, mapped: Slots, in_order: Slots) -> Slots:
    """The places of layers outside `mapped` that go by the name of a module, or whose parts go by those of several."""
    equal = _equal_names(layers, held, mapped)
    named: Slots = {}
    for layer in layers:
        weights = [weight for weight in layer.weights if weight.name != _NO_PLACE]
        inside = held.inside(equal[layer.name], "") if layer.name in equal else []
        for slots in () if layer.name in mapped else (inside, in_order.get(layer.name, [])):
            arranged = _by_parts(weights, slots)
            whole = [slots] if slots is inside else []  # in order, parts alone are evidence
            fitting = (way for way in (arranged, *whole) if way and _fit(weights, way))
            if (way := next(fitting, None)) is not None:
                named[layer.name] = way
                break
    return named


def _fit(weights: Sequence[Weight], slots: Sequence[Slot]) -> bool:
    return len(weights) == len(slots) and all(map(_is_place_of, weights, slots))


def _equal_names(layers: Sequence[Layer], held: Holdings, mapped: Slots) -> dict[str, str]:
    """From layers to the paths of modules whose last part, or last parts, are the same, on both sides just once.

    Names that Keras gives by itself, such as dense_1, say nothing, nor do the numbers in a torch Sequential.
    """
    taken = {id(slot) for slots in mapped.values() for slot in slots}
    paths = [path for path in held.paths() if taken.isdisjoint(map(id, held.inside(path, "")))]
    ours = {layer.name: layer.name.split("/") for layer in layers if not _is_automatic(layer)}
    theirs = {path: path.split(".") for path in paths if not path.rpartition(".")[2].isdecimal()}
    equal: dict[str, str] = {}
    for count in range(1, max(map(len, ours.values()), default=0) + 1):
        keras, torch = _endings(ours, count), _endings(theirs, count)
        both = (ending for ending in keras if len(keras[ending]) == len(torch.get(ending, ())) == 1)
        equal |= {keras[ending][0]: torch[ending][0] for ending in both}
    return equal


def _endings(names: Mapping[str, Sequence[str]], count: int) -> dict[tuple[str, ...], list[str]]:
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, parts in names.items():
        if len(parts) >= count:
            found[tuple(parts[-count:])].append(name)
    return dict(found)


def _is_automatic(layer: Layer) -> bool:
    """Whether the layer has a name such as Keras gives to layers of its class."""
    kind = snake_case(layer.class_name).replace("group_query", "grouped_query")
    return re.fullmatch(rf"(forward_|backward_)?{kind}(_\d+)?", layer.name.rpartition("/")[2]) is not None


def _by_parts(weights: Sequence[Weight], slots: Sequence[Slot]) -> list[Slot] | None:
    """The slots in the order of the weights, where parts of the layer go by the names of modules; None if none does."""
    modules: dict[str, dict[str, list[Slot]]] = defaultdict(dict)
    for slot in slots:
        modules[slot.module.rpartition(".")[2]].setdefault(slot.module, []).append(slot)
    parts = list(dict.fromkeys(weight.name.rpartition("/")[0] for weight in weights))
    for name in [name for name in modules if not name or name.isdecimal()]:  # those of a Sequential say nothing
        del modules[name]
    named = {part: next(iter(modules[part].values())) for part in parts if len(modules.get(part, ())) == 1}
    if not named:
        return None
    taken = {id(slot) for own in named.values() for slot in own}
    rest = iter([slot for slot in slots if id(slot) not in taken])
    sources = {part: iter(named[part]) if part in named else rest for part in parts}
    arranged = [next(sources[weight.name.rpartition("/")[0]], None) for weight in weights]
    return [slot for slot in arranged if slot]


def _paths(slots: Iterable[Slot]) -> str:
    return checks.listed(dict.fromkeys(slot.module or "the model itself" for slot in slots))


def _argument(way: Slots, held: Holdings) -> str | None:
    """What `modules` is for layers with these slots; None if they are not those of whole modules."""
    modules: dict[str, str | list[str]] = {}
    for name, slots in way.items():
        paths = list(dict.fromkeys(slot.module for slot in slots))
        if [id(slot) for path in paths for slot in held.inside(path, "")] != list(map(id, slots)):
            return None
        modules[name] = paths[0] if len(paths) == 1 else paths
    return checks.cut(repr(modules), 400)
