"""`keras.utils.set_random_seed(n)`, replayed over a torch model: the very weights that Keras would start from."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.keras.by_modules import draws_of_modules, twin_layer
from torch_kinit.keras.configs import load_config
from torch_kinit.keras.doubts import told
from torch_kinit.keras.draws import Source, seeds_of
from torch_kinit.keras.flatten import warn_of_flatten
from torch_kinit.keras.matching import Modules, Pairs, paired, places
from torch_kinit.keras.order import WAYS
from torch_kinit.keras.port import rules_of
from torch_kinit.keras.program import BUILDS
from torch_kinit.keras.saved_model import Model
from torch_kinit.keras.slots import Holdings, holdings
from torch_kinit.keras.twin import Twin
from torch_kinit.layers.variable import Options
from torch_kinit.model.apply import plan
from torch_kinit.model.plan import Plan
from torch_kinit.streams.keras_seed import BACKENDS, KerasSeed


def replay_keras(
    model: nn.Module,
    seed: int | None = None,
    *,
    backend: str,
    keras_config: Any = None,
    order: Sequence[str | int | Twin] | None = None,
    build: str | None = None,
    made: str | None = None,
    rules: Mapping[Any, Any] | None = None,
    modules: Modules | None = None,
    convention: str = "keras-3.15",
    depthwise: bool = True,
) -> Plan:
    """Give `model` the weights that Keras gives its twin, built after `keras.utils.set_random_seed(seed)`.

    Each random initializer of a Keras layer, and each layer with a SeedGenerator (Dropout, recurrent layers), draws a
    seed when it is made. Those draws are replayed, and each parameter filled with what Keras draws for its seed. What
    `keras_config` made of a live model has the seeds, and the replay is exact. From any other config, and from modules,
    the program is guessed where they do not tell it, and a UserWarning says what was taken for granted.

    Args:
        model: the torch port.
        seed: what set_random_seed was given, 0 to 2**32 - 1; not to be given if `keras_config` has the seeds.
        backend: "jax", "tensorflow" or "torch", on whose numbers see `KerasSeed`.
        keras_config: the Keras model: what `kinit.keras_config` made of the live one, or that itself, or a saved config
            as `rules_from_keras` takes it. It settles the layers, their initializers, seeds and rates, and is checked
            against `model` weight by weight. Without it, each torch module counts for the Keras layer of its kind,
            with Keras' default initializers.
        order: without `keras_config`, what the Keras program makes, in its order, if not the modules of `model` as they
            are registered: paths of modules (a container stands for what is in it), `twin`s, and ints, for so many
            draws of something else. With a saved `keras_config`, likewise: names of its layers, all that draw or none,
            among `twin`s without modules, for layers that are not part of the model, and ints. Without names, what is
            listed comes before the model: `order=[26]` for the second model of a program.
        build: "sequential", as `Sequential([...])`: all layers are made, then all built; or "functional", as
            `x = Dense(3)(x)`: each is built when it is made. None for the kind of model that `keras_config` is, or
            "sequential" without it.
        made: how the model of a saved `keras_config` was made: "program", by code that gives initializers by name, or
            as objects of each layer's own; "model_from_json", from its config, which keras.models.load_model does, too;
            "clone_model". None is "program", with a warning where that is not certain.
        rules: without `keras_config`, initializers other than Keras' defaults, as in `apply`.
        modules: with `keras_config`, which torch module is which Keras layer; as in `rules_from_keras`.
        convention, depthwise: as in `plan`.

    Returns:
        The plan that was carried out; `seeds` of a step are those its blocks were drawn from.

    Raises:
        ValueError, TypeError: a config of other layers than the model's, naming both sides of the first mismatch; a
            module with random weights and no twin in Keras, or that `order` leaves out; arguments that do not go
            together. Nothing is changed.

    Initializers without arguments count as given by name (`Dense(3, kernel_initializer="he_normal")`): an object shared
    by several layers, or made earlier, has the same config, and no warning tells. Nor is known what else draws from
    Python's `random` after set_random_seed, or a layer of a kind that the model does not have: list it in `order`. The
    config must be as the program made it: one saved after a rate was set to zero lacks a draw. The row of an
    embedding's padding_idx is zero afterwards, as in torch; Keras draws it, and `from_keras` keeps it.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))
        >>> done = replay_keras(model, 0, backend="jax")
        >>> done["0.weight"].seeds, done["3.weight"].seeds
        ((KerasSeed(seed=906691060, backend='jax'),), (KerasSeed(seed=813847340, backend='jax'),))

    Source: keras/src/utils/rng_utils.py and the layers' constructors, Keras 3.15.
    """
    if seed is not None and not 0 <= (seed := checks.integer("seed", seed)) < 2**32:
        raise ValueError(
            f"`seed` must be from 0 to 2**32 - 1, as for keras.utils.set_random_seed, got {checks.short(seed)}."
        )
    checks.choice("backend", backend, BACKENDS)
    checks.choice("build", BUILDS[0] if build is None else build, BUILDS)
    if order is not None and (isinstance(order, str) or not isinstance(order, Sequence)):
        raise TypeError(f"`order` must be a list, got {checks.short(order)} of type {type(order).__name__}.")
    options = Options(convention, depthwise)
    if keras_config is None:
        if seed is None:
            raise ValueError("`seed` must be given; only what kinit.keras_config makes of a live model has seeds.")
        if made is not None:
            raise ValueError("`made` says how the model of a `keras_config` was made, and none is given.")
        if modules is not None:
            raise ValueError("`modules` maps the layers of a `keras_config`, and none is given.")
        if twins := [item for item in order or () if isinstance(item, Twin) and item.modules]:
            held = holdings(model, options)
            own = [rules_of(twin_layer(item, held)[1], held) for item in twins]
            rules = {**{name: value for given in own for name, value in given.items()}, **(rules or {})}
        planned = plan(model, rules, convention=convention, depthwise=depthwise)
        held = holdings(model, options)
        sources, pairs, warning = draws_of_modules(planned, held, order, build)
    else:
        if rules is not None:
            raise ValueError("`rules` and `keras_config` exclude each other: the config has the initializers.")
        config = load_config(keras_config)
        held, keras = holdings(model, options), Model(config)
        keras.check_backend(backend)
        _check_seed(keras, seed, order=order, build=build, made=made)
        found = places(keras.layers, held, modules)
        pairs = paired(found)
        planned = plan(model, rules_of(pairs, held), convention=convention, depthwise=depthwise)
        planned = _with_layers(planned, pairs)
        sources, doubts = keras.schedule(build, order, made)
        doubts += keras.check_convention(convention)
        warning = told(doubts) if doubts else None
    seeded = _with_drawn_seeds(planned, pairs, seeds_of(sources, seed or 0), backend)
    if warning:
        checks.warn(warning)
    if keras_config is not None:
        warn_of_flatten(config, found, held)
    _warn_of_dtypes(pairs, held)
    return seeded.apply()


def _with_layers(made: Plan, pairs: Pairs) -> Plan:
    """The plan, with the Keras layers for rules."""
    layers: dict[str, dict[str | None, None]] = defaultdict(dict)
    for _, slot in pairs:
        for name in slot.names:
            layers[name][slot.twin] = None
    rules = {name: f"Keras' {', '.join(filter(None, own))}" for name, own in layers.items()}
    steps = (dataclasses.replace(step, rule=rules.get(step.name, step.rule)) for step in made)
    return dataclasses.replace(made, steps=tuple(steps))


def _check_seed(keras: Model, seed: int | None, **others: Any) -> None:
    """Refuse what contradicts the seeds of a config, or a config without them and no seed."""
    if not keras.has_seeds:
        if seed is None:
            raise ValueError(
                "`seed` must be given: this `keras_config` has no seeds. kinit.keras_config(keras_model) has them."
            )
        _check_order(others["order"])
        made, build = others["made"], others["build"]
        if made not in (None, WAYS[0]):
            named = any(isinstance(item, str) for item in others["order"] or ())
            if build is not None or named:
                other = "build" if build is not None else "order"
                raise ValueError(
                    f"`made`={checks.short(made)} tells the order of all layers, so `{other}` cannot tell another."
                )
    elif given := [name for name, value in {"seed": seed, **others}.items() if value is not None]:
        raise ValueError(f"`{given[0]}` is not to be given: this `keras_config` has the seed of each initializer.")


def _warn_of_dtypes(pairs: Pairs, held: Holdings) -> None:
    """Warn of weights that Keras draws in another dtype than the port has, so that the numbers are others."""
    pairs = [pair for pair in pairs if pair[0].source.random and pair[0].dtype]
    dtypes = {slot.names[0]: str(held.targets[slot.names[0]].tensor.dtype).removeprefix("torch.") for _, slot in pairs}
    if other := {slot.names[0]: weight.dtype for weight, slot in pairs if weight.dtype != dtypes[slot.names[0]]}:
        first, keras = next(iter(other.items()))
        more = f", and {len(other) - 1} more" if len(other) > 1 else ""
        checks.warn(
            f"Keras draws {first} in {keras}, and the port has {dtypes[first]}{more}: the numbers are not Keras' own. "
            f"Replay on a port of Keras' dtype, model.to(torch.{keras}), and convert it afterwards."
        )


def _check_order(order: Sequence[Any] | None) -> None:
    for item in order or ():
        number = isinstance(item, int) and not isinstance(item, bool) and item >= 0
        if not (isinstance(item, (str, Twin)) or number):
            raise TypeError(
                "With a `keras_config`, `order` lists names of its layers, twins and numbers of draws, got "
                f"{checks.short(item)}."
            )
        if isinstance(item, Twin) and item.modules:
            raise ValueError(
                f"With a `keras_config`, twin({item.class_name!r}) takes no modules; the config has the layers."
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
