"""The outputs that Keras recorded beside a port's own: the first layer that is off, by how much, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from torch_kinit.inspection.agreement import distance
from torch_kinit.inspection.first_off import Finding, first_off
from torch_kinit.inspection.layerwise import Batch, Layerwise, OutputRow
from torch_kinit.keras.configs import load_config
from torch_kinit.keras.matching import Modules, Place, places
from torch_kinit.keras.recorded import Recorded, recorded_in
from torch_kinit.keras.recording import MODES
from torch_kinit.keras.saved_model import Model
from torch_kinit.keras.slots import Holdings, holdings
from torch_kinit.layers.variable import Options


@dataclass(frozen=True)
class OutputReport:
    """What a comparison of outputs found: a row a call of a layer, and of the first that is off, why it is."""

    rows: tuple[OutputRow, ...]
    first_off: str | None = None  # the name of Keras' layer, "" for the model itself; None if all are equal
    module: str = ""  # the module of the port that gives the wrong values, "" where it is none
    mode: str = ""
    difference: float = 0.0
    cause: str = ""
    mend: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.first_off is None


def forward_report(
    keras_config: Any, port: nn.Module, inputs: Any, modules: Modules | None = None, *, depthwise: bool = True
) -> OutputReport:
    """`compare_outputs` for a config as it was given, or in the .json at a path, and its places by `modules`."""
    config = load_config(keras_config, seeds=False)
    is_path = isinstance(keras_config, (str, os.PathLike)) and not str(keras_config).lstrip().startswith("{")
    recorded = recorded_in(config, Path(keras_config).parent if is_path else ".")
    if recorded is None:
        raise ValueError(
            "`inputs` compares outputs, and this `keras_config` has none recorded: "
            "kinit.keras_config(keras_model, inputs=x) records them."
        )
    held = holdings(port, Options(depthwise=depthwise))
    return compare_outputs(recorded, port, inputs, places(Model(config).layers, held, modules), held)


def compare_outputs(
    recorded: Recorded, port: nn.Module, inputs: Any, found: Sequence[Place], held: Holdings
) -> OutputReport:
    """Run a port on the batch of a recording, and compare it with Keras layer by layer, in eval and in train mode.

    `inputs` are the batch as the port takes it, a tensor, a tuple, or a dict of keyword arguments; None for the
    recorded one. Where the port cannot take it, its channels are moved first. `found` are the places of Keras' weights.
    """
    notes = [f"Keras' layer {name!r} was not recorded: {why}" for name, why in recorded.left_out.items()]
    batch, rows, finding = _in_eval_mode(recorded, port, inputs, found, held)
    if finding is None:
        more, finding = first_off(Layerwise(recorded, port, batch, found, held, MODES[1]))
        rows = [*rows, *more]
    if finding is None:
        return OutputReport(tuple(rows), notes=tuple(notes))
    mode = rows[-1].mode
    own = (finding.layer, finding.module, mode, finding.difference, finding.cause, finding.mend)
    return OutputReport(tuple(rows), *own, tuple(notes))


def _in_eval_mode(
    recorded: Recorded, port: nn.Module, inputs: Any, found: Sequence[Place], held: Holdings
) -> tuple[Batch, list[OutputRow], Finding | None]:
    """The batch that the port takes, the rows, and what is off: with the channels where they lead further."""
    first, *moved = _batches(recorded, inputs)
    try:
        rows, finding = first_off(Layerwise(recorded, port, first, found, held, MODES[0]))
    except Exception as error:  # the port's own, of a shape that it does not take
        for batch in moved:
            try:
                return batch, *first_off(Layerwise(recorded, port, batch, found, held, MODES[0]))
            except Exception as second:
                error.add_note(f"With the channels first: {second}")
        raise
    if finding is None or not moved:
        return first, rows, finding
    try:
        others, other = first_off(Layerwise(recorded, port, moved[0], found, held, MODES[0]))
    except Exception:  # it takes the batch as it is
        return first, rows, finding
    if other is not None and other.position <= finding.position:
        return first, rows, finding
    if inputs is None:
        return moved[0], others, other
    cause, mend = "the channels of the inputs are last, and the port takes them first", "x.movedim(-1, 1)"
    position, layer, module, size = finding.position, finding.layer, finding.module, finding.difference
    return first, rows, Finding(position, layer, module, size, cause, mend)


def _batches(recorded: Recorded, inputs: Any) -> Iterator[Batch]:
    """The batch as it was given or recorded, and with its channels first if that makes a difference."""
    own = [recorded.arrays[i] for i in recorded.inputs]
    several = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    args, kwargs = (
        ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(own) if inputs is None else several, {})
    )
    if inputs is not None:
        _refuse_others(own, [*args, *kwargs.values()])
    yield args, kwargs
    if any(_has_channels(x) for x in (*args, *kwargs.values())):
        yield tuple(map(_channels_first, args)), {key: _channels_first(x) for key, x in kwargs.items()}


def _has_channels(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim > 2 and x.is_floating_point()


def _channels_first(x: Any) -> Any:
    return x.movedim(-1, 1).contiguous() if _has_channels(x) else x


def _refuse_others(recorded: Sequence[Tensor], given: Sequence[Any]) -> None:
    """Refuse another batch than the recorded one."""
    for i, keras in enumerate(recorded):
        ours = given[i] if i < len(given) else None
        if not isinstance(ours, Tensor):
            raise TypeError(
                f"`inputs` must hold {len(recorded)} tensors, as the port takes the batch that Keras' outputs were "
                f"recorded with; number {i} is {type(ours).__name__}."
            )
        far = distance(ours, keras)
        if far is None or not far.within(0.0):
            by = "" if far is None else f", and differs by {far.largest:.3g}"
            raise ValueError(
                "`inputs` must be the batch that Keras' outputs were recorded with, in the port's layout or Keras': "
                f"number {i} has shape {tuple(ours.shape)}, the recorded one {tuple(keras.shape)}{by}. "
                "Without `inputs`, the recorded batch is taken."
            )
