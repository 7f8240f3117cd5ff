"""The draws of a Keras program that is told by the modules of its torch port, and not by a config."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.names import recipe
from torch_kinit.initializers.plain import unit_forget_bias_
from torch_kinit.keras.draws import Layer, Source, Weight
from torch_kinit.keras.matching import Pairs, match_in_order
from torch_kinit.keras.order import builds_differ
from torch_kinit.keras.program import BUILDS, in_turn
from torch_kinit.keras.read import read_layer
from torch_kinit.keras.slots import Holdings
from torch_kinit.keras.twin import Twin
from torch_kinit.layers.table import twins_of
from torch_kinit.model.parametrized import POWER_ITERATION
from torch_kinit.model.plan import Plan
from torch_kinit.model.rules import KERAS_DEFAULTS
from torch_kinit.model.steps import Step
from torch_kinit.streams.keras_seed import KerasSeed


def draws_of_modules(
    made: Plan, held: Holdings, order: Sequence[Any] | None, build: str | None
) -> tuple[list[Source], Pairs, str | None]:
    """All draws of the Keras layers for which torch modules, or what `order` lists, stand."""
    found = [group for item in ([""] if order is None else order) for group in _layers_of(item, made, held)]
    layers = [layer for group, _ in found for layer in group]
    pairs = [pair for _, own in found for pair in own]
    planned = {weight.source: _planned_source(weight, made[slot.names[0]]) for weight, slot in pairs}
    _refuse_left_out(made, pairs)
    count_of = Counter((slot.names, slot.block) for _, slot in pairs)
    if twice := [names[0] for (names, _), count in count_of.items() if count > 1]:
        raise ValueError(f"`order` lists the module of {twice[0]} twice.")
    draws = [
        ([planned.get(s, s) for s in layer.constructor], [planned.get(s, s) for s in layer.build]) for layer in layers
    ]
    warning = None
    if build is None and (pair := builds_differ(draws)):
        owners = {s: layer.name for layer, own in zip(layers, draws, strict=True) for group in own for s in group}
        names = " and ".join(dict.fromkeys(repr(owners[source]) for source in pair))
        warning = (
            "Layers count as all made before the first is built, as in Sequential([...]), as `build` was not given. A "
            f"program that calls each layer where it makes it draws in another order, from {names} on: "
            "build='functional' is for that, build='sequential' for this."
        )
    first, then = in_turn(draws, build or BUILDS[0])
    placed = [(dataclasses.replace(weight, source=planned[weight.source]), slot) for weight, slot in pairs]
    return [*first, *then], placed, warning


def _layers_of(item: Any, made: Plan, held: Holdings) -> Iterator[tuple[list[Layer], Pairs]]:
    """The Keras layers of one entry of `order`, with the places of their weights."""
    if isinstance(item, Twin):
        yield twin_layer(item, held)
    elif isinstance(item, str):
        if item not in held.modules:
            raise ValueError(
                f"`order` has {checks.short(item)}, which is no module of the model.{checks.near(item, held.modules)}"
            )
        for path, module in held.modules[item].named_modules(prefix=item):
            yield _module_layers(path, module, made, held)
    elif isinstance(item, int) and not isinstance(item, bool) and item >= 0:
        yield [Layer("", "", [Source(None) for _ in range(item)])], []
    else:
        raise TypeError(f"`order` lists paths of modules, twins and numbers of draws, got {checks.short(item)}.")


def twin_layer(item: Twin, held: Holdings) -> tuple[list[Layer], Pairs]:
    """The layer, whose sizes its modules tell, and the places of its weights."""
    layer = read_layer(item.entry())
    for weight in layer.weights:
        weight.shape = None
    slots = [slot for path in item.modules for slot in held.inside(path, f"twin({item.class_name!r}) has")]
    return [layer], match_in_order([layer], dataclasses.replace(held, slots=slots)) if item.modules else []


def _module_layers(path: str, module: nn.Module, made: Plan, held: Holdings) -> tuple[list[Layer], Pairs]:
    """The Keras layers that a module stands for, unless it holds nothing of its own."""
    slots, prefix = held.of(path), f"{path}." if path else ""
    entries = twins_of(path, module, held.options, lambda name: _initializer_config(made[prefix + name]))
    layers = [read_layer(entry) for entry in entries]
    if not slots and any(layer.weights for layer in layers):
        return [], []  # its tensors belong to another: tied, or packed by the module around it
    return layers, match_in_order(layers, dataclasses.replace(held, slots=slots)) if layers else []


def _planned_source(weight: Weight, step: Step) -> Source:
    """The source of a weight by the plan's initializer, or its own if its twin was given the seed of the same one."""
    config = _initializer_config(step)
    if isinstance(config, Mapping) and weight.source.seed is not None and config["class_name"] == weight.source.name:
        return weight.source
    return Source("zeros" if config == "unit_forget_bias" else config)


def _initializer_config(step: Step) -> Any:
    """A step's initializer as far as draws depend on it: Keras' name for it, and its seed if it has one."""
    value = step.initializer
    if value is None:  # skipped: Keras makes the layer all the same
        return KERAS_DEFAULTS.get(step.role or "", "zeros")
    if not value.ours:
        raise ValueError(f"{step.name} (rule {step.rule}): {value} is none of Keras' initializers.")
    while value.function is unit_forget_bias_:
        if value.arguments.get("others") is None:
            return "unit_forget_bias"
        value = recipe(value.arguments["others"])
    if not value.accepts("generator"):
        return "zeros"
    name = value.function.__name__.removesuffix("_").replace("trunc_normal", "truncated_normal")
    own = value.arguments.get("generator")
    return {"class_name": name, "config": {"seed": own.seed if isinstance(own, KerasSeed) else None}}


def _refuse_left_out(made: Plan, pairs: Pairs) -> None:
    """Raise if a random initializer has no draw, because Keras has no such layer or `order` does not list it."""
    placed = {name for _, slot in pairs for name in slot.names}
    own = [step for step in made if step.initializer and POWER_ITERATION not in step.parametrizations]
    left = [step for step in own if step.name not in placed]
    if random := [step for step in left if isinstance(_initializer_config(step), Mapping)]:
        listed = checks.listed(f"{step.name} of {step.layer}" for step in random)
        raise ValueError(
            f"No Keras layer draws {listed}. List the module in `order`, or twin('Dense', 'its.path') for a class that "
            "has no Keras layer of its own; or give the parameter kinit.skip or an initializer without chance."
        )
