"""Which module of a port is which Keras layer without weights: where the order is certain, else by class and count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_kinit.inspection.compare.differences import Difference, Note
from torch_kinit.inspection.compare.events import Event, align, events_of, following, is_unknown, kind_of, twin_of
from torch_kinit.inspection.compare.keras_graph import Unit
from torch_kinit.inspection.compare.port_order import Item, Order

Check = Callable[[Event, Item], list[Difference | Note]]
_EXTRA = ("activation", "pooling", "dropout", "upsampling")  # modules that do something by being there


@dataclass
class Pairing:
    """Events and modules put together, and what is left of both."""

    pairs: list[tuple[Event, Item, bool]] = field(default_factory=list)  # and whether the order made it certain
    missing: list[tuple[Event, Item]] = field(default_factory=list)  # not among the modules after this one
    extra: list[tuple[Item, Unit | None]] = field(default_factory=list)  # with no Keras layer for it, after this one
    moved: list[tuple[Event, Item, Item]] = field(default_factory=list)  # elsewhere than right after the last one
    inside: list[tuple[Unit, Item, list[Event]]] = field(default_factory=list)  # between layers of one module
    unseen: list[Event] = field(default_factory=list)


def pair(
    units: Sequence[Unit],
    order: Order,
    places: Mapping[str, Sequence[Item]],
    check: Check,
) -> Pairing:
    """Put all events and modules together; `places` are those of layers with weights."""
    found, weighted = Pairing(), places.keys()
    inputs = [unit for unit in units if not unit.inputs and unit.name not in weighted]
    used: set[Item] = {pad for item in order.items for pad in (*item.before, *item.after)}
    starts: list[tuple[Unit, Item | None]] = [(unit, None) for unit in inputs[:1] if len(inputs) == 1]
    last = {item: name for name, own in places.items() for item in own}  # of several in one module, the last
    starts += [(u, places[u.name][-1]) for u in units if places.get(u.name) and last[places[u.name][-1]] == u.name]
    mapped = {}
    for unit, item in starts:
        events, all_events = following(unit, weighted)
        items, all_items = order.after(item)
        all_items = all_items and not any(is_unknown(other) for other in items)
        items = [other for other in items if other not in used and kind_of(other)]
        mapped.update({(event.unit.name, event.kind): event for event in events})
        for event, other in align(events, items):
            if event and other:
                found.pairs.append((event, other, True))
            elif event and all_items:
                found.missing.append((event, item or other or order.items[0]))
            elif event:
                found.unseen.append(event)
            elif other and all_events and all_items:
                found.extra.append((other, unit))
            else:
                continue
            if other:
                used.add(other)
    for unit in (u for u in units if places.get(u.name) and last[places[u.name][-1]] != u.name):
        events = [event for event in following(unit, weighted)[0] if event.kind == "dropout"]
        mapped.update({(event.unit.name, event.kind): event for event in events})
        found.inside.append((unit, places[unit.name][-1], events))
    _find_moved(found)
    rest = [event for unit in units for event in events_of(unit, weighted) if (unit.name, event.kind) not in mapped]
    events, found.unseen = [*found.unseen, *rest], []
    places_of = {unit.name: i for i, unit in enumerate(units)}
    events.sort(key=lambda event: places_of[event.unit.name])
    items = [item for item in order.items if not item.weighted and item not in used and kind_of(item)]
    _by_class(events, items, found, check)
    return found


def _find_moved(found: Pairing) -> None:
    """What is missing after one layer and is too much after another is in another place."""
    for event, item in list(found.missing):
        for other, unit in found.extra:
            near = unit is not None and (event.unit in unit.inputs or unit in (event.unit, *event.unit.inputs))
            if event.kind == kind_of(other) in ("activation", "dropout") and event.twin == twin_of(other) and near:
                found.missing.remove((event, item))
                found.extra.remove((other, unit))
                found.moved.append((event, other, item))
                break


def _by_class(events: Sequence[Event], items: Sequence[Item], found: Pairing, check: Check) -> None:
    """Put together what stands in no certain order: by names, in order if there are as many, else as it agrees."""
    left: dict[Any, list[Item]] = defaultdict(list)
    for item in items:
        left[twin_of(item)].append(item)
    groups: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        groups[event.twin].append(event)
    for twin, own in groups.items():
        modules = left.pop(twin, [])
        if not modules or twin in (None, ""):
            found.unseen += own
            continue
        pairs = _named(own, modules) or _best(own, modules, check)
        found.pairs += [(event, item, False) for event, item in pairs]
        if own[0].kind == "dropout":
            used = {item for _, item in pairs}
            found.extra += [(item, None) for item in modules if item not in used and len(modules) > len(own)]
    _other_classes(found, [item for modules in left.values() for item in modules])


def _named(events: Sequence[Event], items: Sequence[Item]) -> list[tuple[Event, Item]]:
    """By equal names, if all have one."""
    names = {item.path.rpartition(".")[2]: item for item in items}
    found = [(event, names.get(event.unit.name.rpartition("/")[2])) for event in events]
    return [(event, item) for event, item in found if item] if all(item for _, item in found) else []


def _best(events: Sequence[Event], items: Sequence[Item], check: Check) -> list[tuple[Event, Item]]:
    """One by one if there are as many and that, or no other way, agrees; else each with a module that agrees."""
    in_order = list(zip(events, items, strict=False)) if len(events) == len(items) else []
    agreeing: list[tuple[Event, Item]] = []
    rest = list(items)
    for event in events:
        item = next((item for item in rest if not check(event, item)), None)
        agreeing += [(event, item)] if item else []
        if item and in_order:
            rest.remove(item)
    if in_order and (len(agreeing) < len(events) or not any(check(*both) for both in in_order)):
        return in_order
    fitting = {event for event, _ in agreeing}
    return agreeing + [(event, items[0]) for event in events if event not in fitting]


def _other_classes(found: Pairing, items: Sequence[Item]) -> None:
    """Modules whose class no Keras layer has: in the place of one of their kind that was not found, or too much."""
    for item in items:
        kind = kind_of(item)
        # The last activation may well be part of the loss.
        same = [e for e in found.unseen if e.kind == kind and not (e.activation and e.unit.is_output)]
        if kind not in _EXTRA:
            continue
        if same:
            found.unseen.remove(same[0])
            found.pairs.append((same[0], item, False))
        else:
            found.extra.append((item, None))
