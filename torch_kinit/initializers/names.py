"""Keras names and configs to initializers and back: `get` and `serialize`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from torch_kinit import checks
from torch_kinit.initializers import plain, scaled, structured
from torch_kinit.initializers.recipe import PARAMETERS, Initializer, Recipe, array_, is_array, plain_scalar
from torch_kinit.initializers.scaled import AMBIGUOUS_NORMAL
from torch_kinit.streams.keras_seed import KerasSeed


class _Keras(NamedTuple):
    """A Keras class, the strings that name it, and its config's keys with the arguments they are here."""

    function: Initializer
    class_name: str
    names: tuple[str, ...]
    config: dict[str, str]

    @property
    def random(self) -> bool:
        """Whether Keras' class has a seed."""
        return "generator" in PARAMETERS[self.function]


_SCALED = {"scale": "scale", "mode": "mode", "distribution": "distribution"}
_STFT = {name: name for name in ("side", "window", "scaling", "periodic")}
_KERAS = [
    _Keras(plain.zeros_, "Zeros", ("zeros", "zero"), {}),
    _Keras(plain.ones_, "Ones", ("ones", "one"), {}),
    _Keras(plain.constant_, "Constant", ("constant",), {"value": "value"}),
    _Keras(plain.random_normal_, "RandomNormal", ("random_normal", "normal"), {"mean": "mean", "stddev": "std"}),
    _Keras(
        plain.trunc_normal_,
        "TruncatedNormal",
        ("truncated_normal", "trunc_normal"),
        {"mean": "mean", "stddev": "std"},
    ),
    _Keras(
        plain.random_uniform_,
        "RandomUniform",
        ("random_uniform", "uniform"),
        {"minval": "low", "maxval": "high"},
    ),
    _Keras(scaled.variance_scaling_, "VarianceScaling", ("variance_scaling",), _SCALED),
    _Keras(scaled.glorot_uniform_, "GlorotUniform", ("glorot_uniform",), {}),
    _Keras(scaled.glorot_normal_, "GlorotNormal", ("glorot_normal",), {}),
    _Keras(scaled.lecun_normal_, "LecunNormal", ("lecun_normal",), {}),
    _Keras(scaled.lecun_uniform_, "LecunUniform", ("lecun_uniform",), {}),
    _Keras(scaled.he_normal_, "HeNormal", ("he_normal",), {}),
    _Keras(scaled.he_uniform_, "HeUniform", ("he_uniform",), {}),
    _Keras(structured.orthogonal_, "Orthogonal", ("orthogonal", "OrthogonalInitializer"), {"gain": "gain"}),
    _Keras(structured.identity_, "Identity", ("identity", "IdentityInitializer"), {"gain": "gain"}),
    _Keras(structured.stft_, "STFT", ("stft", "STFTInitializer"), _STFT),
]
_BY_NAME = {name: row for row in _KERAS for name in (row.class_name, *row.names)}
_BY_FUNCTION = {row.function: row for row in _KERAS}


def recipe(identifier: Any) -> Recipe:
    """The recipe of anything `get` takes."""
    if isinstance(identifier, Recipe):
        return identifier
    if isinstance(identifier, str):
        return Recipe(_keras_row(identifier).function, {})
    if isinstance(identifier, Mapping):
        return _from_config(identifier)
    identifier = plain_scalar(identifier)
    if isinstance(identifier, (int, float)) and not isinstance(identifier, bool):
        return Recipe(plain.constant_, {"value": checks.number("value", identifier)})
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
            raise ValueError(f"An initializer's arguments go in by name, got {identifier!r}.")
        found = Recipe(identifier.func, dict(identifier.keywords))
        if not found.ours:
            return found
        known = PARAMETERS[found.function]
        unknown = [k for k in found.arguments if k not in known]
        if unknown:
            raise TypeError(
                f"{identifier.func.__name__} takes no argument {unknown[0]!r}, but {', '.join(known)}."
                f"{checks.near(unknown[0], known)}"
            )
        return Recipe(found.function, {k: plain_scalar(v) for k, v in found.arguments.items()})
    if callable(identifier) and not isinstance(identifier, type):
        return Recipe(identifier, {})
    raise ValueError(
        f"Could not interpret the initializer {identifier!r} of type {type(identifier).__name__}: give a Keras name "
        "such as 'he_normal', a Keras config, a function that fills a tensor, a number or an array."
    )


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


def _keras_row(name: str) -> _Keras:
    if name == "unit_forget_bias":
        return _Keras(plain.unit_forget_bias_, name, (), {})
    row = _BY_NAME.get(name) or _BY_NAME.get(name.removesuffix("V2"))  # tf.keras' alias for saved configs
    if row is None:
        raise ValueError(f"Unknown initializer {name!r}.{checks.near(name, [*_BY_NAME, 'unit_forget_bias'])}")
    return row


