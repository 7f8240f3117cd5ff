"""The weights in a saved Keras file, in the order of the model's `get_weights()`: .keras, .weights.h5 and .h5."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from torch_kinit import checks
from torch_kinit.keras import files
from torch_kinit.keras.arrange import arrange
from torch_kinit.keras.configs import is_model, load_config
from torch_kinit.keras.draws import Config, lora_error
from torch_kinit.keras.entries import lora_layers
from torch_kinit.keras.legacy_h5 import Legacy
from torch_kinit.keras.live import layerwise
from torch_kinit.keras.saved_model import Model
from torch_kinit.keras.slots import Slot
from torch_kinit.keras.weights_h5 import Tree

_HINT = (
    "`keras_config`, the model as model.to_json() gives it, tells the order; for a model that is a class of its own, "
    "give keras_model.get_weights() or the Keras model itself."
)


def weights_in(path: Path, config: Config | None, slots: Sequence[Slot]) -> list[tuple[str, Tensor]]:
    """The names in the file and the values of all weights; `slots` decide where the file tells no order."""
    if path.suffix not in (".keras", ".h5", ".hdf5"):
        raise ValueError(f"Weights are read from a .keras, .weights.h5 or .h5 file, got {str(path)!r}.")
    with files.open_h5(path) as root, checks.context(repr(str(path))):
        if files.has(root, "model_weights"):
            node = Legacy(config).model(files.child(root, "model_weights"))
        elif files.texts(root, "layer_names") is not None:
            node = Legacy(config).model(root)
        else:
            node = Tree().layer(root, "", config)
        return [(item.name, files.values_of(item.data)) for item in arrange(node, slots, _HINT)]


def named_arrays(source: Any, keras_config: Any, slots: Sequence[Slot]) -> list[tuple[str, Any]]:
    """What `from_keras` is given as names and arrays: those of a file, of a live Keras model, or arrays as they are."""
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        config = config_of(path, keras_config)
        found: Iterable[tuple[str, Any]] = weights_in(path, config, slots)
        return [(f"Array {i} ({name} in {path.name!r})", array) for i, (name, array) in enumerate(found)]
    live = callable(getattr(source, "get_weights", None))
    if not live and (isinstance(source, Mapping) or not isinstance(source, Iterable)):
        kind = type(source).__name__
        raise TypeError(f"`source` must be a path, a live Keras model or its list of arrays, got one of type {kind}.")
    layers: Iterable[Any] = getattr(source, "_flatten_layers", tuple)() if live else ()
    merged = [str(layer.name) for layer in layers if getattr(layer, "lora_enabled", False)]
    if merged := merged or lora_layers(None if keras_config is None else load_config(keras_config, seeds=False)):
        raise lora_error(merged[0])
    arrays = list(source.get_weights() if live else source)
    places = layerwise(source) if layers and len(source.weights) == len(arrays) else range(len(arrays))
    return [(f"Array {i}", arrays[i]) for i in places]


def config_in(source: Any, keras_config: Any) -> Any:
    """The config that is given, or that of a file or live Keras model; None if it cannot be read, but for arrays."""
    live = callable(getattr(source, "get_weights", None))
    if not live and (isinstance(source, Mapping) or not isinstance(source, Iterable)):
        kind = type(source).__name__
        raise TypeError(f"`source` must be a path, a live Keras model or its list of arrays, got one of type {kind}.")
    if not live and not isinstance(source, (str, os.PathLike)):
        return keras_config
    try:
        given = source if live and keras_config is None else keras_config
        config = load_config(given, seeds=False) if live else config_of(Path(source), given)
        return config if config is not None and Model(config) else None
    except (AttributeError, KeyError, TypeError, ValueError):  # a class of its own, or layers that are not Keras' own
        return None


def config_of(path: Path, keras_config: Any) -> Config | None:
    """The config that was given, or that in a file of weights; None if it does not list the layers."""
    if keras_config is not None:
        return load_config(keras_config, seeds=False)
    config = files.read_config(path) if path.suffix in (".keras", ".h5", ".hdf5") else None
    return config if isinstance(config, Mapping) and is_model(config) else None
