"""Philox-4x32-10, and how TensorFlow makes its key from Keras' seed.

The generator: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011 (Random123). A call
turns a counter of four 32-bit words into four random words; calls do not depend on each other.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Key = tuple[int, int]

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # what the key grows by from round to round
_WORD = 0xFFFFFFFF
# TensorFlow scrambles a seed with one call under this key (GenerateKey, stateless_random_ops.cc).
_SCRAMBLE = (0x3EC8F720, 0x02461E29)
# Keras hands TensorFlow the seed modulo tf.int32.max - 1.
_MODULUS = 2**31 - 2


class Source(NamedTuple):
    """A stream: its key, and words 2 and 3 of every counter. Words 0 and 1 count its calls."""

    key: Key
    high: tuple[int, int]


def block(key: Key, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The four words of one call."""
    c0, c1, c2, c3 = counter
    for k0, k1 in _round_keys(key):
        a, b = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ k0, b & _WORD, a >> 32 ^ c3 ^ k1, a & _WORD
    return c0, c1, c2, c3


def stream(seed: int) -> Source:
    """The stream of Keras' integer `seed`, any int64, on TensorFlow."""
    k0, k1, h0, h1 = block(_SCRAMBLE, (seed % _MODULUS, 0, 0, 0))
    return Source((k0, k1), (h0, h1))


def calls(first: int, count: int, stride: int = 1) -> Tensor:
    """The call numbers first, first + stride, ..., `count` of them."""
    return torch.arange(count, dtype=torch.int64, device="cpu").mul_(stride).add_(first)


def words(source: Source, calls: Tensor) -> tuple[Tensor, Tensor]:
    """What the calls of these int64 numbers give: words 0 and 2, and words 1 and 3, as (2, calls) int64 tensors.

    A number's lower and upper half are words 0 and 1 of its counter.
    """
    even, odd, product = (torch.empty(2, calls.numel(), dtype=torch.int64, device="cpu") for _ in range(3))
    torch.bitwise_and(calls, _WORD, out=even[0])
    torch.bitwise_right_shift(calls, 32, out=odd[0])
    even[1], odd[1] = source.high
    for key in torch.tensor(_round_keys(source.key), device="cpu").view(_ROUNDS, 2, 1):
        # The products wrap around at 64 bits, and only `even` is cleared of what stands above 32.
        torch.mul(even[0], _MULTIPLIERS[0], out=product[1])
        torch.mul(even[1], _MULTIPLIERS[1], out=product[0])
        torch.bitwise_right_shift(product, 32, out=even)
        even.bitwise_xor_(odd).bitwise_xor_(key).bitwise_and_(_WORD)
        odd, product = product, odd
    return even, odd.bitwise_and_(_WORD)


def _round_keys(key: Key) -> list[Key]:
    return [((key[0] + n * _WEYL[0]) & _WORD, (key[1] + n * _WEYL[1]) & _WORD) for n in range(_ROUNDS)]
