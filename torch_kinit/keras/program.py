"""How a program that made a saved model may have been written: its layers made and called, one after the other."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch_kinit.keras.draws import Layer, Source

BUILDS = ("sequential", "functional")
MADE = -1
Event = tuple[int, int]  # a part of a model, and the time: MADE, or which of its calls
Draws = tuple[list[Source], list[Source]]  # the sources that draw when a layer or model is made, and when it is built
Number = tuple[str, int]  # in an automatic name: ("conv2d", 12)
_Steps = Generator[Any, None, None]


@dataclass(eq=False)
class Node:
    """A layer, or a model with `parts`, and what tells its place in the program."""

    path: str  # "encoder/dense" for the layer "dense" of the model "encoder"
    layer: Layer | None = None
    parts: list[Node] = field(default_factory=list)
    functional: bool = False
    built_when_made: bool = False
    early: bool | None = None  # whether a model was made before the layers around it; None if the config does not tell
    named: bool = False  # whether a model has a name of its own
    numbers: list[Number] = field(default_factory=list)  # of its automatic names, those of the parts included
    taken: list[Number] = field(default_factory=list)  # of layers that its first call makes
    calls: list[list[tuple[str, int]]] = field(default_factory=list)  # the layers, and which call, of each's inputs
    outputs: list[tuple[str, int]] = field(default_factory=list)  # of a functional model

    def nodes(self) -> Iterator[Node]:
        """The node itself and all inside."""
        yield self
        for part in self.parts:
            yield from part.nodes()

    def layers(self) -> list[Layer]:
        return list(dict.fromkeys(node.layer for node in self.nodes() if node.layer))

    def draws(self) -> bool:
        return any(source.draws for layer in self.layers() for source in layer.sources())

    def is_input(self) -> bool:
        return self.layer is not None and self.layer.class_name == "InputLayer"


@dataclass(frozen=True)
class Reading:
    """How the program is taken to be written where the config does not tell."""

    nested: bool = False  # A(B(x)), which makes A first, and not y = B(x); A(y)
    backwards: bool = False  # the branches of a merge from the last to the first
    elsewhere: bool = False  # inner models with a name of their own where they are called first, others before
    named_by_keras: bool = True  # names such as conv2d_3 were not given by hand
    build: str | None = None  # "sequential": all layers are made, then called; "functional": each when it is made


def in_turn(steps: Sequence[Draws], build: str) -> Draws:
    """What is made and what is built: one step after the other, or all that is made before all that is built."""
    if build == "functional":
        return [source for step in steps for part in step for source in part], []
    return [source for made, _ in steps for source in made], [source for _, built in steps for source in built]


class Written(NamedTuple):
    """One way to write a program."""

    draws: Draws
    made: list[Node]  # the parts, in the order in which they are made
    agrees: bool  # with the numbers in automatic names


class Program:
    """The program that made one model, as far as the config tells it."""

    def __init__(self, node: Node, draws: Sequence[Draws]) -> None:
        """`draws` are those of the parts of `node`."""
        self.node, self._parts, self._draws = node, node.parts, draws
        self._numbered = self._chains()
        self.starts_with_input = bool(node.parts) and node.parts[0].is_input()
        writer = _Writer(node, self._numbered, Reading())
        for (i, time), (j, _) in self._numbered:
            part = node.parts[i]
            if part.parts and part.early is None and time == MADE and node.functional and writer.path(i, j):
                part.early = True  # its numbers are below those of a layer whose output it takes

    def _chains(self) -> list[tuple[Event, Event]]:
        """Pairs of events, the second after the first by the numbers that Keras gives."""
        events: dict[Number, Event] = {}
        for i, part in enumerate(self._parts):
            for number in part.numbers:
                events.setdefault(number, (i, MADE))  # a layer that is in two models was made with the first
            for number in part.taken:
                events.setdefault(number, (i, 0))
        pairs = itertools.pairwise(sorted(events.items()))
        return [(a, b) for ((kind, _), a), ((other, _), b) in pairs if kind == other and a[0] != b[0]]

    def owner(self, source: Source) -> str:
        """The path of the part that draws."""
        found = (i for i, draws in enumerate(self._draws) for group in draws if source in group)
        return self._parts[next(found)].path

    def written(self, reading: Reading) -> Written:
        """The program in the order of this reading."""
        events = _Writer(self.node, self._numbered if reading.named_by_keras else [], reading).events()
        build = reading.build or BUILDS[self.node.functional]
        if build == "sequential":
            events.sort(key=lambda event: event[1] != MADE and not self._parts[event[0]].early)
        place = {event: n for n, event in enumerate(events)}
        agrees = all(place[a] < place[b] for a, b in self._numbered)
        steps = [(self._draws[i][0], []) if k == MADE else ([], self._draws[i][1]) for i, k in events if k <= 0]
        return Written(in_turn(steps, build), [self._parts[i] for i, k in events if k == MADE], agrees)


class _Writer:
    """Writes a program down: a walk from the outputs of a functional model, or through the list of a Sequential.

    Its methods are generators of further steps, run without Python's stack, of which deep models have too little.
    """

    def __init__(self, node: Node, numbered: Iterable[tuple[Event, Event]], reading: Reading) -> None:
        self._node, self._parts, self._reading = node, node.parts, reading
        self._index = {part.path: i for i, part in enumerate(node.parts)}
        self._last = [max(0, len(part.calls) - 1) for part in node.parts]
        self._written: dict[Event, None] = {}
        self._open: set[Event] = set()
        self._before: dict[Event, list[Event]] = defaultdict(list)
        for a, b in numbered:
            self._before[b].append(a)

    def events(self) -> list[Event]:
        """All events in their order."""
        for i, part in enumerate(self._parts):
            early = part.named != self._reading.elsewhere if part.early is None else part.early
            if part.parts and early:
                _run(self._make(i))
        ends = self._node.outputs or [(part.path, 0) for part in self._parts if self._node.functional]
        for i, n in self._known(ends):
            _run(self._call(i, n))
        for i, _ in enumerate(self._parts):
            if not self._node.functional:
                _run(self._make(i))
            _run(self._call(i, self._last[i]))
        for i, last in enumerate(self._last):  # what waits for itself, in names that nobody's program gives
            for k in range(MADE, last + 1):
                self._written.setdefault((i, k))
        return list(self._written)

    def _inputs(self, i: int, k: int) -> list[Event]:
        calls = self._parts[i].calls
        return self._known(calls[k]) if k < len(calls) else []

    def _known(self, outputs: Iterable[tuple[str, int]]) -> list[Event]:
        """The calls that give these outputs, in the order of this reading."""
        found = [(self._index[path], n) for path, n in outputs if path in self._index]
        calls = [(i, min(n, self._last[i])) for i, n in found]
        return calls[::-1] if self._reading.backwards else calls

    def _call(self, i: int, last: int) -> _Steps:
        """Write a call after its inputs', and the layer made before or, in a nested expression, first of all."""
        for k in range(last + 1):
            if (i, k) in self._written or (i, k) in self._open:
                continue
            self._open.add((i, k))
            if self._reading.nested:
                yield self._make(i)
            for j, n in self._inputs(i, k):
                if (j, n) not in self._written:
                    yield self._call(j, n)
            yield self._make(i)
            yield self._first_those_before((i, k))
            self._open.discard((i, k))
            if (i, MADE) in self._written and all(event in self._written for event in self._inputs(i, k)):
                self._written.setdefault((i, k))

    def _make(self, i: int) -> _Steps:
        """Write that a part is made, after those whose numbers are lower."""
        if (i, MADE) in self._written or (i, MADE) in self._open:
            return
        self._open.add((i, MADE))
        yield self._first_those_before((i, MADE))
        self._open.discard((i, MADE))
        self._written.setdefault((i, MADE))

    def _first_those_before(self, event: Event) -> _Steps:
        for j, k in self._before[event]:
            if (j, k) in self._written:
                continue
            path = self.path(j, event[0]) if self._node.functional else None
            if path is not None:  # j takes what this part gives: A(B(x)), and all between is made from A to B
                for between in path:
                    yield self._make(between)
            elif self._node.functional and (k != MADE or not self._parts[j].parts):
                yield self._call(j, 0)
            yield self._make(j)

    def path(self, j: int, i: int) -> list[int] | None:
        """The parts from j up to i, without i, if j's first call comes after i's; those not yet called alone count."""
        found: dict[int, int] = {j: j}
        left = [j]
        while left:
            at = left.pop()
            if at == i:
                path = list[int]()
                while at != j:
                    at = found[at]
                    path.append(at)
                return path[::-1]
            for other, _ in self._inputs(at, 0):
                if other not in found and (other, 0) not in self._written:
                    found[other] = at
                    left.append(other)
        return None


def _run(steps: _Steps) -> None:
    """Run a generator and those it yields, each to its end before the one that yielded it goes on."""
    stack = [steps]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
        else:
            stack.append(step)
