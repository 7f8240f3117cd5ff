"""The outputs that Keras recorded beside a port's own: the first layer that is off, by how much, and why."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit.inspection.outputs.agreement import distance
from torch_kinit.inspection.outputs.first_off import Finding, first_off
from torch_kinit.inspection.outputs.layerwise import Batch, Layerwise, OutputRow
from torch_kinit.inspection.sharded import is_shared
from torch_kinit.keras.draws import Config
from torch_kinit.keras.matching import Place
from torch_kinit.keras.recorded import Recorded, recorded_in
from torch_kinit.keras.recording import MODES
from torch_kinit.keras.slots import Holdings
from torch_kinit.model.report import Table, as_html, as_text


@dataclass(frozen=True)
class OutputReport:
    """What a comparison of outputs found: a row a call of a layer, and of the first that is off, how far and why.

    `first_off` is the name of Keras' layer ("" for the model itself), `module` the path of the module that gives the
    wrong values ("" where it is none), `difference` the largest of two values, `mode` "eval" or "train".

    Example:
        >>> import keras, torch_kinit as kinit
        >>> from torch import nn
        >>> layers = [keras.Input((4,)), keras.layers.Dense(3, activation="tanh", name="head")]
        >>> keras_model = keras.Sequential(layers)
        >>> config = kinit.keras_config(keras_model, inputs=keras.ops.ones((2, 4)))
        >>> port = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid())
        >>> kinit.from_keras(port, keras_model)
        >>> found = kinit.compare(config, port).outputs
        >>> found.ok, found.first_off, found.module
        (False, 'head', '1')
        >>> print(found.cause, "|", found.mend)
        the port has the activation sigmoid where Keras has tanh | torch.tanh(x)
    """

    rows: tuple[OutputRow, ...]
    first_off: str | None = None
    module: str = ""
    mode: str = ""
    difference: float = 0.0
    cause: str = ""
    mend: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all outputs that are seen are Keras'."""
        return self.first_off is None

    def __str__(self) -> str:
        return "\n".join([*self._said(), as_text(*self._table())])

    def __repr__(self) -> str:
        return f"<OutputReport of {len(self.rows)} calls, {'equal' if self.ok else f'off from {self._layer()} on'}>"

    def _repr_html_(self) -> str:
        return as_html(*self._table(), notes=self._said())

    def _layer(self) -> str:
        return repr(self.first_off) if self.first_off else "the model's own outputs"

    def _said(self) -> list[str]:
        if self.ok:
            return [f"Outputs: equal in {len(self.rows)} calls of layers.", *self.notes]
        where = f" (in the port {self.module})" if self.module else ""
        first = f"Outputs: off from {self._layer()}{where} on, in {self.mode} mode, by up to {self.difference:.3g}."
        return [first, f"Cause: {self.cause}.", *([f"Mend: {self.mend}"] if self.mend else []), *self.notes]

    def _table(self) -> Table:
        rows = [
            [row.mode, row.layer or "(the model)", row.class_name, row.module or "-", row.state, *map(_short, numbers)]
            for row in self.rows
            for numbers in [(row.difference, row.scale)]
        ]
        return ["mode", "layer", "class", "module", "output", "difference", "largest value"], rows

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data that JSON can hold."""
        return {"ok": self.ok, **dataclasses.asdict(self), "difference": _finite(self.difference)}


def _short(number: float | None) -> str:
    return "-" if number is None else f"{number:.2g}"


def _finite(number: float) -> float | None:
    """A number that JSON has; a difference is infinite where the shapes are not the same."""
    return number if math.isfinite(number) else None


def recorded_outputs(config: Config, given: Any, inputs: Any) -> Recorded | None:
    """What a config has recorded, whose .npz is looked for beside the file that the config was `given` as."""
    is_path = isinstance(given, (str, os.PathLike)) and not str(given).lstrip().startswith("{")
    recorded = recorded_in(config, Path(given).parent if is_path else ".")
    if recorded is None and inputs is not None:
        raise ValueError(
            "`inputs` compares outputs, and this `keras_config` has none recorded: "
            "kinit.keras_config(keras_model, inputs=x) records them."
        )
    return recorded


def compare_outputs(
    recorded: Recorded, port: nn.Module, inputs: Any, found: Sequence[Place], held: Holdings
) -> OutputReport:
    """Run a port on the batch of a recording, and compare it with Keras layer by layer, in eval and in train mode.

    `inputs` are the batch as the port takes it, a tensor, a tuple, or a dict of keyword arguments; None for the
    recorded one. Where the port cannot take it, its channels are moved first. `found` are the places of Keras' weights.
    """
    _refuse_shares(port)
    _refuse_half(recorded, port)
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
    first, *moved = _batches(recorded, inputs, next(port.parameters(), None))
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


def _refuse_shares(port: nn.Module) -> None:
    """Refuse a port of which this process has a part: the search for a cause runs copies of its modules."""
    if is_shared(port):
        raise ValueError(
            "`port` is shared among processes (fully_shard or DTensors), and outputs are compared in one: compare it "
            "before it is shared. Without the recorded outputs, config.pop('outputs'), its arguments are compared here."
        )


def _refuse_half(recorded: Recorded, port: nn.Module) -> None:
    """Refuse what has no numbers, or rounds them so much that each layer would be off."""
    held = [*port.parameters(), *port.buffers()]
    if any(tensor.is_meta for tensor in held):
        raise ValueError(
            "`port` is on the meta device and has no outputs to compare; give it storage and weights first."
        )
    half = {
        str(tensor.dtype) for tensor in (*held, *recorded.arrays) if tensor.dtype in (torch.float16, torch.bfloat16)
    }
    if half:
        raise ValueError(
            f"Outputs in {', '.join(sorted(half))} are rounded too much to be compared: port.float() is for the port, "
            'keras.config.set_dtype_policy("float32") before the model is made for the recording.'
        )


def _batches(recorded: Recorded, inputs: Any, like: Tensor | None) -> Iterator[Batch]:
    """The batch as it was given or recorded, and with its channels first if that makes a difference."""
    own = [_placed(recorded.arrays[i], like) for i in recorded.inputs]
    several = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    args, kwargs = (
        ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(own) if inputs is None else several, {})
    )
    if inputs is not None:
        _refuse_others(own, [*args, *kwargs.values()], any_order=bool(kwargs))
    yield args, kwargs
    if any(_has_channels(x) for x in (*args, *kwargs.values())):
        yield tuple(map(_channels_first, args)), {key: _channels_first(x) for key, x in kwargs.items()}


def _placed(x: Tensor, like: Tensor | None) -> Tensor:
    """A recorded input on the port's device, in its precision."""
    if like is None:
        return x
    return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)


def _has_channels(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim > 2 and x.is_floating_point()


def _channels_first(x: Any) -> Any:
    return x.movedim(-1, 1).contiguous() if _has_channels(x) else x


def _refuse_others(recorded: Sequence[Tensor], given: Sequence[Any], *, any_order: bool) -> None:
    """Refuse another batch than the recorded one; the names of a port's arguments may come in `any_order`."""
    for i, keras in enumerate(recorded):
        ours = given[i] if i < len(given) else None
        if not isinstance(ours, Tensor):
            raise TypeError(
                f"`inputs` must hold {len(recorded)} tensors, as the port takes the batch that Keras' outputs were "
                f"recorded with; number {i} is {type(ours).__name__}."
            )
        far = distance(ours, keras)
        among = [distance(x, keras) for x in given if isinstance(x, Tensor)] if any_order else [far]
        if not any(other is not None and other.within(0.0) for other in among):
            by = "" if far is None else f", and differs by {far.largest:.3g}"
            raise ValueError(
                "`inputs` must be the batch that Keras' outputs were recorded with, in the port's layout or Keras': "
                f"number {i} has shape {tuple(ours.shape)}, the recorded one {tuple(keras.shape)}{by}. "
                "Without `inputs`, the recorded batch is taken."
            )
