"""Which elements of a distributed tensor this process holds: pure arithmetic over public attributes of DTensor.

torch's own helper, compute_local_shape_and_global_offset, is private, has changed its arguments several times, and is
wrong in torch 2.13 for uneven FSDP2 with tensor parallelism (pytorch issues 161368 and 167859).
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from torch_kinit import torch_internals

Range = tuple[int, int]  # from start up to, not including, stop


def is_distributed(value: object) -> bool:
    """Whether `value` is a DTensor; asked without importing torch.distributed."""
    return hasattr(value, "device_mesh") and hasattr(value, "placements")


def local_of(tensor: Tensor) -> Tensor:
    """The part of a DTensor that this process holds, to be written to; any other tensor itself."""
    if not is_distributed(tensor):
        return tensor
    with torch.no_grad():  # or it would be a copy in autograd's graph
        return tensor.to_local()  # type: ignore[attr-defined, no-any-return]


def boxes(tensor: Tensor, whole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of what this process holds of `tensor`, with the views of `whole`, of the global shape, in the same place.

    Of a meta tensor for `whole` the views' strides and offset tell the flat indices of the elements.
    """
    if not is_distributed(tensor):
        yield tensor, whole
        return
    distributed: Any = tensor
    local, coordinate = local_of(tensor), distributed.device_mesh.get_coordinate()
    if coordinate is None:  # nothing is held outside the mesh
        return
    held = ranges_of(tensor.shape, distributed.device_mesh.shape, coordinate, distributed.placements)
    lengths = [[stop - start for start, stop in along] for along in held]
    found = tuple(map(sum, lengths))
    if local.numel() != math.prod(found) or (local.numel() and found != tuple(local.shape)):
        raise ValueError(
            f"`tensor` is a DTensor of shape {tuple(tensor.shape)} that holds {tuple(local.shape)} here, where its "
            f"placements give {found}; initialize it before it is distributed."
        )
    positions = [itertools.accumulate(each, initial=0) for each in lengths]
    for box in itertools.product(*map(zip, positions, held)):
        mine, there = local, whole
        for axis, (position, (start, stop)) in enumerate(box):
            mine = mine.narrow(axis, position, stop - start)
            there = there.narrow(axis, start, stop - start)
        yield mine, there


def put(tensor: Tensor, whole: Tensor) -> Tensor:
    """Write to `tensor` its part of `whole`, a tensor of the global shape."""
    with torch.no_grad():
        for mine, there in boxes(tensor, whole):
            mine.copy_(there)
    return tensor


def gathered(tensor: Any) -> Tensor:
    """All of a DTensor, which its processes send each other; any other tensor itself."""
    whole: Tensor = tensor.full_tensor() if is_distributed(tensor) else tensor
    return whole


