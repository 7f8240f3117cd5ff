"""The weights of a saved Keras model beside those of its torch port; and the rules that follow from them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.axes import fans_of
from torch_kinit.initializers.names import get, recipe, serialize
from torch_kinit.initializers.plain import unit_forget_bias_
from torch_kinit.keras.draws import Layer, Weight
from torch_kinit.keras.entries import lora_error
from torch_kinit.keras.saved_model import Model, load_config
from torch_kinit.keras.slots import Holdings, Slot, fits, holdings
from torch_kinit.layers.variable import Options

Pairs = list[tuple[Weight, Slot]]
Modules = Mapping[str, str | Sequence[str] | None]

# What a weight of Keras' may be called in torch's layouts, where that is not the same.
_ROLES = {"kernel": "depthwise_kernel", "scale": "gamma"}
_ROLES |= dict.fromkeys(("depthwise_kernel", "pointwise_kernel", "reverse_embeddings"), "kernel")
_NO_PLACE = "vector_u"  # of SpectralNormalization; torch's spectral_norm keeps vectors of another kind


def match(layers: Iterable[Layer], held: Holdings, modules: Modules | None = None) -> Pairs:
    """Each weight of a Keras model with its place in the torch model: in order, or as `modules` maps layers."""
    weighted = [layer for layer in layers if layer.weights]
    mapped = _mapped(weighted, held, modules or {})
    taken = {id(slot) for slots in mapped.values() for slot in slots}
    rest = iter([slot for slot in held.slots if id(slot) not in taken])
    pairs: Pairs = []
    for layer in weighted:
        slots = mapped.get(layer.name)
        if slots == []:  # the torch model goes without it
            continue
        own = rest if slots is None else iter(slots)
        pairs += [(w, _place(layer, w, next(own, None))) for w in layer.weights if w.name != _NO_PLACE]
        if own is not rest and (left := next(own, None)):
            raise ValueError(f"Keras' layer {layer.name!r} ({layer.class_name}) has no weight for {left}.")
    if left := next(rest, None):
        raise ValueError(
            f"The Keras model has no weight for {left}: it has {len(pairs)}, the torch model {len(held.slots)}."
        )
    return pairs


def _mapped(layers: Iterable[Layer], held: Holdings, modules: Modules) -> dict[str, list[Slot]]:
    """The places of those Keras layers that `modules` speaks of."""
    if not isinstance(modules, Mapping):
        raise TypeError(f"`modules` must be a dict from names of Keras layers to paths, got {modules!r}.")
    names = {layer.name for layer in layers}
    taken: dict[int, str] = {}
    mapped: dict[str, list[Slot]] = {}
    for name, value in modules.items():
        if name not in names:
            raise ValueError(
                f"`modules` speaks of {name!r}, which is no Keras layer with weights.{checks.near(name, names)}"
            )
        mapped[name] = []
        paths = (value,) if isinstance(value, str) else () if value is None else value
        if not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
            raise TypeError(f"`modules` gives {value!r} to Keras' layer {name!r}; it takes a path, a list or None.")
        for path in paths:
            for slot in held.inside(path, f"`modules` gives Keras' layer {name!r} the path"):
                if id(slot) in taken:
                    raise ValueError(f"`modules` gives {path!r} to both {taken[id(slot)]!r} and {name!r}.")
                taken[id(slot)] = name
                mapped[name].append(slot)
    return mapped


def _place(layer: Layer, weight: Weight, slot: Slot | None) -> Slot:
    keras = f"Keras' layer {layer.name!r} ({layer.class_name}) has {weight.name} {weight.shape}"
    if "lora_" in weight.name:
        raise lora_error(layer.name)
    if slot is None:
        raise ValueError(
            f"{keras}, for which the torch model has no tensor left. A layer that the torch model goes without is "
            f"given None in `modules`: {{{layer.name!r}: None}}."
        )
    name, role = (whole.rpartition("/")[2] for whole in (weight.name, slot.role))
    if role not in (name, _ROLES.get(name)) or not (weight.shape is None or fits(weight.shape, slot.shape)):
        raise ValueError(
            f"{keras}, and the torch model in its place {slot}. If its modules stand in another order, `modules` "
            "says which is which: {'keras_layer': 'torch.module'}."
        )
    # An orthogonal matrix has the last axis for columns, so there a merged axis makes another matrix.
    if weight.source.name == "orthogonal" and weight.shape is not None and weight.shape[-1:] != slot.shape[-1:]:
        raise ValueError(
            f"Keras' layer {layer.name!r} has an orthogonal {weight.name} of shape {weight.shape}, which is "
            f"another law on {slot}."
        )
    return slot


def rules_from_keras(
    keras_config: Any,
    model: nn.Module,
    *,
    modules: Modules | None = None,
    convention: str = "keras-3.15",
    depthwise: bool = True,
) -> dict[str, Any]:
    """The rules by which `apply` draws each parameter of a torch port from the law that its Keras twin names.

    Args:
        keras_config: a Sequential or functional Keras model: as `keras_model.to_json()` gives it, as a dict, the path
            of a .json, .keras or whole-model .h5 file (read with h5py), or the Keras model itself.
        model: the torch port, whose layers with weights stand in the order of the Keras model's layers.
        modules: where they do not: from the name of a Keras layer to the path of the torch module or modules that
            hold its weights, in Keras' order; None for a layer that the port goes without. Layers not named are
            matched in order.
        convention, depthwise: as in `plan`.

    Returns:
        A dict from parameter names to Keras names, configs, or functions of this package, for `plan` and `apply`.

    Raises:
        ValueError: a config without layers; the first weight whose shape or role is not that of its place in the torch
            model, naming both.

    The seeds in the config are left out; `replay_keras` draws the very numbers.

    Example:
        >>> from torch import nn
        >>> config = {"class_name": "Sequential", "config": {"layers": [
        ...     {"class_name": "Dense", "config": {"units": 2, "kernel_initializer": "he_normal"}}]}}
        >>> rules_from_keras(config, nn.Sequential(nn.Linear(3, 2)))
        {'0.weight': 'he_normal', '0.bias': 'zeros'}
    """
    held = holdings(model, Options(convention, depthwise))
    return rules_of(match(Model(load_config(keras_config)).layers, held, modules), held)


def rules_of(pairs: Pairs, held: Holdings) -> dict[str, Any]:
    """A rule for each tensor that holds a Keras weight."""
    rules: dict[str, Any] = {}
    for weight, slot in pairs:
        value = _rule(weight, slot, held)
        for name in slot.names:
            if name in rules and (first := recipe(rules[name])) != (second := recipe(value)):
                raise ValueError(
                    f"{name} packs weights of Keras' that have different initializers: {first} and {second}."
                )
            rules[name] = value
    return rules


def _rule(weight: Weight, slot: Slot, held: Holdings) -> Any:
    """The initializer of a weight: by name, as a config, or as a function where its fans are not torch's."""
    config = weight.source.config
    if isinstance(config, Mapping):
        config = {**config, "config": {k: v for k, v in (config.get("config") or {}).items() if k != "seed"}}
    law = recipe(config)
    if weight.unit_forget:
        plain = law == recipe("zeros")
        return "unit_forget_bias" if plain else functools.partial(unit_forget_bias_, others=get(config))
    if law.accepts("fans") and not law.arguments.get("fans") and weight.shape is not None and None not in weight.shape:
        by_shape = fans_of(weight.shape, "keras")
        fans = by_shape if held.options.convention == "keras-3.14" else weight.fans or by_shape
        if fans != (held.variables[slot.names[0]].fans or fans_of(slot.shape, "keras")):
            return functools.partial(law.function, **law.arguments, fans=fans)
    written = serialize(law)
    if written == serialize(law.function):  # with Keras' defaults
        return law.function.__name__.removesuffix("_")
    arguments = {key: value for key, value in written["config"].items() if value is not None}
    return {"class_name": written["class_name"], "config": arguments}
