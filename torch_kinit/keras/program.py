"""The order in which a program makes and calls the layers of a functional model, recovered from its config."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_kinit.keras.draws import Config, Layer, snake_case

MADE, CALLED = -1, 0
Step = tuple[int, int]  # a part of a model, and the time: made, called first, called again
Waits = dict[Step, set[Step]]  # for each step, others that come before it


@dataclass(eq=False)
class Node:
    """A layer, or a model with `parts`, and what tells its place in the program."""

    path: str  # "encoder/dense" for the layer "dense" of the model "encoder"
    name: str
    layer: Layer | None = None
    parts: list[Node] = field(default_factory=list)
    functional: bool = False
    built_when_made: bool = False
    numbers: list[tuple[str, int]] = field(default_factory=list)  # from automatic names: ("conv2d", 12)
    calls: list[list[tuple[str, int]]] = field(default_factory=list)  # the layers, and which call, of each's inputs

    def nodes(self) -> Iterator[Node]:
        """The node itself and all inside."""
        yield self
        for part in self.parts:
            yield from part.nodes()

    def layers(self) -> list[Layer]:
        return list(dict.fromkeys(node.layer for node in self.nodes() if node.layer))

    def draws(self) -> bool:
        return any(source.random for layer in self.layers() for source in (*layer.constructor, *layer.build))

    def is_input(self) -> bool:
        return self.layer is not None and self.layer.class_name == "InputLayer"


def program(parts: Sequence[Node]) -> tuple[list[Step], list[tuple[str, str]]]:
    """The steps of a functional model's program, and the pairs of layers whose order was a guess.

    A layer is made when the inputs of its first call are there, a model as early as can be, and those of a kind in
    the order of their automatic numbers; otherwise the place in the config decides.
    """
    index = {part.name: i for i, part in enumerate(parts)}
    last = [max(0, len(part.calls) - 1) for part in parts]
    before: Waits = {(i, k): set() for i, n in enumerate(last) for k in range(MADE, n + 1)}
    for (i, k), earlier in before.items():
        if k > MADE:
            earlier.add((i, k - 1))
        for name, node in parts[i].calls[k] if 0 <= k < len(parts[i].calls) else ():
            if (j := index.get(name)) is not None:
                earlier.add((j, min(node, last[j])))
    wanted = {(i, k): before[i, CALLED] - {(i, k)} if k == MADE and parts[i].layer else set() for i, k in before}
    numbered = sorted((number, i) for i, part in enumerate(parts) for number in part.numbers)
    for ((kind, _), i), ((other, _), j) in itertools.pairwise(numbered):
        if kind == other and i != j:
            before[j, MADE].add((i, MADE))
    return _in_order(parts, before, wanted)


def _in_order(parts: Sequence[Node], before: Waits, wanted: Waits) -> tuple[list[Step], list[tuple[str, str]]]:
    """The steps so that all of `before`, and of `wanted` where it can, comes first; and pairs that may change places.

    As in the config, if steps wait for each other.
    """

    def urgency(step: Step) -> tuple[int, Step]:
        i, k = step
        return (3 if k == MADE else 0) if parts[i].layer else (1 if k == MADE else 2), step

    after: Waits = defaultdict(set)
    for waits in (before, wanted):
        for step, earlier in waits.items():
            for other in earlier:
                after[other].add(step)
    drawing = {(i, MADE) for i, part in enumerate(parts) if part.draws()}
    left = set(before)
    ready = [urgency(step) for step in before if not before[step] and not wanted[step]]
    heapq.heapify(ready)
    done: list[Step] = []
    guesses = []
    while left:
        if not ready:  # A(B(x)) makes A before the inputs of its call are there, as the numbers say
            held_up = _held_up(before, wanted, left)
            if held_up is None:
                return sorted(before), []
            ready.append(urgency(held_up))
        step = heapq.heappop(ready)[1]
        done.append(step)
        left.remove(step)
        if step in drawing and (others := drawing.intersection(other for _, other in ready)):
            guesses.append((parts[step[0]].path, parts[min(others)[0]].path))
        for other in after[step]:
            before[other].discard(step)
            wanted[other].discard(step)
            if other in left and not before[other] and not wanted[other]:
                heapq.heappush(ready, urgency(other))
    return done, guesses


def _held_up(before: Waits, wanted: Waits, left: Iterable[Step]) -> Step | None:
    """The first layer to make for one to be made whose inputs are there; None if layers wait in a circle."""
    step = min((step for step in left if step[1] == MADE and not wanted[step]), default=None)
    for _ in before:
        if step is None or not before[step]:
            return step
        step = min(before[step])
    return None


def settle_input(part: Node, outer: tuple[str, int] | None) -> None:
    """Find whether a nested Sequential had an Input from the start, or got it when the model around called it.

    Keras saves both alike, but then the automatic number is above that of the input of the model around.
    """
    if part.layer or part.functional or not (part.parts and part.parts[0].is_input()):
        return
    own = part.parts[0].numbers
    part.built_when_made = not own or outer is None or own[0] < outer
    if not part.built_when_made:
        part.numbers = [number for number in part.numbers if number not in own]


def numbers_of(entry: Config) -> list[tuple[str, int]]:
    """The kind and number in an automatic name, conv2d_12, of a layer and of the one inside."""
    config = entry.get("config")
    if not isinstance(config, Mapping):
        return []
    name = str(config.get("name")).removeprefix("forward_").removeprefix("backward_")
    kind = snake_case(str(entry.get("class_name"))).replace("group_query", "grouped_query")
    number = name.removeprefix(kind).removeprefix("_")
    found = [(kind, int(number or 0))] if name.startswith(kind) and (not number or number.isdecimal()) else []
    inner = config.get("layer")
    return found + (numbers_of(inner) if isinstance(inner, Mapping) else [])


def inputs_of(call: Any) -> Iterator[tuple[str, int]]:
    """The layers that a call takes tensors from, and which of their calls; as Keras 2 and 3 save it."""
    if isinstance(call, Mapping):
        call = list(call.values())
    if isinstance(call, (list, tuple)):
        if len(call) >= 3 and isinstance(call[0], str) and type(call[1]) is type(call[2]) is int:
            yield call[0], call[1]
        else:
            for value in call:
                yield from inputs_of(value)
