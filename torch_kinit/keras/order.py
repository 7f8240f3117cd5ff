"""The order in which seeds were drawn, and each assumption that it rests on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch_kinit.keras.draws import Source
from torch_kinit.keras.program import BUILDS, Draws, Node, Program, Reading, Written, in_turn

WAYS = ("program", "model_from_json", "clone_model")


@dataclass(frozen=True)
class Doubt:
    """An assumption on which numbers depend."""

    layers: tuple[str, ...]
    assumed: str

    def __str__(self) -> str:
        more = f" and {len(self.layers) - 3} more" if len(self.layers) > 3 else ""
        return f"{self.assumed} ({', '.join(map(repr, self.layers[:3]))}{more})"


_STATEMENTS = "each layer is called where it is made, as in y = B(x) and then A(y), and not A(B(x))"
_ALTERNATIVES = {
    _STATEMENTS: Reading(nested=True),
    "the branches of a merge are made in the order of its arguments": Reading(backwards=True),
    "a model inside is made before the layers around it if it has a name of its own, or else where it is called": (
        Reading(elsewhere=True)
    ),
    "names that look automatic, such as dense_1, are Keras' own": Reading(named_by_keras=False),
}
_OTHER_BUILD = {
    "functional": "each layer is built where it is made, not after all are made (`build` says which)",
    "sequential": "all layers are made before the first is built, as by Sequential([...]), not by add() after an Input "
    "(`build` says which)",
}


class Schedule:
    """The draws of a model, part by part, and the doubts met."""

    def __init__(self) -> None:
        self.doubts: list[Doubt] = []

    def draws(self, node: Node, build: str | None = None, *, doubting: bool = True) -> Draws:
        """What a layer or model draws when it is made, and when it is built."""
        if node.layer is not None:
            return node.layer.constructor, node.layer.build
        inner = [self.draws(part, doubting=doubting) for part in node.parts]
        program = Program(node, inner)
        chosen = program.written(Reading(build=build))
        if doubting and any(part.draws() for part in node.parts):
            self._doubt(program, build, chosen)
        made, built = chosen.draws
        return ([*made, *built], []) if node.built_when_made else (made, built)

    def listed(self, nodes: Sequence[Node], build: str, *, doubting: bool) -> Draws:
        """What layers and models draw that were made in this order."""
        drawn = [self.draws(node, doubting=False) for node in nodes]
        if doubting and (pair := builds_differ(drawn)):
            owners = {source: node.path for node in nodes for layer in node.layers() for source in layer.sources()}
            self.doubts.append(Doubt(tuple(dict.fromkeys(owners[source] for source in pair)), _OTHER_BUILD[build]))
        return in_turn(drawn, build)

    def from_config(self, node: Node, made: str) -> Draws:
        """What Keras draws that makes a model from its config: layer by layer, each initializer in its place."""
        if node.layer is not None:
            return node.layer.natural, node.layer.build
        parts = [self.from_config(part, "model_from_json") for part in node.parts]
        at_once = made == "clone_model" and not node.functional  # all layers are copied before the first is built
        drawn = in_turn(parts, BUILDS[not at_once])
        return [*drawn[0], *drawn[1]], []

    def _doubt(self, program: Program, build: str | None, chosen: Written) -> None:
        """Note each other way to write the program by which other seeds would be drawn."""
        for assumed, reading in _other_readings(program, build).items():
            other = program.written(reading)
            names = [program.owner(source) for source in _first_difference(chosen.draws, other.draws)]
            if not reading.named_by_keras and not names:  # the numbers of what draws nothing tell, too
                names = _first_other_part(chosen, other)
            if names and (other.agrees or not reading.named_by_keras):
                self.doubts.append(Doubt(tuple(dict.fromkeys(names)), assumed))


def _other_readings(program: Program, build: str | None) -> dict[str, Reading]:
    """The readings that the config allows as well, each by the assumption that it would contradict."""
    readings = {assumed: dataclasses.replace(reading, build=build) for assumed, reading in _ALTERNATIVES.items()}
    if build is not None:  # which says that layers are called where they are made, or are not
        del readings[_STATEMENTS]
    kind = BUILDS[program.node.functional]
    if build is None and (kind == "functional" or program.starts_with_input):
        readings[_OTHER_BUILD[kind]] = Reading(build=BUILDS[kind == "sequential"])
    return readings


def _first_other_part(chosen: Written, other: Written) -> list[str]:
    """The first parts that are made in another order, if it can matter."""
    if len(_drawing(chosen.draws)) < 2:
        return []
    pairs = zip(chosen.made, other.made, strict=True)
    return next(([a.path, b.path] for a, b in pairs if a is not b), [])


def _first_difference(chosen: Draws, other: Draws) -> tuple[Source, ...]:
    """The first draws in which two orders differ; none if they do not."""
    pairs = zip(_drawing(chosen), _drawing(other), strict=True)
    return next(((a, b) for a, b in pairs if a is not b), ())


def builds_differ(steps: Sequence[Draws]) -> tuple[Source, ...]:
    """The first draws in which the two builds differ; none if they do not."""
    one, other = (in_turn(steps, build) for build in BUILDS)
    return _first_difference(one, other)


def _drawing(draws: Draws) -> list[Source]:
    return [source for source in dict.fromkeys((*draws[0], *draws[1])) if source.draws]
