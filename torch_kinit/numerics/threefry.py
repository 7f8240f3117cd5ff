"""Threefry-2x32 of 20 rounds, laid out as JAX does: the value at flat index i is a function of (key, i) alone.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011; the counters' order is
jax.random's with `jax_threefry_partitionable` on, its default. Words are unsigned in Python ints and int32 of the
same bits in tensors, since torch has no shift or sum of uint32 on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Key = tuple[int, int]

_MASK = 0xFFFFFFFF
PARITY = 0x1BD11BDA
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of the even and the odd groups of four rounds


class Cipher:
    """The rounds of one key, in place. Their constants are tensors: torch takes twice as long to dispatch a number."""

    def __init__(self, key: Key) -> None:
        self._schedule = schedule = key_schedule(key)
        added = [(schedule[(g + 1) % 3], schedule[(g + 2) % 3] + g + 1) for g in range(5)]
        constants = [c for by in ROTATIONS[0] + ROTATIONS[1] for c in (32 - by, (1 << by) - 1)]
        constants += [word for pair in added for word in pair]
        tensors = torch.tensor(constants, dtype=torch.int64, device="cpu").int().unbind()
        shifts = list(zip(tensors[:16:2], tensors[1:16:2], ROTATIONS[0] + ROTATIONS[1], strict=True))
        self._shifts = shifts[:4], shifts[4:]
        self._added = list(zip(tensors[16::2], tensors[17::2], strict=True))
        self._first: Sequence[Tensor | int] = signed(schedule[0]), signed(schedule[1])

    @classmethod
    def of_many(cls, words: Sequence[Tensor]) -> Cipher:
        """The rounds of a key for each counter: the three tensors have the words of its `key_schedule`."""
        cipher = cls((0, 0))
        cipher._first = words[:2]
        cipher._added = [(words[(g + 1) % 3], words[(g + 2) % 3] + (g + 1)) for g in range(5)]
        return cipher

    def encrypt(self, start: int, x0: Tensor, x1: Tensor, scratch: Tensor) -> None:
        """Write the words of the counters from `start` on, at most 2**31, into `x0` and `x1`."""
        count = x1.numel()
        same = min(count, (1 << 32) - start % (1 << 32))  # as many have the first one's upper word
        self._encrypt(start, x0[:same], x1[:same], scratch[:same])
        if same < count:
            self._encrypt(start + same, x0[same:], x1[same:], scratch[same:count])

    def _encrypt(self, start: int, x0: Tensor, x1: Tensor, scratch: Tensor) -> None:
        torch.arange(x1.numel(), out=x1, device=x1.device)  # or torch takes its default device
        x1.add_(signed(start + self._schedule[1]))
        x0.fill_(signed((start >> 32) + self._schedule[0]))
        self._rounds(x0, x1, scratch)

    def encrypt_counters(self, x0: Tensor, x1: Tensor, scratch: Tensor) -> None:
        """Encrypt the counters whose upper words are in `x0` and lower ones in `x1`, in place."""
        x0.add_(self._first[0])
        x1.add_(self._first[1])
        self._rounds(x0, x1, scratch)

    def _rounds(self, x0: Tensor, x1: Tensor, scratch: Tensor) -> None:
        for group, (first, second) in enumerate(self._added):
            for down, mask, by in self._shifts[group % 2]:
                x0.add_(x1)
                # x1 is rotated to the left; the shift to the right repeats the sign bit, so it is masked.
                torch.bitwise_right_shift(x1, down, out=scratch)
                scratch.bitwise_and_(mask)
                torch.add(scratch, x1, alpha=1 << by, out=x1)
                x1.bitwise_xor_(x0)
            x0.add_(first)
            x1.add_(second)


def words(key: Key, start: int, count: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Both words of the counters start, start + 1, ..., start + count - 1."""
    x0, x1, scratch = (torch.empty(count, dtype=torch.int32, device=device) for _ in range(3))
    Cipher(key).encrypt(start, x0, x1, scratch)
    return x0, x1


def bits(key: Key, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """32 random bits for each of the counters start, start + 1, ..., start + count - 1."""
    x0, x1 = words(key, start, count, device)
    return x0.bitwise_xor_(x1)


def block(key: Key, counter: int) -> Key:
    """Both words of one counter, a 64-bit number."""
    schedule = key_schedule(key)
    x0 = ((counter >> 32) + schedule[0]) & _MASK
    x1 = (counter + schedule[1]) & _MASK
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x0 = (x0 + x1) & _MASK
            x1 = (((x1 << rotation) & _MASK) | (x1 >> (32 - rotation))) ^ x0
        x0 = (x0 + schedule[(group + 1) % 3]) & _MASK
        x1 = (x1 + schedule[(group + 2) % 3] + group + 1) & _MASK
    return x0, x1


def fold_in(key: Key, data: int) -> Key:
    """The key that `jax.random.fold_in` derives from `key` and the lower 32 bits of `data`."""
    return block(key, data & _MASK)


def key_schedule(key: Key) -> tuple[int, int, int]:
    """The key's words, and the third that the rounds add in turn with them."""
    return key[0], key[1], key[0] ^ key[1] ^ PARITY


def signed(word: int) -> int:
    """The int32 of the same lower 32 bits."""
    return ((word + 0x80000000) & _MASK) - 0x80000000
