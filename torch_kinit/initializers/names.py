"""Keras names and configs to initializers and back: `get` and `serialize`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from torch_kinit import checks
from torch_kinit.initializers.axes import LAYOUTS, keras_shape, resolve_fans, shape_of
from torch_kinit.initializers.calls import Call, read_call
from torch_kinit.initializers.plain import array_, constant_
from torch_kinit.initializers.recipe import OURS, Recipe, is_array, plain_scalar
from torch_kinit.initializers.scaled import AMBIGUOUS_NORMAL
from torch_kinit.initializers.strangers import argument_here, twin_of
from torch_kinit.initializers.structured import identity_, stft_
from torch_kinit.initializers.table import BY_FUNCTION, BY_NAME, PARAMETERS, Initializer, Row
from torch_kinit.streams.keras_seed import KerasSeed
from torch_kinit.streams.laws import Law

_FANNED = {function for function, names in PARAMETERS.items() if "fans" in names}


def recipe(identifier: Any) -> Recipe:
    """The recipe of anything `get` takes."""
    if isinstance(identifier, Recipe):
        return identifier
    if isinstance(identifier, str):
        return _from_call(read_call(identifier, _function_of)) if "(" in identifier else _named(identifier)
    if isinstance(identifier, Mapping):
        return _from_config(identifier)
    identifier = plain_scalar(identifier)
    if isinstance(identifier, (int, float)) and not isinstance(identifier, bool):
        return Recipe(constant_, {"value": checks.number("value", identifier)})
    if is_array(identifier):
        value = checks.array(identifier)
        if value.is_meta or value.layout != torch.strided:
            raise ValueError("an array must be dense and hold numbers, not be on the meta device or sparse.")
        if not bool(torch.isfinite(value).all()):
            raise ValueError("an array must hold finite real numbers.")
        return Recipe(array_, {"value": value.clone()})  # a plan is data: its own copy
    if hasattr(identifier, "get_config"):
        return _from_keras_object(identifier)
    if isinstance(identifier, functools.partial):
        if identifier.args:
            raise ValueError(f"An initializer's arguments go in by name, got {checks.short(identifier)}.")
        found = Recipe(identifier.func, dict(identifier.keywords))
        return _checked(found) if found.ours else found
    if callable(identifier) and not isinstance(identifier, (type, torch.nn.Module)):
        return Recipe(identifier, {})
    raise ValueError(
        f"Could not interpret the initializer {checks.short(identifier)} of type {type(identifier).__name__}: give a "
        "Keras name such as 'he_normal', a Keras config, a function that fills a tensor, a number or an array."
    )


def _named(name: str) -> Recipe:
    """The recipe of a name of Keras', or of a function of this package."""
    ours = OURS.get(name)
    return Recipe(ours if ours and ours is not array_ else _keras_row(name).function, {})


def _from_call(call: Call) -> Recipe:
    """The recipe of a name with arguments."""
    function = _named(call.name).function
    if function is constant_ and len(call.values) == 1 and "value" not in call.arguments:  # as it prints
        return _checked(Recipe(function, {"value": call.values[0], **call.arguments}))
    if call.values:
        takes = ", ".join(PARAMETERS[function]) or "none"
        raise ValueError(
            f"An initializer's arguments go in by name, got {checks.short(call.values[0])} for {call.name}, which "
            f"takes {takes}."
        )
    return _checked(Recipe(function, call.arguments))


def _function_of(call: Call) -> Initializer:
    """The function that a name with arguments stands for."""
    found = _from_call(call)
    return functools.partial(found.function, **found.arguments) if found.arguments else found.function


def _checked(found: Recipe) -> Recipe:
    """A recipe of ours with Python's numbers for NumPy's; arguments that the function lacks are refused."""
    known, renamed = PARAMETERS[found.function], BY_FUNCTION[found.function].config
    for name in found.arguments:
        if name not in known:
            here = f"Keras' `{name}` is `{renamed[name]}` here." if name in renamed else argument_here(name)
            hint = f" {here}" if here else checks.near(name, known)
            takes = f"takes no argument {checks.short(name)}, but {', '.join(known) or 'the tensor alone'}"
            raise TypeError(f"{found.function.__name__} {takes}.{hint}")
    return Recipe(found.function, {name: plain_scalar(value) for name, value in found.arguments.items()})


