"""Which layers of a saved Keras model follow a Flatten of channels-last data: a port must say how it flattens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch_kinit import checks
from torch_kinit.keras.configs import is_model
from torch_kinit.keras.draws import Config
from torch_kinit.keras.matching import Place
from torch_kinit.keras.saved_model import inputs_of
from torch_kinit.keras.slots import Holdings, Slot
from torch_kinit.layers.flatten import is_marked, is_of_inputs

_SIZES = "(channels, *spatial)"
# By what the names of classes begin with.
_SPATIAL = (
    *("Conv", "SeparableConv", "DepthwiseConv", "MaxPooling", "AveragePooling", "Adaptive"),
    *("UpSampling", "ZeroPadding", "Cropping"),
)
_RECURRENT = ("SimpleRNN", "LSTM", "GRU", "RNN", "Bidirectional")
_FORGETFUL = ("Global", "Embedding", "MultiHeadAttention", "GroupQueryAttention", "GroupedQueryAttention")
_BY_FEATURE = ("BatchNormalization", "LayerNormalization", "RMSNormalization", "PReLU", "SyncBatchNormalization")


@dataclass(frozen=True)
class Spatial:
    """Data of which a torch port has the channels first: its axes in Keras, "c" and the numbers of the others."""

    axes: tuple[str, ...]
    channels: int | None = None

    def flattened(self, shape: Sequence[int | None] | None) -> Flat | None:
        """What one axis made of these is, if Keras has its values in another order than torch."""
        sizes = dict(zip(self.axes, shape or [None] * len(self.axes), strict=False))
        left = [axis for axis in self.axes if sizes.get(axis) != 1]
        if left == sorted(left, key=lambda axis: (axis != "c", axis)):
            return None
        named = [sizes.get(axis) for axis in ("c", *sorted(axis for axis in self.axes if axis != "c"))]
        known = tuple(size for size in named if size is not None)
        whole = len(known) == len(named) and self.axes[-1] == "c"
        return Flat(known if whole else None, sizes.get("c") or self.channels)


@dataclass(frozen=True)
class Flat:
    """Data that Keras has flattened from (*spatial, channels); `sizes` are (channels, *spatial), if they are known."""

    sizes: tuple[int, ...] | None
    channels: int | None = None


State = Spatial | Flat | None  # what is known of a tensor


def warn_of_flatten(config: Config, found: Iterable[Place], held: Holdings) -> None:
    """Warn of modules that follow a Flatten and do not say how the port flattens.

    Raises:
        ValueError: a module says other sizes than the config.
    """
    lines: dict[str, str] = {}
    for name, slot, sizes in unmarked(config, found, held):
        if said := held.variables[slot.names[0]].flattened:
            raise ValueError(
                f"{slot} was said to follow a Flatten of {said}; Keras flattens {_last(sizes or ())} before "
                f"{name!r}, which is {sizes} in torch."
            )
        lines.setdefault(slot.module, _advice(name, slot, sizes))
    if lines:
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        checks.warn(
            f"Keras flattens channels-last data before {'; '.join([*lines.values()][:5])}{more}. A Flatten of "
            "channels-first data gives the same values in another order, and Keras' weights do not fit them. If the "
            "port moves the channels last before it flattens, say None for the sizes."
        )


def unmarked(
    config: Config, found: Iterable[Place], held: Holdings
) -> Iterator[tuple[str, Slot, tuple[int, ...] | None]]:
    """The layers on flattened data whose module does not say so, or says other sizes: (channels, *spatial) if known."""
    if not is_model(config):  # a subclassed model, of which only the weights are known
        return
    flat: dict[str, Flat] = {}
    _Walk(flat).model(config, "", None)
    for layer, _, slot in found:
        if slot is None or layer.name not in flat or not _takes_inputs(slot, held):
            continue
        state, said = flat[layer.name], held.variables[slot.names[0]].flattened
        silent = not said and not is_marked(held.modules[slot.module]) and slot.shape[0] != state.channels
        if silent or (said and state.sizes and said != state.sizes):
            yield layer.name, slot, state.sizes


def _takes_inputs(slot: Slot, held: Holdings) -> bool:
    """Whether it has the inputs on its first axis, all on one."""
    axes = 2 if slot.role.rpartition("/")[2] == "kernel" else 1
    return len(slot.shape) == axes and is_of_inputs(held.variables[slot.names[0]])


def _advice(name: str, slot: Slot, sizes: tuple[int, ...] | None) -> str:
    module = f"model.get_submodule({slot.module!r})" if slot.module else "model"
    return f"{name!r}, in the port {slot.module or 'the model'}: kinit.flattened({module}, {sizes or _SIZES})"


def _last(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return (*sizes[1:], sizes[0])


class _Walk:
    """A way through a model that notes the layers on flattened data."""

    def __init__(self, flat: dict[str, Flat]) -> None:
        self._flat = flat

    def model(self, entry: Config, prefix: str, state: State) -> State:
        """What a model makes of inputs of this state."""
        config = entry["config"]
        if isinstance(config, list) or "input_layers" not in config:
            for part in config if isinstance(config, list) else config["layers"]:
                state = self._layer(part, prefix, [state], None)
            return state
        states: dict[str, list[State]] = {}
        for part in config["layers"]:
            calls = [list(inputs_of(call)) for call in part.get("inbound_nodes") or []]
            shapes = [next(shapes_in(call), None) for call in part.get("inbound_nodes") or []]
            given = [[_nth(states.get(name), k) for name, k in call] for call in calls]
            own = [self._layer(part, prefix, each, shape) for each, shape in zip(given, shapes, strict=True)]
            states[_name_of(part)] = own or [state]
        return next((_nth(states.get(name), k) for name, k in inputs_of(config.get("output_layers"))), None)

    def _layer(self, entry: Config, prefix: str, given: Sequence[State], shape: Any) -> State:
        """What a layer makes of its inputs; `shape` is that of the first, if the call tells it."""
        path, state = prefix + _name_of(entry), next((s for s in given if s), None)
        over_time = 0
        while entry.get("class_name") in ("TimeDistributed", "SpectralNormalization"):
            over_time += entry["class_name"] == "TimeDistributed"
            entry = entry["config"]["layer"]
        if is_model(entry):
            return self.model(entry, f"{path}/", state)
        kind, config = str(entry.get("class_name")), entry.get("config") or {}
        built = (entry.get("build_config") or {}).get("input_shape")
        shape = built or (shape[over_time:] if shape else None)
        if kind == "Concatenate" and isinstance(state, Flat) and len(given) > 1:
            return Flat(None)
        if kind in ("Dense", "EinsumDense", *_RECURRENT, *_BY_FEATURE) and isinstance(state, Flat):
            self._flat.setdefault(path, state)
            return state if kind in _BY_FEATURE else None
        return _after(kind, config, state, shape[1:] if shape else None)


def _after(kind: str, config: Config, state: State, shape: Sequence[int | None] | None) -> State:
    """What a layer of this kind makes of data of which more than one axis is left."""
    first = config.get("data_format") == "channels_first"
    if kind.startswith(_SPATIAL) and (rank := next((int(c) for c in kind if c.isdigit()), None)):
        places = tuple(map(str, range(rank)))
        filters = config.get("filters") or (state.channels if isinstance(state, Spatial) else None)
        return Spatial(("c", *places) if first else (*places, "c"), None if "Depthwise" in kind else filters)
    if not isinstance(state, Spatial):
        return None if kind.startswith(("Dense", "EinsumDense", "Reshape", *_FORGETFUL, *_RECURRENT)) else state
    if kind == "Flatten":
        moved = Spatial((*state.axes[1:], state.axes[0]), state.channels) if first else state
        return moved.flattened((*shape[1:], shape[0]) if first and shape else shape)
    if kind == "Permute":
        return Spatial(tuple(state.axes[i - 1] for i in config["dims"]), state.channels)
    if kind == "Reshape":
        return _reshaped(state, list(config.get("target_shape") or ()), shape)
    return None if kind.startswith((*_FORGETFUL, *_RECURRENT)) else state


def _reshaped(state: Spatial, target: Sequence[int], shape: Sequence[int | None] | None) -> State:
    """After a Reshape: flattened if the last axis is made of several; positions and channels apart concern nobody."""
    if len(target) == 1:
        return state.flattened(shape)
    sizes = [size for size in shape or () if size is not None]
    if not target or state.axes[-1] != "c":
        return None
    if len(sizes) != len(state.axes):
        return None if target[-1] == (state.channels or target[-1]) else Flat(None, state.channels)
    last = target[-1] if target[-1] != -1 else math.prod(sizes) // max(1, math.prod(target[:-1]))
    for count in range(2, len(sizes) + 1):
        if math.prod(sizes[-count:]) == last != sizes[-1]:
            return Spatial(state.axes[-count:], state.channels).flattened(sizes[-count:])
    return None


def _name_of(entry: Config) -> str:
    config = entry.get("config")
    return str(entry.get("name") or (config.get("name") if isinstance(config, Mapping) else None))


def _nth(states: Sequence[State] | None, k: int) -> State:
    return states[min(k, len(states) - 1)] if states else None


def shapes_in(call: Any) -> Iterator[list[int | None]]:
    """The shapes of the tensors in a call, as Keras 3 saves them."""
    if isinstance(call, Mapping):
        if call.get("class_name") == "__keras_tensor__":
            yield call["config"]["shape"]
        else:
            call = list(call.values())
    if isinstance(call, (list, tuple)):
        for value in call:
            yield from shapes_in(value)
