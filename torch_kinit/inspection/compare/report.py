"""The report of `compare`: differences, notes and recorded outputs as text, HTML and data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch_kinit.inspection.compare.differences import Difference, Note
from torch_kinit.inspection.outputs.forward import OutputReport
from torch_kinit.model.report import Table, as_html, as_text


@dataclass(frozen=True)
class Comparison:
    """What `compare` found: the differences, what matters most first, and what `forward` or the loop must do.

    `layers` has the path of the modules of each Keras layer with weights, `laws` the law of each parameter, `outputs`
    the comparison of recorded outputs, an `OutputReport`; None where none are recorded.

    Example:
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> dense = {"class_name": "Dense", "config": {"units": 2}}
        >>> config = {"class_name": "Sequential", "config": {"layers": [dense]}}
        >>> found = kinit.compare(config, nn.Sequential(nn.Linear(3, 2)))
        >>> found.ok, found.differences, found.laws["0.weight"]
        (True, (), 'glorot_uniform')
    """

    differences: tuple[Difference, ...]
    notes: tuple[Note, ...]
    layers: dict[str, str]
    laws: dict[str, str]
    outputs: OutputReport | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no difference, of outputs neither."""
        return not self.differences and (self.outputs is None or self.outputs.ok)

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, width: int | None = None, *, color: bool = False) -> str:
        """The comparison as text: a table of `width`, by default the terminal's, and lines of torch to be pasted."""
        layers, number = len(self.layers), len(self.differences)
        said = [f"{_number(layers, 'layer')} with weights, {_number(number, 'difference')}."]
        if self.differences:
            header, rows = self._differences()
            said += [
                as_text(["", *header[:-1]], [[f"{i}.", *row[:-1]] for i, row in enumerate(rows, 1)], width, color=color)
            ]
            said += ["Mends:", *(f"{f'{i}.':<3} {d.mend}" for i, d in enumerate(self.differences, 1))]
        said += [str(self.outputs)] if self.outputs is not None else []
        lines = [f"  {note.layer}: {note.what}: {note.mend}" for note in self.notes]
        return "\n".join([*said, *(["Notes, on what modules do not show:", *lines] if lines else [])])

    def __repr__(self) -> str:
        return f"<Comparison of {len(self.layers)} layers, {len(self.differences)} differences>"

    def _repr_html_(self) -> str:
        notes = [[note.layer, note.what, note.mend] for note in self.notes]
        tables = [as_html(*self._differences())] if self.differences else ["<p>No differences.</p>"]
        tables += [self.outputs._repr_html_()] if self.outputs is not None else []
        return "".join([*tables, *([as_html(["layer", "not seen", "mend"], notes)] if notes else [])])

    def _differences(self) -> Table:
        rows = [[d.layer, d.module, d.what, d.keras, d.port, str(d.weight), d.mend] for d in self.differences]
        return ["layer", "module", "what", "Keras", "port", "effect on training", "mend"], rows

    def to_dict(self) -> dict[str, Any]:
        """The comparison as plain data that JSON can hold."""
        differences = [{**dataclasses.asdict(d), "weight": d.weight.text} for d in self.differences]
        notes = [dataclasses.asdict(note) for note in self.notes]
        outputs = None if self.outputs is None else self.outputs.to_dict()
        found = {"ok": self.ok, "differences": differences, "notes": notes, "layers": self.layers, "laws": self.laws}
        return {**found, "outputs": outputs}


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
