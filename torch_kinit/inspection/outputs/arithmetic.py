"""Arithmetic between layers, which is not recorded: sums, steps and multiples, seen in the values of arrays."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torch_kinit.inspection.outputs.agreement import as_float
from torch_kinit.keras.recorded import Call

_LATEST = 16  # arrays before a layer of which its input may be made
_FEWEST = 4  # values of which a number of times is no coincidence
_EQUAL = 1e-6  # of the largest value


def with_arithmetic(calls: Sequence[Call], arrays: Sequence[Tensor], inputs: Sequence[int]) -> list[Call]:
    """The calls, and before each the sum, step or multiple of earlier arrays that its inputs are."""
    found: list[Call] = []
    names = dict.fromkeys(inputs, "inputs")
    for call in calls:
        for ref in call.inputs if call.layer else call.outputs:
            if ref not in names and (made := _made(ref, arrays, names)):
                found.append(made)
                names[ref] = made.layer
        names |= {ref: call.layer for ref in call.outputs if ref not in names}
        found.append(call)
    return found


def _made(ref: int, arrays: Sequence[Tensor], names: dict[int, str]) -> Call | None:
    """What an array is of those before it."""
    wanted = arrays[ref]
    if not wanted.is_floating_point() or not wanted.numel():
        return None
    latest = list(names)[: -_LATEST - 1 : -1]
    call = Call("", "", {}, True, (), (ref,), {}, False)
    for sources, kind, config, written in _ways(wanted, latest, arrays):
        name = written.format(*(names[source] for source in sources))
        return dataclasses.replace(call, layer=name, class_name=kind, config=config, inputs=sources)
    return None


Way = tuple[tuple[int, ...], str, dict[str, float], str]


def _ways(wanted: Tensor, latest: Sequence[int], arrays: Sequence[Tensor]) -> Iterator[Way]:
    """Each way in which an array is made of others: these, the class that computes it, its config, and in words."""
    floats = {k: as_float(arrays[k]) for k in latest if arrays[k].is_floating_point()}
    target = as_float(wanted)
    for k, x in floats.items():
        if x.ndim == target.ndim + 1 and x.shape[:1] + x.shape[2:] == target.shape:
            for step in (0, -1):
                if _is(x[:, step], target):
                    yield (k,), "GetItem", {"step": step}, f"{{}}[:, {step}]"
        if x.shape == target.shape and target.numel() >= _FEWEST and (scale := _ratio(x, target)) is not None:
            yield (k,), "Rescaling", {"scale": scale, "offset": 0.0}, f"{{}} * {scale:.4g}"
    for a, b in itertools.combinations(floats, 2):
        for kind, written in (("Add", "{} + {}"), ("Multiply", "{} * {}")):
            pair = floats[b], floats[a]  # in Keras' order
            if _fits(pair, target) and _is(pair[0] + pair[1] if kind == "Add" else pair[0] * pair[1], target):
                yield (b, a), kind, {}, written
    for a, b in itertools.permutations(floats, 2) if target.numel() >= _FEWEST else ():
        if _fits((floats[a], floats[b]), target):
            scale = _ratio(floats[b].expand_as(target), target - floats[a])
            if scale is not None and not math.isclose(scale, 1, rel_tol=_EQUAL):
                yield (a, b), "AddScaled", {"scale": scale}, f"{{}} + {scale:.4g} * {{}}"


def _fits(pair: tuple[Tensor, Tensor], target: Tensor) -> bool:
    try:
        return bool(torch.broadcast_shapes(pair[0].shape, pair[1].shape) == target.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False


def _is(found: Tensor, target: Tensor) -> bool:
    return float((found - target).abs().max()) <= _EQUAL * float(target.abs().max())


def _ratio(x: Tensor, target: Tensor) -> float | None:
    """The number that `target` is so many times `x`."""
    at = int(x.abs().argmax())
    base = float(x.reshape(-1)[at])
    scale = float(target.reshape(-1)[at]) / base if base else math.nan
    return scale if math.isfinite(scale) and scale != 0 and _is(x * scale, target) else None
