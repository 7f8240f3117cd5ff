"""The layers of a Keras model's config, each with its arguments and with the layers before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch_kinit.keras.configs import is_model
from torch_kinit.keras.draws import Config
from torch_kinit.keras.entries import name_of
from torch_kinit.keras.flatten import shapes_in
from torch_kinit.keras.saved_model import inputs_of

_WRAPPERS = {"TimeDistributed": "layer", "SpectralNormalization": "layer", "Bidirectional": "layer", "RNN": "cell"}
Given = Sequence["Unit | None"]


@dataclass(eq=False)
class Unit:
    """A Keras layer without its wrappers, in which a nested model's layers stand among the others."""

    name: str  # "encoder/conv2d"
    class_name: str
    config: Config
    wrappers: dict[str, Config] = field(default_factory=dict)
    shape: Sequence[Any] | None = None  # of the first input, with the batch; None where the config does not tell
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of its first call: use_causal_mask=True
    inputs: list[Unit] = field(default_factory=list)
    consumers: list[Unit] = field(default_factory=list)
    calls: int = 0
    is_output: bool = False
    before: list[Unit] = field(default_factory=list)  # ZeroPadding, taken together with this layer
    after: list[Unit] = field(default_factory=list)  # Cropping, likewise

    def get(self, key: str, default: Any = None) -> Any:
        return self.config.get(key, default)

    @property
    def channels_first(self) -> bool:
        return bool(self.get("data_format") == "channels_first")

    @property
    def follower(self) -> Unit | None:
        """The one layer that takes the output, if there is one that takes nothing else."""
        once = self.calls < 2 and len(self.consumers) == 1 and not self.is_output
        return self.consumers[0] if once and len(self.consumers[0].inputs) == 1 else None


def units_of(config: Config) -> list[Unit]:
    """The layers in the config's order, a shared one once."""
    walk = _Walk()
    for end in walk.model(config, "", []):
        if end:
            end.is_output = True
    return list(walk.units.values())


class _Walk:
    """One way through a model, in which each call of a layer is an arrow."""

    def __init__(self) -> None:
        self.units: dict[str, Unit] = {}

    def model(self, entry: Config, prefix: str, given: Given) -> Given:
        """The layers that give the outputs of a model called on the outputs of others."""
        config = entry["config"]
        if isinstance(config, list) or "input_layers" not in config:
            for part in config if isinstance(config, list) else config["layers"]:
                given = self._layer(part, prefix, given, None)
            return given
        made: dict[str, list[Given]] = {}
        inputs = [name for name, _ in inputs_of(config["input_layers"])]
        for part in config["layers"]:
            name, calls = name_of(part), part.get("inbound_nodes") or []
            outer = given[inputs.index(name)] if name in inputs and inputs.index(name) < len(given) else None
            if outer:
                made[name] = [[outer]]
                continue
            made[name] = []
            for call in calls or [None]:
                sources = [unit for source, k in inputs_of(call) for unit in _nth(made.get(source), k)]
                made[name].append(self._layer(part, prefix, sources, call))
        return [unit for name, k in inputs_of(config.get("output_layers")) for unit in _nth(made.get(name), k)]

    def _layer(self, entry: Config, prefix: str, given: Given, call: Any) -> Given:
        path, wrappers, inner = prefix + name_of(entry), {}, entry
        while (part := _WRAPPERS.get(str(inner.get("class_name")))) and isinstance(inner["config"].get(part), Mapping):
            wrappers[str(inner["class_name"])] = inner["config"]
            inner = inner["config"][part]
        if is_model(inner):
            return self.model(inner, f"{path}/", given)
        shape = _shape_of(inner) or (_shape_of(entry, call) if not wrappers else None)
        config = {**(inner.get("config") or {})}
        if "RNN" in wrappers:  # which has what its cell has not
            config = {**wrappers["RNN"], **config}
        class_name = "" if str(inner.get("module")).startswith(("keras.src.ops", "keras.ops")) else inner["class_name"]
        arguments = call.get("kwargs") if isinstance(call, Mapping) else None
        unit = self.units.setdefault(path, Unit(path, str(class_name), config, wrappers, shape, arguments or {}))
        unit.calls += 1
        for source in filter(None, given):
            unit.inputs.append(source)
            source.consumers.append(unit)
        return [unit]


def _nth(calls: Sequence[Given] | None, k: int) -> Given:
    return calls[min(k, len(calls) - 1)] if calls else [None]


def _shape_of(entry: Config, call: Any = None) -> Sequence[Any] | None:
    """The shape of the first input, from where the config has it."""
    built, own = entry.get("build_config") or {}, entry.get("config") or {}
    shapes = built.get("shapes_dict") or {}
    found: Any = built.get("input_shape") or own.get("batch_shape") or own.get("batch_input_shape")
    found = found or next(iter(shapes.values()), None) or next(shapes_in(call), None)
    return next((own for own in found if isinstance(own, Sequence)), found) if isinstance(found, Sequence) else None
