"""Small tensors drawn together, with the values that each key alone draws.

On the CPU in one pass over the counters of many keys, on accelerators in one launch for those of a dtype and law.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torch_kinit import shards, torch_internals
from torch_kinit.numerics import exact, threefry
from torch_kinit.numerics.exact import Scratch
from torch_kinit.streams import fused
from torch_kinit.streams.inverse import InverseCdf, inverse_cdf, is_central
from torch_kinit.streams.key import Key
from torch_kinit.streams.laws import Law
from torch_kinit.streams.pieces import SERIAL

SMALL = 1 << 13  # values up to which a draw is dispatch more than work


class _Draw(NamedTuple):
    tensor: Tensor
    key: threefry.Key
    inverse: InverseCdf


def joins(tensor: Tensor, law: Law) -> bool:
    """Whether `draw_together` can fill a small tensor from a law with others.

    On the CPU it can where the values are float32's, and no tail; on accelerators wherever a kernel can.
    """
    if tensor.device.type in fused.DEVICES:
        held = shards.local_of(tensor)
        return law.drawn and 0 < held.numel() <= SMALL and fused.fits_together(held)
    if not 0 < tensor.numel() <= SMALL or tensor.device.type != "cpu":
        return False
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    return is_central(law)


def draw_together(draws: Sequence[tuple[Tensor, Key, Law]]) -> None:
    """Fill each tensor, of those that `joins`, from its key and law, as `key.draw(tensor, law)` does."""
    if len(draws) == 1 or torch_internals.is_intercepted():
        alone = list(draws)
    else:
        on_cpu = [draw for draw in draws if draw[0].device.type not in fused.DEVICES]
        _draw_in_passes([_Draw(tensor, key.words, inverse_cdf(law, tensor.dtype)) for tensor, key, law in on_cpu])
        alone = _draw_in_launches([draw for draw in draws if draw[0].device.type in fused.DEVICES])
    for tensor, key, law in alone:
        key.draw(tensor, law)


def _draw_in_launches(draws: Sequence[tuple[Tensor, Key, Law]]) -> list[tuple[Tensor, Key, Law]]:
    """Draw tensors on accelerators; gives those that are to be drawn alone."""
    views, owners = [], []
    for draw in draws:
        tensor, key, law = draw
        inverse = inverse_cdf(law, tensor.dtype)
        for mine, index in shards.boxes(tensor, torch.empty(tensor.shape, device="meta")):
            views.append(fused.View(mine, index, key.words, inverse))
            owners.append(draw)
    return [owners[place] for place in fused.fill_together(views)]


def _draw_in_passes(draws: Sequence[_Draw]) -> None:
    """Draw tensors on the CPU."""
    with torch.no_grad():
        for normal in (False, True):
            for batch in _batches([draw for draw in draws if draw.inverse.normal == normal]):
                counts = [draw.tensor.numel() for draw in batch]
                for draw, values in zip(batch, torch.split(_values(batch, normal), counts), strict=True):
                    draw.tensor.copy_(values.view(draw.tensor.shape))


def _batches(draws: Sequence[_Draw]) -> Iterator[list[_Draw]]:
    """The draws in turn, as many at a time as torch works on with one thread."""
    batch: list[_Draw] = []
    count = 0
    for draw in draws:
        if batch and count + draw.tensor.numel() > SERIAL:
            yield batch
            batch, count = [], 0
        batch.append(draw)
        count += draw.tensor.numel()
    if batch:
        yield batch


def _values(batch: Sequence[_Draw], normal: bool) -> Tensor:
    """The values of all tensors of a batch, one after the other."""
    counts = [draw.tensor.numel() for draw in batch]
    numbers = zip(*(draw.inverse.numbers() for draw in batch), strict=True)
    factor, middle, scale, low, high, shift, least, most = (_repeated("f", each, counts) for each in numbers)
    bits = _bits([draw.key for draw in batch], counts)
    if normal:
        x = bits.float().mul_(factor).add_(middle).clamp_(low, high)
        scratch = Scratch(exact.BUFFERS, len(x), x.dtype)
        exact.erfinv_(x, max(draw.inverse.largest for draw in batch), scratch).mul_(scale).add_(shift)
    else:
        fraction = bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF).float().mul_(2.0**-23)
        x = fraction.mul_(factor).add_(middle).mul_(scale)
    return x.clamp_(least, most)


def _bits(keys: Sequence[threefry.Key], counts: Sequence[int]) -> Tensor:
    """32 random bits for the first counters of each key."""
    schedules = zip(*map(threefry.key_schedule, keys), strict=True)
    cipher = threefry.Cipher.of_many([_repeated("I", words, counts) for words in schedules])
    ramp = struct.pack(f"{max(counts)}i", *range(max(counts)))
    x1 = _joined((ramp[: 4 * count] for count in counts), torch.int32)
    x0, scratch = torch.zeros_like(x1), torch.empty_like(x1)
    cipher.encrypt_counters(x0, x1, scratch)
    return x0.bitwise_xor_(x1)


def _repeated(format_: str, numbers: Sequence[float], counts: Sequence[int]) -> Tensor:
    """Each number as often as its count says. torch's own repeating and indexing wait for all threads."""
    pieces = (struct.pack(format_, number) * count for number, count in zip(numbers, counts, strict=True))
    return _joined(pieces, torch.float32 if format_ == "f" else torch.int32)


def _joined(pieces: Iterable[bytes], dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(pieces)), dtype=dtype)
