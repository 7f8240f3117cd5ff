"""The one order of a file's weights that fits a model, where the file keeps layers by class and tells no order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_kinit.keras import files
from torch_kinit.keras.slots import Slot, fits

_MOST_STATES = 20_000


@dataclass(eq=False)
class Stored:
    """An array of a file."""

    name: str
    shape: tuple[int, ...]
    data: Any
    role: str | None = None  # what Keras calls it, if the file tells


def stored(dataset: Any, role: str | None, name: str | None = None) -> Stored:
    """An array of an HDF5 file, by the name that it has there or another."""
    return Stored(name or dataset.name, files.shape_of(dataset), dataset, role)


@dataclass(eq=False)
class Node:
    """A layer or model: its own weights, and then those inside, in queues.

    The nodes of one queue come in its order; what comes first of two queues, the file does not tell.
    """

    own: list[Stored]
    queues: list[list[Node]] = field(default_factory=list)

    def __post_init__(self) -> None:
        full = ([node for node in queue if node.size] for queue in self.queues)
        self.queues = [queue for queue in full if queue]
        self.size: int = len(self.own) + sum(node.size for queue in self.queues for node in queue)

    def in_order(self) -> Iterator[Stored]:
        """All weights, in the order of the queues."""
        yield from self.own
        for queue in self.queues:
            for node in queue:
                yield from node.in_order()

    @property
    def certain(self) -> bool:
        """Whether there is but one order."""
        return len(self.queues) < 2 and all(node.certain for queue in self.queues for node in queue)


Order = tuple[Stored, ...]


def arrange(root: Node, slots: Sequence[Slot], hint: str) -> list[Stored]:
    """The weights in the model's order; if several orders fit the `slots`, an error that ends with `hint`."""
    if root.certain:
        return list(root.in_order())
    if root.size != len(slots):
        raise ValueError(f"The file has {root.size} arrays for {len(slots)} weights of the model.")
    found = _Search(slots, hint, by_role=True).orders(root, 0)
    search = _Search(slots, hint, by_role=False)
    found = found or search.orders(root, 0)
    if not found:
        slot = slots[search.furthest]
        seen = ", ".join(f"{item.name!r} {item.shape}" for item in search.refused[:3])
        raise ValueError(f"No order of the layers in the file fits the model: its {slot} would be {seen}.")
    if len(found) > 1:
        first, second = next((a, b) for a, b in zip(*found, strict=True) if a is not b)
        raise ValueError(
            f"The file does not tell which comes first, {first.name!r} or {second.name!r}, and the shapes allow both. "
            f"{hint}"
        )
    return list(found[0])


class _Search:
    """All orders that fit, or two of them if there are more."""

    def __init__(self, slots: Sequence[Slot], hint: str, by_role: bool) -> None:
        self._slots, self._hint, self._by_role = slots, hint, by_role
        self._known: dict[tuple[int, int], list[Order]] = {}
        self._states = 0
        self.furthest = 0
        self.refused: list[Stored] = []

    def orders(self, node: Node, start: int) -> list[Order]:
        """At most two orders of what is in the node that fit the slots from `start` on."""
        key = id(node), start
        if key not in self._known:
            self._known[key] = self._of(node, start) if self._fit(node.own, start) else []
        return self._known[key]

    def _of(self, node: Node, start: int) -> list[Order]:
        """Take one node after the other from the queues; orders that have taken as many of each go on as one."""
        ends = [list(itertools.accumulate((n.size for n in queue), initial=0)) for queue in node.queues]
        reached: dict[tuple[int, ...], list[Order]] = {(0,) * len(ends): [tuple(node.own)]}
        for _ in range(sum(map(len, node.queues))):
            following: dict[tuple[int, ...], list[Order]] = {}
            for taken, orders in reached.items():
                at = start + len(node.own) + sum(end[k] for end, k in zip(ends, taken, strict=True))
                for i, queue in enumerate(node.queues):
                    if taken[i] < len(queue):
                        tails = self.orders(queue[taken[i]], at)
                        after = (*taken[:i], taken[i] + 1, *taken[i + 1 :])
                        kept = following.setdefault(after, []) if tails else []
                        kept += [(*head, *tail) for head in orders for tail in tails][: 2 - len(kept)]
            self._count(len(following))
            reached = following
        return next(iter(reached.values()), [])

    def _count(self, states: int) -> None:
        self._states += states
        if self._states > _MOST_STATES:
            raise ValueError(f"The layers of the file can stand in too many orders to try them all. {self._hint}")

    def _fit(self, items: Sequence[Stored], start: int) -> bool:
        for i, item in enumerate(items, start):
            slot = self._slots[i] if i < len(self._slots) else None
            role = item.role if self._by_role else None
            if slot is None or not fits(item.shape, slot.shape) or role not in (None, slot.role.rpartition("/")[2]):
                if i > self.furthest:
                    self.furthest, self.refused = i, []
                if i == self.furthest:
                    self.refused.append(item)
                return False
        return True
