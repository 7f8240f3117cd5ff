"""The numbers of `uniform_` in float32 from torch's CPU generators, two at a time of 64 random bits, in less time.

torch draws them one after the other, 32 bits each of its Mersenne Twister. `random_` on int64 takes 64 bits a call, and
what is left is arithmetic that threads share. Whether this torch makes the same numbers of the same bits is tried once
in a process.
"""

from __future__ import annotations

import functools
import math
import struct
import time

import torch
from torch import Tensor

from torch_kinit.numerics.exact import Functions
from torch_kinit.streams.inverse import DrawUniform, InverseCdf
from torch_kinit.streams.pieces import is_plain

_PIECE = 1 << 20  # values at a time, of which the bits take 4 MiB
_TRIAL = 1 << 18  # values that `uniform_`, and then the pairs, draw to see how long that takes
_FRACTIONS = 0x00FFFFFF_00FFFFFF  # of two times 32 bits, those that a float32 from 0 to 1 is made of
_LEAST_WIDTH = 2.0**-100  # of which a 2**24-th is no subnormal number
_PATIENCE = 1.0  # pieces whose time may be lost against `uniform_`'s way before that draws the rest


class Pairs:
    """Fills tensors from an inverse CDF, each a stretch of one draw, in pairs as long as that is the faster way."""

    def __init__(self, generator: torch.Generator | None, functions: Functions) -> None:
        self._generator, self._functions = generator, functions
        self._bits = torch.empty(_PIECE // 2, dtype=torch.int64, device="cpu")
        self._plain = math.inf  # seconds of `uniform_` for a value
        self._lost = 0.0

    def fill(self, out: Tensor, inverse: InverseCdf) -> None:
        """Fill `out`, float32 and in one line on the CPU."""
        first, size = 0, _PIECE
        if self._plain == math.inf:
            first, size = _TRIAL + out.data_ptr() // 4 % 2, _TRIAL
            self._fill_piece(out[:first], inverse, self._timed)
        fits = (out.storage_offset() + first) % 2 == 0 and out[first:].data_ptr() % 8 == 0
        while fits and out.numel() - first >= _PIECE and self._lost < _PATIENCE:
            self._fill_piece(out[first : first + size], inverse, self._in_pairs)
            first, size = first + size, _PIECE
        if first < out.numel():
            inverse.fill(out[first:], self._uniform, self._functions)

    def _fill_piece(self, piece: Tensor, inverse: InverseCdf, draw: DrawUniform) -> None:
        start = time.perf_counter()
        inverse.fill(piece, draw, self._functions)
        # The inverse error function and its like take half as long again in large passes.
        plain = piece.numel() * self._plain * (1.5 if inverse.normal else 1.0)
        self._lost = max(self._lost + (time.perf_counter() - start) / plain - 1, -_PATIENCE)

    def _uniform(self, out: Tensor, low: float, high: float) -> None:
        out.uniform_(low, high, generator=self._generator)

    def _timed(self, out: Tensor, low: float, high: float) -> None:
        start = time.perf_counter()
        self._uniform(out, low, high)
        self._plain = (time.perf_counter() - start) / out.numel()

    def _in_pairs(self, out: Tensor, low: float, high: float) -> None:
        _draw(out, self._bits[: out.numel() // 2], low, high, self._generator)


def pairs(tensor: Tensor, inverse: InverseCdf, generator: torch.Generator | None, functions: Functions) -> Pairs | None:
    """What fills `tensor`, or float32 values for it, faster than `uniform_`; None where that does not pay."""
    device = tensor.device if generator is None else generator.device
    if device.type != "cpu" or not is_plain(tensor) or tensor.numel() < 4 * _PIECE or torch.get_num_threads() == 1:
        return None
    works = _stays_below(inverse.low, inverse.high) and _are_those_of_uniform()
    return Pairs(generator, functions) if works else None


def _stays_below(low: float, high: float) -> bool:
    """Whether all numbers, once rounded, are below `high`, in whose place some of torch's versions put `low`."""
    first, last, width = _numbers(low, high)
    (word,) = struct.unpack("i", struct.pack("f", last))
    (before,) = struct.unpack("f", struct.pack("i", word - 1 if word > 0 else word + 1 if word < 0 else -(2**31) + 1))
    greatest = first + width * (1 - 2.0**-24)
    return width > _LEAST_WIDTH and greatest < before + 0.49 * (last - before)


def _numbers(low: float, high: float) -> tuple[float, float, float]:
    """The bounds, and how far they are apart, in float32."""
    first, last = struct.unpack("2f", struct.pack("2f", low, high))
    (width,) = struct.unpack("f", struct.pack("f", last - first))
    return first, last, width


def _draw(out: Tensor, bits: Tensor, low: float, high: float, generator: torch.Generator | None) -> None:
    """Fill `out` with numbers from low to high, each of 24 bits, that `uniform_` gives; `bits` has half as many."""
    first, _, width = _numbers(low, high)
    bits.random_(-(2**63), None, generator=generator)
    bits.bitwise_and_(_FRACTIONS)
    upper = torch.bitwise_right_shift(bits, 32, out=out.view(torch.int64))  # the number that comes first
    torch.add(upper, bits, alpha=1 << 32, out=bits)
    out.copy_(bits.view(torch.int32))
    torch.add(torch.tensor(first, dtype=torch.float32, device="cpu"), out, alpha=width * 2.0**-24, out=out)


@functools.cache
def _are_those_of_uniform() -> bool:
    """Whether `_draw` leaves the values and the generator's state that `uniform_` leaves."""
    generators = [torch.Generator().manual_seed(20_111) for _ in range(2)]
    with torch.inference_mode(False):
        ours, others = (torch.empty(1 << 13, device="cpu", dtype=torch.float32) for _ in range(2))
        for count in (1 << 13, 4090):
            bits = torch.empty(count // 2, dtype=torch.int64, device="cpu")
            _draw(ours[:count], bits, -0.3, 0.7, generators[0])
            others[:count].uniform_(-0.3, 0.7, generator=generators[1])
    same = torch.equal(ours.view(torch.int32), others.view(torch.int32))
    return same and torch.equal(*(generator.get_state() for generator in generators))
