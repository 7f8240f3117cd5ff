"""What of a module's outputs can be a Keras layer's: whole, a state or step of a recurrent one, a crop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torch_kinit.inspection.outputs.agreement import as_float
from torch_kinit.inspection.outputs.keras_functions import cropped
from torch_kinit.inspection.outputs.trace import Event
from torch_kinit.layers.flatten import sizes_of

WHOLE = "output"
BOTH_HALVES = "torch.cat([h[-2], h[-1]], -1)"
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MOST_CROPPED = 4  # places by which a convolution's output may be larger than Keras'


def views(event: Event, shape: tuple[int, ...]) -> Mapping[str, Tensor]:
    """The outputs of a module, and parts of them that can have this shape in Keras, by how torch writes them."""
    found = {f"{WHOLE} {k}" if k else WHOLE: as_float(tensor) for k, tensor in enumerate(event.outputs)}
    module = event.module
    if isinstance(module, _CONVS) and WHOLE in found:
        found |= _crops(found[WHOLE], shape)
    if isinstance(module, nn.RNNBase) and event.outputs[0].ndim == 3:
        out = found[WHOLE] if module.batch_first else found[WHOLE].transpose(0, 1)
        found |= {"out[:, -1]": out[:, -1], "out[:, 0]": out[:, 0], "out.mean(1)": out.mean(1)}
        if len(event.outputs) > 1:
            state = as_float(event.outputs[1])
            found |= {f"h[{k}]": state[k] for k in range(-1, len(state) - 1)}
            if module.bidirectional:
                found[BOTH_HALVES] = torch.cat([state[-2], state[-1]], -1)
    return found


def _crops(out: Tensor, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """The parts of a convolution's output that have Keras' sizes, where it is larger."""
    if len(shape) != out.ndim:
        return {}
    for sizes in (shape[1:-1], shape[2:]):
        spare = [n - size for n, size in zip(out.shape[2:], sizes, strict=True)]
        if min(spare) >= 0 and 0 < max(spare) <= _MOST_CROPPED:
            found = {}
            for starts in itertools.product(*(range(n + 1) for n in spare)):
                written = ", ".join(f"{a}:{a + n}" for a, n in zip(starts, sizes, strict=True))
                found[f"y[..., {written}]"] = cropped(out, starts, sizes)
            return found
    return {}


def unflattened(found: Tensor, module: nn.Module | None) -> Tensor:
    """The inputs of a layer that was said to follow a Flatten, in Keras' order."""
    sizes = sizes_of(module) if module is not None else None
    if sizes is None or found.shape[-1:] != (math.prod(sizes),):
        return found
    return found.reshape(*found.shape[:-1], *sizes).movedim(found.ndim - 1, -1).flatten(found.ndim - 1)
