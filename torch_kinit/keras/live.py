"""A live Keras model as data, with the seed that each initializer drew: `keras_config`, and how it is read back."""

from __future__ import annotations

import json
import operator
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch_kinit import checks
from torch_kinit.initializers.recipe import is_array
from torch_kinit.keras.draws import RANDOM, Config, Layer, Source, Weight, axes_of, lora_error, snake_case
from torch_kinit.keras.read import OWN_PACKAGES, read_layer
from torch_kinit.keras.recording import layers_in, record
from torch_kinit.layers.variable import CONVENTIONS

WITHOUT_SEED = (
    "vector_u"  # of SpectralNormalization: drawn in `build` by an initializer that is not kept; no port has it
)
NOT_BUILT = "`keras_model` has no weights; build it, or call it once on data."
_layers_of = operator.methodcaller("_flatten_layers", include_self=False, recursive=False)
# Where a weight's initializer is an attribute of another name than the weight's own.
_ATTRIBUTES = {"reverse_embeddings": "embeddings", "renorm_mean": "moving_mean"}
_ATTRIBUTES |= dict.fromkeys(("moving_stddev", "renorm_stddev"), "moving_variance")


def keras_config(keras_model: Any, *, inputs: Any = None, file: Any = None) -> dict[str, Any]:
    """A live Keras model as plain JSON data, with the seed that each of its initializers drew.

    A saved config does not tell in which order a program made its layers, or which of them share an initializer, so
    the seeds of unseeded initializers must be guessed from it. The live model has them. Call this once where Keras is
    at hand; `replay_keras(port, keras_config=..., backend=...)` then is exact, whatever the program looked like.

    Args:
        keras_model: a built model or layer of Keras 3 or tf.keras: Sequential, functional, nested or subclassed, as
            the program made it: the initializers of one that was loaded drew seeds that its weights are not of. It is
            only looked at, and may have been trained since.
        inputs: a batch, as the model is called with it: then the outputs of each layer for it are recorded too, for
            `compare`. Two to four samples are enough.
        file: with `inputs`, the path of an .npz file for the recorded arrays; None to have them in the data itself.

    Returns:
        A dict for `json.dump`: the model's config where it has one, and under "weights", in the order of
        `keras_model.get_weights()`, for each weight its layer, name, path, shape, dtype and initializer, whose config
        has the seed. With `inputs`, under "outputs" the inputs, masks and outputs of each call of a layer, in order,
        with training=False ("eval") and with training=True and all dropout off ("train"); each array once, as its
        shape, dtype and base64, which takes 5.3 bytes a float32 value, in a `file` less than 4. The weights, statistics
        and seed generators of the model are as before afterwards. With `inputs`, initializers and seeds
        that the model does not keep are None: such a config is for `compare`, not for `replay_keras`. Layers that could
        not be recorded, such as those in a vectorized map, are listed under "left_out" with the reason.

    Raises:
        TypeError: not a layer of Keras.
        ValueError: no weights yet; or, without `inputs`, weights whose initializer or seed is not kept on the model,
            naming them; a `file` without `inputs`, or one that is no .npz. Errors of the model's own call are its own.

    Example:
        >>> import keras, torch_kinit as kinit
        >>> from torch import nn
        >>> keras_model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="head")], name="net")
        >>> config = keras_config(keras_model)
        >>> [(entry["path"], entry["initializer"]["class_name"]) for entry in config["weights"]]
        [('net/head/kernel', 'GlorotUniform'), ('net/head/bias', 'Zeros')]
        >>> port = nn.Sequential(nn.Linear(4, 3))
        >>> done = kinit.replay_keras(port, keras_config=config, backend=keras.backend.backend())
        >>> kernel = keras.ops.convert_to_numpy(keras_model.weights[0])
        >>> bool((port[0].weight.T.numpy(force=True) == kernel).all())
        True

    Source: the attribute `seed` of Keras' initializers, keras/src/initializers/random_initializers.py, Keras 3.15.
    """
    if inputs is None:
        if file is not None:
            raise ValueError("`file` is for the outputs recorded of a batch, and `inputs` has none.")
        return capture(keras_model)
    if file is not None and not str(file).endswith(".npz"):
        raise ValueError(f"`file` must end in .npz, got {str(file)!r}.")
    config = capture(keras_model, seeds=False, initializers=False)
    if not getattr(keras_model, "built", True):
        raise ValueError(NOT_BUILT)
    walk = _Walk(seeds=False)
    for _ in walk.entries(keras_model, ""):
        pass
    names = {id(layer): name for layer, name in walk.visited}
    names[id(keras_model)] = ""
    return {**config, "outputs": record(keras_model, names, [layer for layer, _ in walk.visited], inputs, file)}


