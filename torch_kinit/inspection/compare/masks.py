"""Which layers use the mask of an Embedding or Masking: a port has it in `forward`, or not at all."""

from __future__ import annotations

from collections.abc import Iterable

from torch_kinit.inspection.compare.differences import Note, effect
from torch_kinit.inspection.compare.keras_graph import Unit

_RECURRENT = ("LSTM", "GRU", "SimpleRNN")
_USE = {
    **dict.fromkeys(_RECURRENT, "skips masked steps: nn.utils.rnn.pack_padded_sequence"),
    "GlobalAveragePooling1D": "takes the mean of valid steps",
    "MultiHeadAttention": "ignores masked steps: key_padding_mask",
    **dict.fromkeys(("Attention", "AdditiveAttention"), "ignores masked steps"),
    "Softmax": "is over valid steps",
    "BatchNormalization": "has the statistics of valid steps",
}
_STOP = ("Flatten", "Reshape", "Permute", "GlobalMaxPooling1D", "Lambda", "Dot")


def mask_notes(units: Iterable[Unit]) -> list[Note]:
    """A note for each layer that uses a mask, and for an output that has one."""
    masked: dict[str, bool] = {}
    found: list[Note] = []
    for unit in units:
        source = unit.get("mask_zero") is True or unit.class_name == "Masking"
        incoming = any(masked.get(given.name) for given in unit.inputs)
        if incoming and (use := _USE.get(unit.class_name)):
            found.append(Note(unit.name, "uses the mask", f"{use}, in `forward` (missing: {effect('mask')})"))
        masked[unit.name] = source or (incoming and _passes(unit))
        if masked[unit.name] and unit.is_output:
            found.append(Note(unit.name, "masks the loss", "take the mean over valid steps"))
    return found


def _passes(unit: Unit) -> bool:
    """Whether the outputs have the mask of the inputs."""
    if unit.class_name in _RECURRENT:
        return bool(unit.get("return_sequences"))
    spatial = unit.class_name[-2:] in ("1D", "2D", "3D") or unit.class_name.endswith("Transpose")
    dropout = unit.class_name.startswith("SpatialDropout")
    return unit.class_name not in _STOP and (dropout or not spatial)
