"""What a config tells of training: what is frozen, the second bias, penalties, and what a call or a loop must do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from torch_kinit.inspection.activations import plain
from torch_kinit.inspection.compare.differences import MEASURED, Difference, Note, effect
from torch_kinit.inspection.compare.fields import base_of
from torch_kinit.inspection.compare.keras_graph import Unit
from torch_kinit.inspection.compare.port_order import Item
from torch_kinit.keras.slots import Holdings, Slot
from torch_kinit.shards import local_of

_PENALTIES = ("regularizer", "constraint")


def check_training(unit: Unit, items: Sequence[Item], slots: Sequence[Slot], held: Holdings) -> list[Difference | Note]:
    """What is trained on both sides, and a norm that is frozen."""
    found: list[Difference | Note] = []
    tensors = {name: held.targets[name].tensor for slot in slots for name in slot.names}
    trained = {name: t.requires_grad for name, t in tensors.items() if isinstance(t, nn.Parameter)}
    wanted = unit.get("trainable", True) is not False and not any(
        c.get("trainable") is False for c in unit.wrappers.values()
    )
    if others := [name for name, own in trained.items() if own != wanted]:
        mend = f"{items[0].code}.requires_grad_({wanted})"
        port = f"requires_grad={not wanted} of {others[0]}"
        found.append(_trained(unit, items[0], "trainable", f"trainable={wanted}", port, "trained", mend))
    frozen = not wanted and base_of(unit.class_name) == "BatchNormalization"
    mend = f"{items[0].code}.eval()  # after each port.train()"
    if frozen and not items[0].module.training:
        found.append(Note(unit.name, "trainable=False: always in eval mode", mend))
    elif frozen:
        keras, port = "trainable=False: moving statistics, not the batch's", "training=True"
        found.append(_trained(unit, items[0], "trainable", keras, port, "frozen_norm", mend))
    return [*found, *_check_second_bias(unit, items, slots, held)]


def _trained(unit: Unit, item: Item, what: str, keras: str, port: str, weight: str, mend: str) -> Difference:
    return Difference(unit.name, item.path, what, keras, port, MEASURED[weight], mend)


def _check_second_bias(unit: Unit, items: Sequence[Item], slots: Sequence[Slot], held: Holdings) -> list[Difference]:
    found = []
    for name in dict.fromkeys(slot.added for slot in slots if slot.added):
        tensor = held.targets[name].tensor
        zero = tensor.device.type == "meta" or not bool(torch.count_nonzero(local_of(tensor.detach())))
        if tensor.requires_grad or not zero:
            path, _, own = name.rpartition(".")
            code = next(item.code for item in items if item.path == path)
            keras, port = "one bias", f"{own}: {'trained' if tensor.requires_grad else 'not zero'}"
            mend = f"nn.init.zeros_({code}.{own}).requires_grad_(False)"
            found.append(_trained(unit, items[0], "second bias", keras, port, "second_bias", mend))
    return found


def notes_of(unit: Unit) -> list[Note]:
    """What a layer's config tells that no module can hold: penalties, constraints, states, masks of a call."""
    found = []
    for config in (unit.config, *unit.wrappers.values()):
        for key, value in config.items():
            if value and key.endswith(_PENALTIES) and not key.startswith("backward"):
                found.append(Note(unit.name, f"{key} {_written(value)}", _penalty(key, value)))
    if unit.arguments.get("use_causal_mask"):
        mask = "nn.Transformer.generate_square_subsequent_mask(length)"
        found.append(Note(unit.name, "use_causal_mask=True", f"attn_mask={mask} in `forward`"))
    if "SpectralNormalization" in unit.wrappers:
        what = "each step of training writes the divided kernel back, and eval mode takes it as it is"
        found.append(Note(unit.name, what, "torch keeps the kernel undivided, and divides in eval mode as well"))
    if unit.get("return_sequences") is False and "Bidirectional" in unit.wrappers:
        mend = f"torch.cat([h[-2], h[-1]], 1) of the last states h, not out[:, -1] ({effect('last_step')})"
        found.append(Note(unit.name, "Bidirectional gives the last state of each direction", mend))
    elif unit.get("return_state"):
        found.append(Note(unit.name, "return_state=True", "torch returns the states beside the outputs"))
    if unit.class_name == "Attention" and not unit.get("use_scale"):
        found.append(Note(unit.name, "scores without a scale", "F.scaled_dot_product_attention(..., scale=1.0)"))
    if unit.class_name == "Concatenate" and unit.get("axis", -1) == -1 and unit.shape and len(unit.shape) > 3:
        found.append(Note(unit.name, "joins channels, Keras' last axis", "torch.cat(tensors, 1)"))
    if unit.class_name == "Permute":
        found.append(Note(unit.name, f"Permute {unit.get('dims')}", "permute after the change of layout"))
    return found


def _written(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    given = ", ".join(f"{k}={plain(v)!r}" for k, v in (value.get("config") or {}).items())
    return f"{value.get('class_name')}({given})"


def _penalty(key: str, value: Any) -> str:
    if key.endswith("constraint"):
        return "apply it to the weight after each step"
    l2 = (value.get("config") or {}).get("l2") if isinstance(value, dict) else None
    plain = f"; with plain SGD weight_decay={2 * l2:g} is the same" if isinstance(l2, float) else ""
    return f"add it to the loss (missing: {effect('penalty')}){plain}"