def capture(model: Any, *, seeds: bool = True, initializers: bool = True) -> dict[str, Any]:
    """What `keras_config` gives; without `seeds` or `initializers`, also for a model that does not keep them all."""
    if not (hasattr(model, "weights") and hasattr(model, "_flatten_layers")):
        raise TypeError(
            f"`keras_model` must be a live Keras model, got {type(model).__name__}; a saved one goes to replay_keras "
            "as it is."
        )
    if adapted := [layer.name for layer in layers_in(model) if getattr(layer, "lora_enabled", False)]:
        raise lora_error(str(adapted[0]))
    variables = list(model.weights)
    if not variables and seeds:
        raise ValueError(NOT_BUILT)
    entries = {id(variable): entry for variable, entry in _Walk(seeds).entries(model, "")}
    found = [entries.get(id(v), {"path": _path(v), "initializer": None}) for v in variables]
    if initializers and (lost := [entry["path"] for entry in found if entry["initializer"] is None]):
        raise ValueError(
            f"The live model does not keep the initializers, or their seeds, of {checks.listed(lost)}. A layer keeps "
            "one as an attribute named after the weight: self.kernel_initializer = keras.initializers.get(...), given "
            "to add_weight."
        )
    return {**_saved(model), "convention": _convention(model), "weights": found}


def layerwise(model: Any) -> list[int]:
    """The places in `model.get_weights()` of its weights layer by layer; tf.keras may have those not trained last."""
    entries = {id(variable): entry["layer"] for variable, entry in _Walk(seeds=False).entries(model, "")}
    layers = [entries.get(id(variable)) for variable in model.weights]
    first = {layer: i for i, layer in reversed(list(enumerate(layers)))}
    return sorted(range(len(layers)), key=lambda i: first[layers[i]])


def _saved(model: Any) -> dict[str, Any]:
    """The config that Keras itself would save; only the class' name for a model that has none."""
    try:
        saved = json.loads(model.to_json())
    except Exception:  # a subclassed model's own get_config can raise anything
        saved = {}
    return saved if isinstance(saved, dict) and saved else {"class_name": type(model).__name__, "config": None}


def _convention(model: Any) -> str:
    """Whose fans of attention the model was made with, by the version of its Keras."""
    modules = [cls.__module__.partition(".")[0] for cls in type(model).__mro__]
    keras = sys.modules.get(next((name for name in modules if name in ("keras", "tf_keras")), ""))
    version = [int(part) for part in re.findall(r"\d+", str(getattr(keras, "__version__", "3.15")))[:2]]
    return CONVENTIONS[version < [3, 15]]


