"""What `keras_config` recorded of a model's outputs, read back: `Recorded`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from torch_kinit import checks
from torch_kinit.keras.arrays import decoded, read_npz
from torch_kinit.keras.draws import Config
from torch_kinit.keras.recording import MODES


@dataclass(frozen=True)
class Call:
    """One call of a layer; inputs, outputs and masks are numbers of arrays."""

    layer: str  # "" for the model itself
    class_name: str
    config: Config
    own: bool  # whether its class is Keras' own, and no model
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    masks: Mapping[str, int]
    draws: bool  # whether it drew random numbers though it was not trained


@dataclass(frozen=True)
class Recorded:
    """The calls of all layers for one batch, in order."""

    arrays: list[Tensor]
    inputs: tuple[int, ...]
    names: tuple[str, ...]  # of the inputs, where they came in a dict
    calls: Mapping[str, list[Call]]  # by mode
    samples: Mapping[tuple[str, str], list[float]]  # some values of each weight, by the layer and its name there
    left_out: Mapping[str, str]


def recorded_in(config: Config, folder: str | os.PathLike[str] = ".") -> Recorded | None:
    """What a config has recorded, its .npz looked for where it says, and in `folder`; None if it has nothing."""
    if (found := config.get("outputs")) is None:
        return None
    try:
        inputs = found["inputs"]
        count = checks.integer("count", found["count"])
        layers = found["layers"]
        calls = {mode: [_call(entry, layers, count) for entry in found[mode]] for mode in MODES}
        batch = tuple(_number(i, count) for i in (inputs.values() if isinstance(inputs, Mapping) else inputs))
        names = tuple(map(str, inputs)) if isinstance(inputs, Mapping) else ()
        weights = [(str(entry["layer"]), str(entry["name"])) for entry in config["weights"]]
        own = [list(map(float, values)) for values in found["weights"]]
        samples, left = dict(zip(weights, own, strict=True)), dict(found["left_out"])
        entries, file = found.get("arrays"), found.get("file")
        if file is None and len(entries) != count:
            raise ValueError(f"{len(entries)} arrays where {count} are counted")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"The outputs in `keras_config` are not as kinit.keras_config records them: {error!r}."
        ) from None
    if file is None:
        arrays = [decoded(entry, f"Array {i} of the outputs in `keras_config`") for i, entry in enumerate(entries)]
    else:
        arrays = read_npz(_found(str(file), folder), count)
    return Recorded(arrays, batch, names, calls, samples, left)


def _call(entry: Any, layers: Any, count: int) -> Call:
    layer = layers[entry["layer"]]
    masks = {str(key): _number(i, count) for key, i in entry["masks"].items()}
    inputs, outputs = (tuple(_number(i, count) for i in entry[key]) for key in ("inputs", "outputs"))
    drew = entry.get("draws") is True
    return Call(
        str(entry["layer"]),
        str(layer["class_name"]),
        layer["config"],
        layer["own"] is True,
        inputs,
        outputs,
        masks,
        drew,
    )


def _number(value: Any, count: int) -> int:
    number = checks.integer("array", value)
    if not 0 <= number < count:
        raise ValueError(f"there is no array {number}")
    return number


def _found(file: str, folder: str | os.PathLike[str]) -> Path:
    """The file where it was written, or beside the config."""
    for path in (Path(folder) / file, Path(folder) / Path(file).name, Path(file)):
        if path.exists():
            return path
    raise FileNotFoundError(f"The recorded outputs are in {file!r}, which is neither there nor beside the config.")