def _from_keras_object(initializer: Any) -> Recipe:
    """Read an initializer class of Keras, with its defaults, or an object of one."""
    cls = initializer if isinstance(initializer, type) else type(initializer)
    if not cls.__module__.startswith(("keras.", "tf_keras.")):
        raise ValueError(
            f"{cls.__qualname__} is no initializer of Keras itself; write it as a function that fills a tensor."
        )
    config = {} if cls is initializer else dict(initializer.get_config())
    if cls is not initializer and cls.__name__ == "Identity":  # whose config forgets the gain
        config.setdefault("gain", initializer.gain)
    return _from_config({"class_name": cls.__name__, "config": config})


def _keras_row(name: str) -> Row:
    row = BY_NAME.get(name) or BY_NAME.get(name.removesuffix("V2"))  # tf.keras' alias for saved configs
    if row is None:
        raise ValueError(f"Unknown initializer {checks.short(name)}{_meant(name)}")
    return row


def _meant(name: str) -> str:
    """What the writer of an unknown name may have meant."""
    if twin := twin_of(name):
        return f": {twin}"
    last = name.rpartition(".")[2]
    if last != name and (last in BY_NAME or last in OURS):
        return f". Write {last!r} alone."
    return f".{checks.near(name, BY_NAME)}"


def _from_config(identifier: Mapping[str, Any]) -> Recipe:
    """Read a config of Keras 2, tf.keras or Keras 3."""
    name = identifier.get("class_name")
    if not isinstance(name, str):
        raise ValueError(f"A Keras config has a 'class_name', got {checks.short(dict(identifier))}.")
    row = _keras_row(name)
    registered = identifier.get("registered_name")
    if registered and ">" in registered:
        raise ValueError(
            f"{checks.short(registered)} is no initializer of Keras itself, but was registered with it by somebody."
        )
    if not isinstance(identifier.get("config") or {}, Mapping):
        raise ValueError(f"The config of {name} must be a dict, got {checks.short(identifier['config'])}.")
    config = dict(identifier.get("config") or {})
    config.pop("dtype", None)  # TensorFlow 1 wrote it; tf.keras drops it too
    arguments: dict[str, Any] = {}
    if row.random:
        if (seed := config.pop("seed", None)) is not None:
            shown = seed if isinstance(seed, int) else "..."
            checks.warn(
                f"The seed in the config of {name} names other numbers on each backend of Keras' and is not used: the "
                f"law is kept, the values come from `generator`, such as KerasSeed({shown}, backend=...)."
            )
        if row.function in _FANNED:
            axes = config.pop("input_axes", None), config.pop("output_axes", None)
            if None not in axes:  # with one alone Keras, too, goes by the shape
                if any(isinstance(a, int) for a in axes):
                    raise ValueError(f"`input_axes` and `output_axes` must be lists of axes, got {checks.short(axes)}.")
                arguments["fans"] = tuple(tuple(a) for a in axes)
    for key, value in config.items():
        if key not in row.config:
            raise ValueError(
                f"Unknown key {checks.short(key)} in the config of {name}; it may have "
                f"{', '.join(row.config) or 'none but the seed'}.{checks.near(key, row.config)}"
            )
        arguments[row.config[key]] = _read(value)
    if "distribution" in arguments:
        law = str(arguments["distribution"]).lower()
        arguments["distribution"] = "truncated_normal" if law == "normal" else law
    return Recipe(row.function, arguments)


def _read(value: Any) -> Any:
    """A config's value, which for arrays Keras 3 wraps as {"class_name": "__numpy__", "config": {...}}."""
    if isinstance(value, Mapping) and value.get("class_name") in ("__numpy__", "__tensor__"):
        dtype = getattr(torch, value["config"]["dtype"])
        return torch.tensor(value["config"]["value"], dtype=dtype)
    return value


def get(identifier: Any) -> Initializer | None:
    """The in-place initializer that `identifier` means, as `keras.initializers.get`.

    Args:
        identifier: a name ("he_normal", "HeNormal", "truncated_normal", ...), or one with arguments as a plan prints
            them ("trunc_normal(std=0.02)", read as data and never evaluated); a config of Keras 2, tf.keras or
            Keras 3, `{"class_name": ..., "config": {...}}`; an initializer class or object of Keras itself; a function
            that fills a tensor, returned as it is; a number; an array, for a variable of exactly its shape; or
            None, which gives None.

    Returns:
        One of this package's functions, or a functools.partial of one, or the function that was given.

    Raises:
        ValueError: an unknown name (with near misses, and Keras' twin of a name in torch, timm or jax), class or
            config key.
        TypeError: an argument that the initializer lacks, with what it is called here.

    Example:
        >>> get("he_normal").__name__
        'he_normal_'
        >>> get("trunc_normal(std=0.02)").keywords
        {'std': 0.02}
        >>> get({"class_name": "VarianceScaling", "config": {"scale": 2.0, "distribution": "normal"}}).keywords
        {'scale': 2.0, 'distribution': 'truncated_normal'}

    A seed in a config is not used, with a warning: it names other numbers on each of Keras' backends. `replay_keras`
    and `KerasSeed` draw them.
    """
    if identifier is None:
        return None
    found = recipe(identifier)
    return functools.partial(found.function, **found.arguments) if found.arguments else found.function