def _from_config(identifier: Mapping[str, Any]) -> Recipe:
    """Read a config of Keras 2, tf.keras or Keras 3."""
    name = identifier.get("class_name")
    if not isinstance(name, str):
        raise ValueError(f"A Keras config has a 'class_name', got {dict(identifier)!r}.")
    row = _keras_row(name)
    registered = identifier.get("registered_name")
    if registered and ">" in registered:
        raise ValueError(f"{registered!r} is no initializer of Keras itself, but was registered with it by somebody.")
    if not isinstance(identifier.get("config") or {}, Mapping):
        raise ValueError(f"The config of {name} must be a dict, got {identifier['config']!r}.")
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
                    raise ValueError(f"`input_axes` and `output_axes` must be lists of axes, got {axes!r}.")
                arguments["fans"] = tuple(tuple(a) for a in axes)
    for key, value in config.items():
        if key not in row.config:
            raise ValueError(
                f"Unknown key {key!r} in the config of {name}; it may have "
                f"{', '.join(row.config) or 'none but the seed'}.{checks.near(key, row.config)}"
            )
        arguments[row.config[key]] = _read(value)
    if "distribution" in arguments:
        law = str(arguments["distribution"]).lower()
        arguments["distribution"] = "truncated_normal" if law == "normal" else law
    return Recipe(row.function, arguments)


_FANNED = {function for function, names in PARAMETERS.items() if "fans" in names}


def _read(value: Any) -> Any:
    """A config's value, which for arrays Keras 3 wraps as {"class_name": "__numpy__", "config": {...}}."""
    if isinstance(value, Mapping) and value.get("class_name") in ("__numpy__", "__tensor__"):
        dtype = getattr(torch, value["config"]["dtype"])
        return torch.tensor(value["config"]["value"], dtype=dtype)
    return value


def get(identifier: Any) -> Initializer | None:
    """The in-place initializer that `identifier` means, as `keras.initializers.get`.

    Args:
        identifier: a name ("he_normal", "HeNormal", "truncated_normal", ...); a config of Keras 2, tf.keras or
            Keras 3, `{"class_name": ..., "config": {...}}`; an initializer class or object of Keras itself; a function
            that fills a tensor, returned as it is; a number; an array, for a variable of exactly its shape; or
            None, which gives None.

    Returns:
        One of this package's functions, or a functools.partial of one, or the function that was given.

    Raises:
        ValueError: an unknown name (with near misses), class or config key.

    Example:
        >>> get("he_normal").__name__
        'he_normal_'
        >>> get({"class_name": "VarianceScaling", "config": {"scale": 2.0, "distribution": "normal"}}).keywords
        {'scale': 2.0, 'distribution': 'truncated_normal'}

    A seed in a config is not used, with a warning: it names other numbers on each of Keras' backends. `replay_keras`
    and `KerasSeed` draw them.
    """
    if identifier is None:
        return None
    found = recipe(identifier)
    return functools.partial(found.function, **found.arguments) if found.arguments else found.function


def serialize(initializer: Any) -> dict[str, Any]:
    """The config that Keras 3.15 writes for the same law; `keras.initializers.deserialize` reads it.

    Args:
        initializer: one of this package's functions, a functools.partial of one, or anything else `get` takes.

    Raises:
        ValueError: Keras has no such initializer: another function, `lower` and `upper` other than two, `fans` given
            as numbers, a `generator` other than a KerasSeed.

    Example:
        >>> from functools import partial
        >>> serialize(partial(structured.identity_, gain=2.0))["config"]
        {'gain': 2.0}
        >>> serialize("he_normal") == {
        ...     "module": "keras.initializers", "class_name": "HeNormal", "registered_name": None,
        ...     "config": {"seed": None, "input_axes": None, "output_axes": None}}
        True
    """
    found = recipe(initializer)
    row = _BY_FUNCTION.get(found.function) if found.ours else None
    if row is None:
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
            raise ValueError(f"Keras cannot express `fans`={axes!r}; it has axes, such as fans=((0,), (1, 2)).")
        config |= {
            name: a if a is None else list(a) for name, a in zip(("input_axes", "output_axes"), axes, strict=True)
        }
    for name, value in arguments.items():
        if name not in ("layout", "max_elements") and value != PARAMETERS[found.function][name]:
            raise ValueError(f"Keras' {row.class_name} has no argument like `{name}`={value!r}.")
    if found.function is structured.identity_ and config["gain"] == 1:
        config = {}  # as Keras, whose config has no gain
    if found.function is structured.stft_ and isinstance(config["window"], dict):
        config["window"] = config["window"]["config"]["value"]  # Keras reads no wrapped array here
    return {"module": "keras.initializers", "class_name": row.class_name, "config": config, "registered_name": None}


def _written(value: Any) -> Any:
    if is_array(value):
        value = checks.array(value)
        dtype = str(value.dtype).removeprefix("torch.")
        return {"class_name": "__numpy__", "config": {"value": value.tolist(), "dtype": dtype}}
    return value
