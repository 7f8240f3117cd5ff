"""What a tensor's values tell of their law: sums, extremes, and a sample counted between edges, in one transfer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_kinit.shards import boxes, is_distributed, sharding

SAMPLE = 1 << 16  # the most values of a block that are counted between edges
_PIECE, _ROW = 1 << 20, 1 << 14  # values that stay in the cache for all sums; values summed in one accumulator
_SUM, _SQUARES, _LOW, _HIGH, _COUNTS = range(5)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was measured of a block of values.

    Attributes:
        count: how many values there are; `mean`, `low` and `high` are theirs.
        square: the mean square of their distances from `center`.
        edges: where a sample was counted, at equal distances, in float64; `below` has the share of it below each edge.
        sample: how many values were counted.
    """

    count: int
    mean: float
    square: float
    center: float
    low: float
    high: float
    edges: Tensor
    below: Tensor
    sample: int

    @property
    def std(self) -> float:
        """The standard deviation about their own mean."""
        return math.sqrt(max(0.0, self.square_about(self.mean)))

    @property
    def broken(self) -> bool:
        """Whether a value is NaN or infinite."""
        return not (math.isfinite(self.low) and math.isfinite(self.high))

    def square_about(self, point: float) -> float:
        """The mean square of the distances from `point`."""
        off = self.center - point
        return self.square + off * (2 * (self.mean - self.center) + off)


