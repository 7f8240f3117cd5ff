"""The door to what a saved Keras layer says of its weights and of the seeds it draws: `read_layer`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch_kinit import checks
from torch_kinit.keras.draws import Config, Layer, Source
from torch_kinit.keras.readers import IN_APPLICATIONS, READERS, attention
from torch_kinit.keras.wrappers import WRAPPERS, Read

OWN_PACKAGES = ("keras", "tf_keras")
_KNOWN = READERS.keys() | WRAPPERS.keys()
OWN_NAMES = (_KNOWN | {"Sequential", "Functional", "Model"}) - set(IN_APPLICATIONS)
Foreign = Callable[[Layer, Config, Read], None]
# What `register_keras_layer` was told, by the class' name, its full name or the one it is registered by in Keras.
REGISTERED: dict[str, Foreign] = {}


def read_layer(entry: Config, *, copied: bool = False) -> Layer:
    """Read one layer's entry of a saved model; if `copied`, Keras makes it from its config, with its initializers.

    In code, initializers count as given by name, unless they have other arguments: those are made before the layer.
    """
    class_name, config = str(entry.get("class_name")), entry.get("config") or {}
    found = Layer(str(config.get("name", entry.get("name"))), class_name)
    if str(entry.get("module")).startswith(("keras.src.ops", "keras.ops")):  # a function of tensors
        return found
    registered = _registered(entry)
    if not (registered or (class_name in _KNOWN and _may_be_of_keras(entry))):
        raise ValueError(_unknown(entry, found.name))
    _refuse_unknown_draws(found, config)
    try:
        if registered or class_name in WRAPPERS:
            read = functools.partial(read_layer, copied=copied)
            (registered or WRAPPERS[class_name])(found, config, read)
        else:
            READERS[class_name](found, config, _shape_of(entry))
            found.natural = list(found.constructor)
            found.constructor = objects_first(found.constructor, found.constructor)
    except KeyError as error:
        raise ValueError(f"The config of layer {found.name!r} ({class_name}) lacks {error}.") from None
    if copied:
        found.constructor = list(found.natural)
        for source in found.natural:
            source.object_id = None
    for weight in found.weights:
        weight.dtype = weight.dtype or _variable_dtype(config.get("dtype"))
    return found


def objects_first(sources: Sequence[Source], own: Sequence[Source]) -> list[Source]:
    """Sources in the order of a program: of those that are the layer's `own`, it makes objects before the layer."""
    before = {source for source in own if source.with_arguments}
    return sorted(sources, key=lambda source: source not in before)


def _registered(entry: Config) -> Foreign | None:
    """The reader registered for a class, unless the entry says that the class is Keras' own."""
    name, package = str(entry.get("class_name")), entry.get("registered_name")
    if _is_of_keras(entry) and name in _KNOWN:
        return None
    keys = (package, _full_name(entry), name, name.rpartition(">")[2])
    return next((REGISTERED[key] for key in keys if key in REGISTERED), None)


def _is_of_keras(entry: Config) -> bool:
    return str(entry.get("module")).partition(".")[0] in OWN_PACKAGES


def _may_be_of_keras(entry: Config) -> bool:
    """Whether an entry is one of Keras' own by what it says, or of a file of Keras 2, which says nothing of it."""
    return _is_of_keras(entry) or not (entry.get("module") or entry.get("registered_name"))


def _full_name(entry: Config) -> str | None:
    """The class with its module, which Keras does not save if it is the program itself."""
    if _may_be_of_keras(entry):
        return None
    return f"{entry.get('module') or '__main__'}.{str(entry.get('class_name')).rpartition('>')[2]}"


def _unknown(entry: Config, layer_name: str) -> str:
    """What to do about a layer of a class that is not known."""
    name = str(entry.get("class_name"))
    if _may_be_of_keras(entry) and name in OWN_NAMES:
        return (
            f"Layer {layer_name!r} is of class {name}, which is no layer of Keras itself but a model: give its layers."
        )
    key = name.rpartition(">")[2]
    if key in OWN_NAMES:
        key = _full_name(entry) or name
    near = checks.near(name, OWN_NAMES) if _may_be_of_keras(entry) else ""
    return (
        f"Layer {layer_name!r} is of class {name}, which is no layer of Keras itself: what it holds and draws is not "
        f"known.{near} Tell it first, kinit.register_keras_layer({key!r}) if that is nothing, or else with its weights "
        "and draws. What kinit.keras_config(keras_model) makes where Keras is needs no telling."
    )


def _shape_of(entry: Config) -> Any:
    """The shape of a layer's inputs as Keras saves it, for attention those of all; None where it does not."""
    built = entry.get("build_config") or {}
    shapes = built.get("shapes_dict")
    if shapes and READERS[str(entry.get("class_name"))] is not attention:
        return next(iter(shapes.values()))
    return built.get("input_shape") if shapes is None else shapes


def _variable_dtype(policy: Any) -> str | None:
    """The dtype in which a layer of this policy draws its weights, if the policy is a plain one."""
    if isinstance(policy, dict):
        policy = (policy.get("config") or {}).get("name")
    if not isinstance(policy, str):
        return None
    return "float32" if policy.startswith("mixed_") else policy


def _refuse_unknown_draws(found: Layer, config: Config) -> None:
    """Refuse what draws in a way that the config does not tell."""
    policy = config.get("dtype")
    if isinstance(policy, dict) and str(policy.get("class_name")).startswith(("Quantized", "GPTQ", "AWQ")):
        raise ValueError(f"Layer {found.name!r} is quantized; give the config of the model before that.")
    for name, value in config.items():
        own = isinstance(value, dict) and not str(value.get("module") or "keras").startswith("keras")
        if own and name.endswith("_initializer") and (value.get("config") or {}).get("seed", 0) is None:
            raise ValueError(
                f"The {name} of layer {found.name!r} is of class {value.get('class_name')}, no initializer of Keras "
                "itself: whether it draws a seed is not known. Give the layer's draws through `order`."
            )
