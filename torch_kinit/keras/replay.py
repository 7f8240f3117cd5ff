"""`keras.utils.set_random_seed(n)`, replayed over a torch model: the very weights that Keras would start from."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.names import recipe
from torch_kinit.initializers.plain import unit_forget_bias_
from torch_kinit.keras.draws import Layer, Source, Weight, seeds_of
from torch_kinit.keras.flatten import warn_of_flatten
from torch_kinit.keras.matching import Modules, Pairs, match_in_order, paired, places
from torch_kinit.keras.port import rules_of
from torch_kinit.keras.read import read_layer
from torch_kinit.keras.saved_model import BUILDS, Model, in_turn, load_config
from torch_kinit.keras.slots import Holdings, holdings
from torch_kinit.keras.twin import Twin
from torch_kinit.layers.table import twins_of
from torch_kinit.layers.variable import Options
from torch_kinit.model.apply import plan
from torch_kinit.model.plan import Plan
from torch_kinit.model.rules import KERAS_DEFAULTS
from torch_kinit.model.steps import Step
from torch_kinit.streams.keras_seed import BACKENDS, KerasSeed


def replay_keras(
    model: nn.Module,
    seed: int,
    *,
    backend: str,
    keras_config: Any = None,
    order: Sequence[str | int | Twin] | None = None,
    build: str | None = None,
    rules: Mapping[Any, Any] | None = None,
    modules: Modules | None = None,
    convention: str = "keras-3.15",
    depthwise: bool = True,
) -> Plan:
    """Give `model` the weights that Keras gives its twin, built after `keras.utils.set_random_seed(seed)`.

    Each random initializer of a Keras layer, and each layer with a SeedGenerator (Dropout, recurrent layers), draws a
    seed when it is made. Those draws are replayed, and each parameter filled with what Keras draws for its seed.

    Args:
        model: the torch port.
        seed: what set_random_seed was given, 0 to 2**32 - 1.
        backend: "jax", "tensorflow" or "torch", on whose numbers see `KerasSeed`.
        keras_config: the Keras model, as `rules_from_keras` takes it. It settles the layers, their initializers, seeds
            and rates, and is checked against `model` weight by weight. In a functional model each layer counts as
            called when it is made: `Dropout(0.1)(Dense(8)(x))`, which makes Dropout first, needs `order`. Without
            `keras_config`, each torch module counts for the Keras layer of its kind, with Keras' default initializers.
        order: the order of the layers' draws, as that of arrays in `to_keras`. Without `keras_config`, what the Keras
            program makes, in its order, if not the modules of `model` as they are registered: paths of modules (a
            container stands for what is in it), `twin`s, and ints, for so many draws of something else. With
            `keras_config`, the names of its layers that draw, in the order in which the program makes them, if that
            cannot be told from it.
        build: "sequential", as `Sequential([...])`: all layers are made, then all built; or "functional", as
            `x = Dense(3)(x)`: each is built when it is made. None for the kind of model that `keras_config` is, or
            "sequential" without it.
        rules: without `keras_config`, initializers other than Keras' defaults, as in `apply`.
        modules: with `keras_config`, which torch module is which Keras layer; as in `rules_from_keras`.
        convention, depthwise: as in `plan`.

    Returns:
        The plan that was carried out; `seeds` of a step are those its blocks were drawn from.

    Raises:
        ValueError, TypeError: a config of other layers than the model's, naming both sides of the first mismatch; a
            module with random weights and no twin in Keras, or that `order` leaves out; arguments that do not go
            together. Nothing is changed.

    Initializers count as given by name (`Dense(3, kernel_initializer="he_normal")`), or made before the layer they are
    given to, if they have arguments. The config must be as the program made it: one saved after a rate was set to zero
    lacks a draw. What else draws from Python's `random` between set_random_seed and the model is not known here: list
    it in `order`. The row of an embedding's padding_idx is zero afterwards, as in torch; Keras draws it, and
    `from_keras` keeps it.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
        >>> done = replay_keras(model, 0, backend="jax")
        >>> done["0.weight"].seeds, done["3.weight"].seeds
        ((KerasSeed(seed=906691060, backend='jax'),), (KerasSeed(seed=813847340, backend='jax'),))

    Source: keras/src/utils/rng_utils.py and the layers' constructors, Keras 3.15.
    """
    seed = checks.integer("seed", seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"`seed` must be from 0 to 2**32 - 1, as for keras.utils.set_random_seed, got {seed!r}.")
    checks.choice("backend", backend, BACKENDS)
    checks.choice("build", BUILDS[0] if build is None else build, BUILDS)
    if order is not None and (isinstance(order, str) or not isinstance(order, Sequence)):
        raise TypeError(f"`order` must be a list, got {order!r} of type {type(order).__name__}.")
    options = Options(convention, depthwise)
    if keras_config is None:
        if modules is not None:
            raise ValueError("`modules` maps the layers of a `keras_config`, and none is given.")
        if twins := [item for item in order or () if isinstance(item, Twin) and item.modules]:
            held = holdings(model, options)
            own = [rules_of(_twin_layer(item, held)[1], held) for item in twins]
            rules = {**{name: value for given in own for name, value in given.items()}, **(rules or {})}
        made = plan(model, rules, convention=convention, depthwise=depthwise)
        sources, pairs = _from_modules(made, holdings(model, options), order, build or "sequential")
    else:
        if rules is not None:
            raise ValueError("`rules` and `keras_config` exclude each other: the config has the initializers.")
        config = load_config(keras_config)
        held, keras = holdings(model, options), Model(config)
        found = places(keras.layers, held, modules)
        warn_of_flatten(config, found, held)
        pairs = paired(found)
        made = _with_layers(plan(model, rules_of(pairs, held), convention=convention, depthwise=depthwise), pairs)
        sources = _from_config(keras, order, build)
    return _with_drawn_seeds(made, pairs, seeds_of(sources, seed), backend).apply()


def _with_layers(made: Plan, pairs: Pairs) -> Plan:
    """The plan, with the Keras layers for rules."""
    layers: dict[str, dict[str | None, None]] = defaultdict(dict)
    for _, slot in pairs:
        for name in slot.names:
            layers[name][slot.twin] = None
    rules = {name: f"Keras' {', '.join(filter(None, own))}" for name, own in layers.items()}
    steps = (dataclasses.replace(step, rule=rules.get(step.name, step.rule)) for step in made)
    return dataclasses.replace(made, steps=tuple(steps))


def _from_config(keras: Model, order: Sequence[Any] | None, build: str | None) -> list[Source]:
    if order is not None and any(not isinstance(name, str) for name in order):
        raise ValueError("With a `keras_config`, `order` is a list of the names of its layers.")
    sources, guesses = keras.schedule(build, order)
    if guesses:
        shown = ", ".join(f"{a!r} before {b!r}" for a, b in guesses[:3])
        checks.warn(
            f"The config does not tell in which order the program made all layers; taken for granted: {shown}. "
            "`order`, a list of the names of the layers that draw, settles it."
        )
    return sources


def _from_modules(made: Plan, held: Holdings, order: Sequence[Any] | None, build: str) -> tuple[list[Source], Pairs]:
    """All draws of the Keras layers for which torch modules, or what `order` lists, stand."""
    found = [group for item in ([""] if order is None else order) for group in _layers_of(item, made, held)]
    layers = [layer for group, _ in found for layer in group]
    pairs = [pair for _, own in found for pair in own]
    planned = {weight.source: _planned_source(weight, made[slot.names[0]]) for weight, slot in pairs}
    _refuse_left_out(made, pairs)
    placed = Counter((slot.names, slot.block) for _, slot in pairs)
    if twice := [names[0] for (names, _), count in placed.items() if count > 1]:
        raise ValueError(f"`order` lists the module of {twice[0]} twice.")
    first, then = in_turn([(layer.constructor, layer.build) for layer in layers], build)
    sources = [planned.get(source, source) for source in (*first, *then)]
    return sources, [(dataclasses.replace(weight, source=planned[weight.source]), slot) for weight, slot in pairs]


def _layers_of(item: Any, made: Plan, held: Holdings) -> Iterator[tuple[list[Layer], Pairs]]:
    """The Keras layers of one entry of `order`, with the places of their weights."""
    if isinstance(item, Twin):
        yield _twin_layer(item, held)
    elif isinstance(item, str):
        if item not in held.modules:
            raise ValueError(f"`order` has {item!r}, which is no module of the model.{checks.near(item, held.modules)}")
        for path, module in held.modules[item].named_modules(prefix=item):
            yield _module_layers(path, module, made, held)
    elif isinstance(item, int) and not isinstance(item, bool) and item >= 0:
        yield [Layer("", "", [Source(None) for _ in range(item)])], []
    else:
        raise TypeError(f"`order` lists paths of modules, twins and numbers of draws, got {item!r}.")


def _twin_layer(item: Twin, held: Holdings) -> tuple[list[Layer], Pairs]:
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
    left = [step for step in made if step.initializer and step.name not in placed]
    if random := [step for step in left if isinstance(_initializer_config(step), Mapping)]:
        listed = ", ".join(f"{step.name} of {step.layer}" for step in random)
        raise ValueError(
            f"No Keras layer draws {listed}. List the module in `order`, or twin('Dense', 'its.path') for a class that "
            "has no Keras layer of its own; or give the parameter kinit.skip or an initializer without chance."
        )


def _with_drawn_seeds(made: Plan, pairs: Pairs, drawn: Mapping[Source, int], backend: str) -> Plan:
    seeds: dict[str, dict[int, KerasSeed]] = defaultdict(dict)
    for weight, slot in pairs:
        if weight.source in drawn:
            with checks.context(f"the {weight.name} for {slot}"):
                seed = KerasSeed(drawn[weight.source], backend)
            for name in slot.names:
                seeds[name][slot.block] = seed
    steps = []
    for step in made:
        own = seeds[step.name]
        if own and step.initializer is not None and "generator" not in step.initializer.arguments:
            if len(own) != step.blocks:
                raise ValueError(
                    f"{step.name} (rule {step.rule}): Keras draws {len(own)} variables for it; an initializer with "
                    "layout=... fills it as one."
                )
            step = dataclasses.replace(step, seeds=tuple(own[i] for i in range(step.blocks)))
        steps.append(step)
    return dataclasses.replace(made, steps=tuple(steps))