def law(identifier: Any, shape_or_tensor: Any, *, layout: str = "torch", fans: Any = None) -> Law:
    """The law of the values that an initializer gives a weight of this shape.

    Args:
        identifier: one of this package's functions, a functools.partial of one, or anything else `get` takes.
        shape_or_tensor: the weight, or its shape as a sequence of ints.
        layout: the order of the axes, "torch" (out, in, *spatial) or "keras" (*spatial, in, out).
        fans: `(fan_in, fan_out)` in place of those of the shape, for initializers that scale by them.

    Returns:
        A `Uniform`, `Normal`, `TruncatedNormal` or `Constant`; for matrices and arrays a law of the same attributes.

    Raises:
        ValueError: nobody knows the law: of a function of somebody else's, or for a weight without elements.

    Example:
        >>> law("he_normal", (64, 100))
        TruncatedNormal(mean=0.0, std=0.16077447771479306, lower=-2.0, upper=2.0)
        >>> law("orthogonal", (64, 100)).std
        0.1
    """
    found = recipe(identifier)
    if not found.ours:
        raise ValueError(f"{found} is none of this package's initializers, so its law is not known.")
    checks.choice("layout", layout, LAYOUTS)
    dtype = getattr(shape_or_tensor, "dtype", None)
    tensor = torch.empty(shape_of(shape_or_tensor), dtype=dtype or torch.float32, device="meta")
    given = None if fans is None else resolve_fans(fans, keras_shape(tensor.shape, layout))
    known = found.law_for(tensor, layout, given)
    if known is None:
        raise ValueError(f"The law of {found} for a weight of shape {tuple(tensor.shape)} is not known.")
    return known


def serialize(initializer: Any) -> dict[str, Any]:
    """The config that Keras 3.15 writes for the same law; `keras.initializers.deserialize` reads it.

    Args:
        initializer: one of this package's functions, a functools.partial of one, or anything else `get` takes.

    Raises:
        ValueError: Keras has no such initializer: another function, `lower` and `upper` other than two, `fans` given
            as numbers, a `generator` other than a KerasSeed.

    Example:
        >>> from functools import partial
        >>> serialize(partial(identity_, gain=2.0))["config"]
        {'gain': 2.0}
        >>> serialize("he_normal") == {
        ...     "module": "keras.initializers", "class_name": "HeNormal", "registered_name": None,
        ...     "config": {"seed": None, "input_axes": None, "output_axes": None}}
        True
    """
    found = recipe(initializer)
    row = BY_FUNCTION.get(found.function) if found.ours else None
    if row is None or row.class_name is None:
        raise ValueError(f"Keras has no initializer that is {found}.")
    arguments = found.settled
    if arguments.get("distribution") == "normal":
        raise ValueError(AMBIGUOUS_NORMAL)
    config: dict[str, Any] = {"seed": None} if row.random else {}
    if isinstance(arguments.get("generator"), KerasSeed):
        config["seed"] = arguments.pop("generator").seed
    config |= {key: _written(arguments.pop(name)) for key, name in row.config.items()}
    if row.function in _FANNED:
        axes = arguments.pop("fans") or (None, None)
        if any(hasattr(a, "__index__") for a in axes):
            raise ValueError(
                f"Keras cannot express `fans`={checks.short(axes)}; it has axes, such as fans=((0,), (1, 2))."
            )
        config |= {
            name: a if a is None else list(a) for name, a in zip(("input_axes", "output_axes"), axes, strict=True)
        }
    for name, value in arguments.items():
        if name not in ("layout", "max_elements") and value != PARAMETERS[found.function][name]:
            raise ValueError(f"Keras' {row.class_name} has no argument like `{name}`={checks.short(value)}.")
    if found.function is identity_ and config["gain"] == 1:
        config = {}  # as Keras, whose config has no gain
    if found.function is stft_ and isinstance(config["window"], dict):
        config["window"] = config["window"]["config"]["value"]  # Keras reads no wrapped array here
    return {"module": "keras.initializers", "class_name": row.class_name, "config": config, "registered_name": None}


def _written(value: Any) -> Any:
    if is_array(value):
        value = checks.array(value)
        dtype = str(value.dtype).removeprefix("torch.")
        return {"class_name": "__numpy__", "config": {"value": value.tolist(), "dtype": dtype}}
    return value
