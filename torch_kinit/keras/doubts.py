"""What a saved config does not tell beside the order of layers: objects or names, lost seeds, layers not used."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from torch_kinit.keras.draws import Layer, Source
from torch_kinit.keras.order import Doubt
from torch_kinit.keras.program import Node, Number
from torch_kinit.layers.variable import CONVENTIONS

_INSIDE = ("AugMix", "RandAugment", "RandomColorJitter")  # take numbers for the layers that they make


def unsure_sources(
    layers: Sequence[Layer], chosen: Iterable[Source], made: str | None, *, sharing_told: bool
) -> list[Doubt]:
    """Doubts on how initializers were given to `layers`; `chosen` are all sources in the order assumed."""
    owners = {source: layer.name for layer in layers for source in layer.sources()}
    drawing = [source for source in chosen if source.draws and source in owners]
    found: list[Doubt] = []

    def note(sources: Iterable[Source], assumed: str) -> None:
        if names := tuple(dict.fromkeys(owners[source] for source in sources if source in owners)):
            found.append(Doubt(names, assumed))

    lost = [source for source in drawing if source.seed_lost]
    note(lost, "no `seed` was given, which the config of this class would not show")
    if made is not None:
        return found
    beside = [source for layer in layers for source in _beside_others(layer)]
    note(beside, "initializers that are not the layer's default were given by name, not as objects")
    objects = [source for source in drawing[1:] if source.given and source.with_arguments]
    configs = Counter(source.written for source in drawing if source.given and source.with_arguments)
    shared = [source for source in objects if configs[source.written] > 1 and not sharing_told]
    note(shared, "each has an initializer of its own, though equal ones with arguments may be one object")
    early = {source for layer in layers for source in layer.constructor}  # of which it matters when they are made
    others = [source for source in objects if source in early and source not in shared]
    note(
        others, "the initializer with arguments was made as an object right before the layer, not earlier or as a dict"
    )
    return found


def other_convention(layers: Iterable[Layer], convention: str) -> list[Doubt]:
    """A doubt on fans that changed in Keras 3.15, from which on configs of initializers have `input_axes`."""
    names = [
        layer.name
        for layer in layers
        for weight in layer.weights
        if weight.axes
        and (own := weight.source.entry()["config"])
        and ("input_axes" in own) != (convention == CONVENTIONS[0])
    ]
    told = f"the fans are those of `convention`={convention!r}, though the config was saved by another version of Keras"
    return [Doubt(tuple(dict.fromkeys(names)), told)] if names else []


def _beside_others(layer: Layer) -> list[Source]:
    """Initializers of a layer whose place among its draws depends on how they were given."""
    if layer.class_name == "Bidirectional":  # which throws the layer away that it was given, and copies from its config
        return []
    drawing = [source for source in layer.natural if source.draws and source.object_id is None]
    given = [source for source in drawing if source.config is not None and not source.default]
    in_turn = given == drawing[: len(given)] and sum(source.with_arguments for source in given) < 2
    return [] if in_turn else given


def missing_numbers(root: Node) -> list[Doubt]:
    """Doubts on layers that the program made and the config does not have, by gaps in Keras' automatic names."""
    nodes = list(root.nodes())
    classes = {node.layer.class_name for node in nodes if node.layer}
    drawing = {kind for node in nodes if node.layer and node.draws() for kind, _ in node.numbers}
    if not any(node.parts and not node.functional for node in nodes):  # a Sequential takes numbers of "functional"
        drawing |= {"functional"}
    drawing |= {"sequential"}
    present: dict[str, set[int]] = defaultdict(set)
    for node in nodes:
        for kind, number in (*node.numbers, *node.taken):
            present[kind].add(number)
    names: list[str] = []
    for kind in sorted(drawing & present.keys()):
        inside = kind.startswith("random_") and classes.intersection(_INSIDE)
        for first, stop in [] if inside else _gaps(present[kind]):
            ends = dict.fromkeys((automatic_name((kind, first)), automatic_name((kind, stop - 1))))
            names.append(" to ".join(ends))
    told = "layers that had these names, and which the config does not have, drew nothing after set_random_seed"
    return [Doubt(tuple(names), told)] if names else []


def _gaps(numbers: set[int]) -> list[tuple[int, int]]:
    """Runs of numbers that are missing below the highest one."""
    ordered = [-1, *sorted(numbers)]
    return [(a + 1, b) for a, b in itertools.pairwise(ordered) if b - a > 1]


def automatic_name(number: Number) -> str:
    """The name that Keras makes of a kind and a number."""
    kind, count = number
    return f"{kind}_{count}" if count else kind


def told(doubts: Iterable[Doubt]) -> str:
    """The text of a warning."""
    return (
        f"The config does not tell all that the program drew. Taken for granted: {'; '.join(map(str, doubts))}. Only "
        "then are the weights Keras' own. kinit.keras_config(keras_model), called where Keras is, has all seeds and "
        "leaves nothing open; `order`, `build` and `made` settle it by hand."
    )
