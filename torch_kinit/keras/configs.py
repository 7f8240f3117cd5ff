"""The config of a Keras model, from each form in which it comes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_kinit.keras import files
from torch_kinit.keras.draws import Config
from torch_kinit.keras.live import capture, is_captured

SHARING = "shared_objects_are_told"  # of a config that Keras saved with what makes one object known in several places


def load_config(keras_config: object, *, seeds: bool = True) -> Config:
    """The config of a model that lists its layers: a dict, JSON, a .json, .keras or .h5 file, or a live Keras model."""
    config: Config | None = read_config_of(keras_config, seeds)
    if config is None:
        raise ValueError(f"{str(keras_config)!r} holds weights and no config; save the whole model, or to_json().")
    if not isinstance(config, Mapping):
        raise TypeError(
            "`keras_config` must be a dict, JSON as model.to_json() gives it, a Keras model, or the path of a .json, "
            f".keras or .h5 file, got {type(config).__name__}."
        )
    if "class_name" not in config and "layers" in config:  # what get_config() gives
        config = {"class_name": "Model", "config": config}
    if not (is_model(config) or is_captured(config)):
        raise ValueError(
            f"The config of {config.get('class_name')} does not list its layers, as that of a subclassed model. "
            "Give what kinit.keras_config(keras_model) makes of it, or the model's draws through `order`."
        )
    return config


def read_config_of(keras_config: object, seeds: bool) -> Any:
    """What `load_config` takes, as it stands; None for a file without a config."""
    if hasattr(keras_config, "_flatten_layers"):
        return capture(keras_config, seeds=seeds)
    if isinstance(keras_config, (str, os.PathLike)):
        if str(keras_config).lstrip().startswith("{"):
            return files.parse(str(keras_config), "`keras_config`")
        path = Path(keras_config)
        config = files.read_config(path)
        return {**config, SHARING: True} if isinstance(config, Mapping) and path.suffix == ".keras" else config
    files.check_depth(keras_config, "`keras_config`")
    return keras_config


def is_model(entry: Config) -> bool:
    """Whether a config is that of a model that lists its layers."""
    config = entry.get("config")
    if isinstance(config, Mapping) and "layers" in config:
        return entry.get("class_name") in ("Sequential", "Functional", "Model") or "input_layers" in config
    return isinstance(config, list)  # a Sequential before Keras 2.2
