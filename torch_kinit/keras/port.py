"""The rules by which a torch port is initialized that follow from the config of a Keras model."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.axes import fans_of
from torch_kinit.initializers.names import get, recipe, serialize
from torch_kinit.initializers.plain import unit_forget_bias_
from torch_kinit.keras.configs import load_config
from torch_kinit.keras.draws import Weight
from torch_kinit.keras.matching import Modules, Pairs, match
from torch_kinit.keras.saved_model import Model
from torch_kinit.keras.slots import Holdings, Slot, holdings
from torch_kinit.layers.variable import Options


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
        modules: where they do not: from the name of a Keras layer ("encoder/dense" in a model "encoder") to the path of
            the torch module or modules that hold its weights, in Keras' order; None for a layer that the port goes
            without. Layers not named are matched in order.
        convention, depthwise: as in `plan`.

    Returns:
        A dict from parameter names to Keras names, configs, or functions of this package, for `plan` and `apply`.

    Raises:
        ValueError: a config without layers; the first weight whose shape or role is not that of its place in the torch
            model, naming both; a layer that goes by the name of one module and by its order with another.

    A layer and a module go by one name if the last part of their paths, or the last parts, are the same and nothing
    else's: "encoder/query" and "encoder.query", or "blocks.0.query" if there is no other query. So do the parts of a
    layer: a MultiHeadAttention's query, key, value and attention_output. Automatic names (dense_1) and numbers say
    nothing. Where the order fits no weights and names do, they decide; where both fit, and do not agree, it is an
    error that names both readings.

    Laws alone are read: what the layers compute with (strides, padding, activations, epsilon, momentum, dilation, how
    a Flatten counts) is not compared. The seeds in the config are left out; `replay_keras` draws the very numbers.

    Example:
        >>> from torch import nn
        >>> config = {"class_name": "Sequential", "config": {"layers": [
        ...     {"class_name": "Dense", "config": {"units": 2, "kernel_initializer": "he_normal"}}]}}
        >>> rules_from_keras(config, nn.Sequential(nn.Linear(3, 2)))
        {'0.weight': 'he_normal', '0.bias': 'zeros'}
    """
    held = holdings(model, Options(convention, depthwise))
    keras = Model(load_config(keras_config, seeds=False))
    for doubt in keras.check_convention(convention):
        checks.warn(f"Taken for granted: {doubt}.")
    return rules_of(match(keras.layers, held, modules), held)


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