def measure(
    tensor: Tensor, edges: Tensor, *, blocks: int = 1, without: int | None = None, center: float = 0.0
) -> list[Evidence]:
    """Measure each of the equal blocks along the first axis of a tensor, without the row `without`.

    Extremes and sums are over all values. At most `SAMPLE` values of a block, evenly spaced with a step that has no
    factor in common with the tensor's sizes, are counted between `edges`. Of a DTensor each process measures its part;
    sums are then reduced among those that hold others. Nothing is moved but one small result.
    """
    rows = tensor.shape[0] if tensor.ndim else 1
    skipped = None if without is None or not rows else without % rows
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    there = edges.to(tensor.device, wide)
    found, counts = [], []
    for first, last in ((rows * i // blocks, rows * (i + 1) // blocks) for i in range(blocks)):
        left_out = skipped is not None and first <= skipped < last
        counts.append((last - first - left_out) * math.prod(tensor.shape[1:]))
        step = _step(counts[-1], tensor.shape)
        parts = [_flat(part) for part in _held(tensor, first, last, skipped)]
        found.append(_block([part for part in parts if part.numel()], there, step, center, wide))
    results = _reduced(torch.stack(found), tensor).tolist()
    return [_evidence(n, result, edges, center) for n, result in zip(counts, results, strict=True)]


def _evidence(count: int, result: Sequence[float], edges: Tensor, center: float) -> Evidence:
    sums = torch.tensor(result[_COUNTS:], dtype=torch.float64, device="cpu").cumsum(0)
    sample, many = int(sums[-1]), max(count, 1)
    return Evidence(
        count=count,
        mean=center + result[_SUM] / many,
        square=result[_SQUARES] / many,
        center=center,
        low=result[_LOW],
        high=result[_HIGH],
        edges=edges,
        below=sums[:-1] / max(sample, 1),
        sample=sample,
    )


def _step(count: int, sizes: Sequence[int]) -> int:
    """The distance between values of a sample: no multiple of a size's factor, or it would see some columns only."""
    step = -(-count // SAMPLE) or 1
    while any(math.gcd(step, size) > 1 for size in sizes):
        step += 1
    return step


def _held(tensor: Tensor, first: int, last: int, skipped: int | None) -> Iterator[Tensor]:
    """What this process holds of the rows from `first` up to `last`, but for one."""
    ranges = [(first, last)]
    if skipped is not None and first <= skipped < last:
        ranges = [(first, skipped), (skipped + 1, last)]
    whole = torch.empty(tensor.shape, device="meta")
    for mine, place in boxes(tensor.detach(), whole):
        if mine.ndim == 0 or not mine.numel():
            yield mine
            continue
        start = place.storage_offset() // place.stride(0)
        for low, high in ranges:
            begin, end = max(low - start, 0), min(high - start, len(mine))
            if begin < end:
                yield mine[begin:end]


def _flat(tensor: Tensor) -> Tensor:
    """The values in the order of the memory: a view unless there are gaps."""
    return tensor.permute(sorted(range(tensor.ndim), key=lambda axis: -tensor.stride()[axis])).reshape(-1)


def _block(parts: Sequence[Tensor], edges: Tensor, step: int, center: float, wide: torch.dtype) -> Tensor:
    """Sum, sum of squares, least, greatest and counts of the flat `parts`, in one tensor."""
    bins = edges.new_zeros(len(edges) + 1)
    totals = [edges.new_zeros(()), edges.new_zeros(()), edges.new_full((), math.inf), edges.new_full((), -math.inf)]
    for part in parts:
        for piece in torch.split(part, _PIECE):
            if center:
                piece = piece.to(wide) - center
            for rows in _rows(piece):
                totals[_SUM] = totals[_SUM] + rows.sum(1, dtype=wide).sum()
                totals[_SQUARES] = totals[_SQUARES] + torch.linalg.vector_norm(rows, dim=1, dtype=wide).square().sum()
        totals[_LOW] = torch.minimum(totals[_LOW], part.amin().to(wide))
        totals[_HIGH] = torch.maximum(totals[_HIGH], part.amax().to(wide))
        sample = part[::step]
        bins.scatter_add_(0, _places(sample, edges), torch.ones_like(sample, dtype=wide))
    return torch.cat([torch.stack(totals), bins])


def _places(sample: Tensor, edges: Tensor) -> Tensor:
    """How many edges are below each value."""
    if sample.dtype.itemsize < 4:  # whose values are so few that they must not fall on the wrong side
        return torch.bucketize(sample.to(edges.dtype).contiguous(), edges)
    last = len(edges) - 1  # equal distances: ten times as fast
    steps = (sample - edges[0]).mul_(last / (edges[-1] - edges[0])).add_(1)
    return steps.nan_to_num_().clamp_(0, last + 1).to(torch.int64)


def _rows(piece: Tensor) -> Iterator[Tensor]:
    """A flat piece as rows of equal length, and what is left as one: float32 sums of longer ones lose digits."""
    full = piece.numel() // _ROW * _ROW
    if full:
        yield piece[:full].view(-1, _ROW)
    if full < piece.numel():
        yield piece[full:].view(1, -1)


def _reduced(found: Tensor, tensor: Any) -> Tensor:
    """The same of all processes that hold parts of a DTensor."""
    if not is_distributed(tensor):
        return found
    from torch.distributed import ReduceOp, all_reduce

    sums = torch.cat([found[:, :_LOW], found[:, _COUNTS:]], 1)
    low, high = found[:, _LOW].contiguous(), found[:, _HIGH].contiguous()
    for axis, placement in enumerate(tensor.placements):
        if sharding(placement)[0] is not None:
            group = tensor.device_mesh.get_group(axis)
            all_reduce(sums, ReduceOp.SUM, group)
            all_reduce(low, ReduceOp.MIN, group)
            all_reduce(high, ReduceOp.MAX, group)
    return torch.cat([sums[:, :_LOW], low[:, None], high[:, None], sums[:, _LOW:]], 1)


def summed(number: Tensor, tensor: Any) -> Tensor:
    """A count of this process's part of a DTensor, summed over the others; of any other tensor the count itself."""
    if is_distributed(tensor):
        from torch.distributed import all_reduce

        for axis, placement in enumerate(tensor.placements):
            if sharding(placement)[0] is not None:
                all_reduce(number, group=tensor.device_mesh.get_group(axis))
    return number


def nonzero(tensor: Tensor, row: int) -> int:
    """How many values of a row are not zero."""
    row %= len(tensor)
    wrong = [(part != 0).sum() for part in _held(tensor, row, row + 1, None)]
    none = torch.zeros((), dtype=torch.int64, device=tensor.device)
    return int(summed(sum(wrong, none), tensor))