class _Walk:
    """One walk through a live model, layer by layer, each once."""

    def __init__(self, seeds: bool) -> None:
        self._seeds = seeds  # whether a weight counts as lost if its seed is
        self._seen: set[int] = set()
        self._paths: set[str] = set()
        self.visited: list[tuple[Any, str]] = []  # layers with the names that they have here
        self._uses: dict[int, str] = {}  # SeedGenerators, by the path of the weight that each gave its seed

    def entries(self, layer: Any, prefix: str) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Each variable of a model or layer with its entry; a layer of a nested model is "encoder/dense"."""
        if id(layer) in self._seen:
            return
        self._seen.add(id(layer))
        known = _read(layer)
        if known is not None:
            yield from self._unit(layer, prefix, layer.weights, known)
            return
        inner = [child for child in _layers_of(layer) if child is not layer]
        theirs = {id(variable) for child in inner for variable in child.weights}
        yield from self._unit(layer, prefix, [v for v in layer.weights if id(v) not in theirs])
        inside = f"{prefix}/" if prefix else ""
        for child in inner:
            # TimeDistributed gives its name to the model in it, as in a saved config
            name = prefix if type(layer).__name__ == "TimeDistributed" else f"{inside}{child.name}"
            yield from self.entries(child, name)

    def _unit(
        self, layer: Any, path: str, variables: list[Any], read: Layer | None = None
    ) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The variables of a layer that is matched as a whole; `read` is what its config says of it."""
        path = path or layer.name
        unique = next(p for i in range(len(self._paths) + 1) if (p := f"{path}:{i}" if i else path) not in self._paths)
        if variables:
            self._paths.add(unique)
        self.visited.append((layer, unique))
        known = list(read.weights) if read else []
        for variable in variables:
            automatic = re.fullmatch(r"[Vv]ariable(_\d+)?", _name(variable))  # a weight that was given no name
            named = (w for w in known if automatic or w.name.rpartition("/")[2] == _name(variable))
            found = next(named, None)
            if found:
                known.remove(found)
            owner = _owner(layer, variable)
            initializer = self._initializer(owner, variable, found)
            more: dict[str, Any] = {}
            if _name(variable) == "kernel" and isinstance(equation := getattr(owner, "equation", None), str):
                more["equation"] = equation
            if read and read.no_twin:
                more["no_twin"] = read.no_twin
            if found and found.unit_forget:
                more["unit_forget_bias"] = True
            yield (
                variable,
                {
                    "layer": unique,
                    "class_name": type(layer).__name__,
                    "name": found.name if found else _name(variable),
                    "path": _path(variable),
                    "shape": [int(size) for size in variable.shape],
                    "dtype": str(getattr(variable.dtype, "name", variable.dtype)),
                    "initializer": initializer,
                    **more,
                },
            )

    def _initializer(self, owner: Any, variable: Any, known: Weight | None) -> dict[str, Any] | None:
        """The config of a variable's initializer with the seed it drew; None where the model keeps none of both."""
        found = _attribute(owner, _name(variable))
        if found is None:
            source = known.source if known else None
            kept = source and not (self._seeds and source.random and _name(variable) != WITHOUT_SEED)
            return Source(source.config).entry() if source and kept else None
        if type(found).__module__.partition(".")[0] not in OWN_PACKAGES or not hasattr(found, "get_config"):
            return None  # a function, or somebody's own class, whose draws are not known
        config = {key: _plain(value) for key, value in found.get_config().items()}
        if snake_case(type(found).__name__) in RANDOM:
            config["seed"] = self._seed(found, _path(variable), twice=bool(known and known.unit_forget))
            if config["seed"] is None and self._seeds:
                return None
        elif type(found).__name__ == "Identity":  # whose config forgets the gain
            config.setdefault("gain", getattr(found, "gain", 1.0))
        return {"module": "keras.initializers", "class_name": type(found).__name__, "config": config}

    def _seed(self, initializer: Any, path: str, *, twice: bool) -> int | None:
        """The seed of an initializer's draws; None if it is not known, or if `twice` and the second has another."""
        seed = getattr(initializer, "seed", None)
        if seed is None:  # tf.keras draws one when the initializer is first called
            seed = getattr(getattr(initializer, "_random_generator", None), "_seed", None)
        if isinstance(seed, int):
            return seed
        state = getattr(seed, "state", None)  # a SeedGenerator: its seed, and how many draws there were
        if state is None or twice or self._uses.setdefault(id(seed), path) != path:
            return None
        first, count = (int(value) for value in checks.array(_array(state)).tolist())
        return first & 0xFFFFFFFF if count <= 1 else None


