"""What the entries of a model's config tell whoever reads the weights in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch_kinit.keras.configs import is_model
from torch_kinit.keras.draws import Config
from torch_kinit.keras.read import read_layer

ATTENTIONS = ("MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention")


def entries(config: Config) -> list[Config]:
    """The layers that a model's config lists, without the functions of tensors among them."""
    inner = config["config"]
    listed = inner if isinstance(inner, list) else inner["layers"]
    if not isinstance(listed, list) or not all(isinstance(entry, Mapping) for entry in listed):
        raise ValueError("The config lists something else than layers.")
    return [entry for entry in listed if not str(entry.get("module")).startswith(("keras.src.ops", "keras.ops"))]


def name_of(entry: Config) -> str:
    config = entry.get("config")
    return str(entry.get("name") or (config.get("name") if isinstance(config, Mapping) else None))


def inner(entry: Config | None, name: str) -> Any:
    """A part of a wrapper's config, such as its "layer"."""
    config = entry.get("config") if entry else None
    return config.get(name) if isinstance(config, Mapping) else None


def holds_weights(entry: Config) -> bool:
    """Whether a layer of Keras' own has weights; a class that is not known counts as having none."""
    if is_model(entry):
        return any(map(holds_weights, entries(entry)))
    if isinstance(wrapped := inner(entry, "layer"), Mapping):
        return holds_weights(wrapped)
    return bool(weight_names(entry))


def weight_names(entry: Config | None) -> list[str]:
    """What the weights of a layer are called; nothing for a class that is not known."""
    if entry is None or not isinstance(entry.get("config"), Mapping):
        return []
    try:
        return [weight.name.rpartition("/")[2] for weight in read_layer(entry).weights]
    except (TypeError, ValueError):
        return []


def class_of(entry: Config) -> str:
    """The name of a layer's class if that is Keras' own, "" for another."""
    own = str(entry.get("module") or "keras").partition(".")[0] in ("keras", "tf_keras")
    return str(entry.get("class_name")) if own else ""


def lora_layers(config: Any) -> list[str]:
    """The names of the layers in a config that have LoRA weights."""
    left, found = [config], []
    while left:
        item = left.pop()
        if isinstance(item, Mapping):
            left += reversed(list(item.values()))
            if item.get("lora_rank"):
                found.append(str(item.get("name")))
        elif isinstance(item, (list, tuple)):
            left += reversed(item)
    return found