def permuted(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """A view of `tensor` with its axes in another order: torch 2.6's own, of a DTensor, forgets FSDP2's strides."""
    if not is_distributed(tensor):
        return tensor.permute(*axes)
    local, axes = local_of(tensor), [axis % tensor.ndim for axis in axes]
    if local.ndim != tensor.ndim:  # outside the mesh, where nothing is held
        return tensor
    there: Any = tensor
    with torch.no_grad():
        view: Tensor = there.from_local(
            local.permute(axes),
            there.device_mesh,
            [_moved(placement, axes) for placement in there.placements],
            run_check=False,
            shape=torch.Size(tensor.shape[axis] for axis in axes),
            stride=tuple(tensor.stride(axis) for axis in axes),
        )
    return view


def _moved(placement: Any, axes: Sequence[int]) -> Any:
    """A placement for the axes in that order."""
    dim, factor = sharding(placement)
    if dim is None:
        return placement
    there = axes.index(dim % len(axes))
    return type(placement)(there) if factor is None else type(placement)(there, split_factor=factor)


def whole_like(tensor: Tensor) -> Tensor:
    """A tensor of a DTensor's global shape, without values, on the CPU or on meta as the DTensor is."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta" if tensor.is_meta else "cpu")


def zero_row(tensor: Tensor, row: int) -> None:
    """Zero one row of `tensor`, where this process holds it."""
    rows = torch.arange(tensor.shape[0], device="cpu").view(-1, *[1] * (tensor.ndim - 1)).expand(tensor.shape)
    for mine, here in boxes(tensor, rows):
        for axis in range(1, here.ndim):
            here = here.narrow(axis, 0, min(1, here.shape[axis]))
        if here.numel():
            mine.masked_fill_((here == row % len(tensor)).to(mine.device), 0)


def reshard(model: Any) -> None:
    """Let FSDP2 keep shards again: after a forward its root holds copies of the whole, and writes to them are lost."""
    for module in model.modules():
        if is_fsdp2(module):
            module.reshard()


def is_fsdp2(module: Any) -> bool:
    """Whether FSDP2's fully_shard has been called on a module."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # imported by whoever has called it
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


Fill = TypeVar("Fill", bound=Callable[..., Tensor])


def by_the_whole(function: Fill) -> Fill:
    """Let an initializer that needs all of a tensor fill a DTensor: each process makes it whole and keeps its part."""

    @functools.wraps(function)
    def filling(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not is_distributed(tensor):
            return function(tensor, *args, **kwargs)
        return put(tensor, function(whole_like(tensor), *args, **kwargs))

    return filling  # type: ignore[return-value]


def ranges_of(
    shape: Sequence[int], mesh: Sequence[int], coordinate: Sequence[int], placements: Sequence[Any]
) -> list[list[Range]]:
    """For each axis of a tensor, the global indices that the process at a mesh's `coordinate` holds, in local order."""
    by_axis: dict[int, list[tuple[int, int, int | None]]] = {}
    for size, place, placement in zip(mesh, coordinate, placements, strict=True):
        dim, factor = sharding(placement)
        if dim is not None:
            by_axis.setdefault(dim % len(shape), []).append((size, place, factor))
    return [_along(length, by_axis.get(axis, [])) for axis, length in enumerate(shape)]


def sharding(placement: Any, name: str = "tensor") -> tuple[int | None, int | None]:
    """The axis of the tensor that a placement shards, if any, and a strided Shard's split factor; no summands."""
    if placement.is_replicate():
        return None, None
    factor = torch_internals.split_factor(placement)
    if factor is not None or type(placement).__name__ == "Shard":
        return placement.dim, factor
    raise ValueError(f"`{name}` has the placement {placement}; only Shard and Replicate can be initialized.")


def _along(length: int, shards: list[tuple[int, int, int | None]]) -> list[Range]:
    """What is left of one axis after the mesh's axes have split it, in turn from the first."""
    held, last = [(0, length)], []
    for i, (size, place, factor) in enumerate(shards):
        if factor is None:
            held = _take(held, size, place)
        elif factor == math.prod(other for other, _, _ in shards[i + 1 :]):
            last.append((size, place))  # FSDP2's, which splits what the axes after it have left
        else:
            held = _take_strided(held, size, place, factor)
    for size, place in reversed(last):
        held = _take(held, size, place)
    return held


def _take(held: list[Range], parts: int, which: int) -> list[Range]:
    """The `which`-th of `parts` pieces of the elements held, cut as torch.chunk does."""
    total = sum(stop - start for start, stop in held)
    piece = -(-total // parts)
    return _cut(held, which * piece, (which + 1) * piece)


def _take_strided(held: list[Range], parts: int, which: int, factor: int) -> list[Range]:
    """A strided Shard: `factor` pieces, of each of which the `which`-th of `parts` is held."""
    total = sum(stop - start for start, stop in held)
    piece = -(-total // factor)
    starts = range(0, total, piece) if piece else ()
    return [r for s in starts for r in _take(_cut(held, s, s + piece), parts, which)]


def _cut(held: list[Range], first: int, last: int) -> list[Range]:
    """Of the elements held, counted in order, those from `first` up to `last`."""
    kept, passed = [], 0
    for start, stop in held:
        low, high = max(first - passed, 0), min(last - passed, stop - start)
        if low < high:
            kept.append((start + low, start + high))
        passed += stop - start
    return kept