def _array(variable: Any) -> Any:
    """The values of a Keras variable as an array or tensor."""
    value = variable.numpy() if hasattr(variable, "numpy") else variable
    return value.astype("int64") if hasattr(value, "astype") else value


def _read(layer: Any) -> Layer | None:
    """What is known of a layer of Keras' own, or of a registered class; None for models and others."""
    if hasattr(layer, "compile") and hasattr(layer, "layers"):  # a model
        return None
    cls = type(layer)
    try:
        config = layer.get_config()
    except Exception:  # somebody's get_config can raise anything
        config = {}
    entry = {"module": cls.__module__, "class_name": cls.__name__, "registered_name": _registered_name(cls)}
    try:
        return read_layer({**entry, "config": config})
    except Exception:  # as can a function that was registered
        return None


def _registered_name(cls: type) -> str | None:
    """What Keras calls a class in a file, such as "package>Sampling"; None for one of Keras' own."""
    savings: list[Any] = [getattr(sys.modules.get(package), "saving", None) for package in OWN_PACKAGES]
    names = [str(saving.get_registered_name(cls)) for saving in savings if hasattr(saving, "get_registered_name")]
    return next((name for name in names if ">" in name), None)


def _owner(layer: Any, variable: Any) -> Any:
    """The innermost layer that has the variable."""
    holders = [part for part in layers_in(layer) if any(v is variable for v in part.weights)]
    return min(reversed(holders), key=lambda part: len(part.weights), default=layer)  # what is inside comes later


def _attribute(owner: Any, name: str) -> Any:
    """The initializer that a layer keeps for its weight of this name."""
    if name == "kernel" and type(owner).__name__.startswith("Depthwise"):
        name = "depthwise"
    stem = _ATTRIBUTES.get(name, name.removesuffix("_kernel") or name)
    names = (f"{stem}_initializer", f"_{stem}_initializer", f"{name}_initializer")
    return next((found for key in names if (found := getattr(owner, key, None)) is not None), None)


def _name(variable: Any) -> str:
    return str(variable.name).partition(":")[0].rpartition("/")[2]


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", variable.name))


def _plain(value: Any) -> Any:
    """A value of an initializer's config as JSON has it, an array as Keras saves it."""
    if is_array(value) and tuple(value.shape):
        array = checks.array(value)
        saved = {"value": array.tolist(), "dtype": str(array.dtype).removeprefix("torch.")}
        return {"class_name": "__numpy__", "config": saved}
    return value.item() if is_array(value) else value


def captured_layers(config: Config) -> list[Layer]:
    """The layers of a model from what `keras_config` gave: each weight's source has its seed."""
    layers: dict[str, Layer] = {}
    for i, entry in enumerate(config["weights"]):
        try:
            layer = layers.setdefault(entry["layer"], Layer(str(entry["layer"]), str(entry["class_name"])))
            source = Source(entry["initializer"])
            shape = tuple(checks.integer("shape", size) for size in entry["shape"])
            name, dtype = str(entry["name"]), str(entry["dtype"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Weight {i} of `keras_config` is not as kinit.keras_config makes it: {error!r}."
            ) from None
        layer.no_twin = str(entry.get("no_twin", ""))
        axes = axes_of(entry["equation"]) if source.scaled and isinstance(entry.get("equation"), str) else None
        forget = entry.get("unit_forget_bias") is True
        layer.weights.append(Weight(name, shape, source, axes=axes, unit_forget=forget, dtype=dtype))
    return list(layers.values())


def is_captured(config: Mapping[str, Any]) -> bool:
    """Whether a config is one that `keras_config` made."""
    return isinstance(config.get("weights"), list)
