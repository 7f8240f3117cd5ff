"""Key: random numbers that depend on a seed, a name and an index alone. What is here is stream v1, and stays."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.numerics import exact, threefry
from torch_kinit.numerics.exact import Scratch
from torch_kinit.shards import boxes
from torch_kinit.streams import captured, compiled, fused
from torch_kinit.streams.inverse import InverseCdf, inverse_cdf, work_dtype
from torch_kinit.streams.laws import Law
from torch_kinit.streams.pieces import CHUNK, SERIAL, flat_indices, paced, span, views
from torch_kinit.streams.source import Source

# float32 values drawn at a time on an accelerator without Triton, whose buffers take 160 to 256 MiB: a hundred launches
# take as long for few values as for many.
_DEVICE_CHUNK = 1 << 22


@dataclass(frozen=True)
class Key(Source):
    """A stream of random numbers without state: give it as `generator=` to any initializer, or to `apply`.

    Each value depends on the key and on its flat, row-major index in the whole tensor in torch's layout, and on nothing
    else: not on the device, the memory format, the number of threads, or how a DTensor is sharded. Equal keys and
    shapes give equal values, so derive a key for each tensor: `key.fold_in("encoder.weight")`, as `apply(seed=...)`
    does.

    Args:
        seed: an int from 0 to 2**64 - 1.

    Raises:
        TypeError: `seed` is not an int.
        ValueError: it is out of range.

    The bits are Threefry-2x32's, of 20 rounds, as jax.random draws them: `Key(seed)` is jax.random.PRNGKey(seed),
    fold_in of an int jax.random.fold_in, and uniform values from 0, or between symmetric bounds, that the dtype can
    hold are those of jax.random.uniform, bit for bit. Other laws make float32 values of 32 bits (float64 values of 64)
    by the inverse distribution function, without rejection; float16 and bfloat16 tensors get the float32 value,
    rounded, and moved inside the bounds if it was rounded across one. All is computed by operations that IEEE 754
    rounds exactly, so every type of CPU gives the same bits, as does an accelerator whose compiler leaves products and
    sums apart (orthogonal_, by LAPACK's QR, agrees to rounding).

    Example:
        >>> import torch
        >>> from torch_kinit import he_normal_
        >>> a = he_normal_(torch.empty(4, 3), generator=Key(0))
        >>> b = he_normal_(torch.empty(4, 3, dtype=torch.bfloat16).t().contiguous().t(), generator=Key(0))
        >>> torch.equal(a.bfloat16(), b)
        True

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """

    words: tuple[int, int]
    layout = "torch"
    whole_in_double = True

    def __init__(self, seed: int) -> None:
        number = checks.integer("seed", seed)
        if not 0 <= number < 2**64:
            raise ValueError(f"`seed` must be from 0 to 2**64 - 1, got {checks.short(seed)}.")
        object.__setattr__(self, "words", (number >> 32, number & 0xFFFFFFFF))

    def fold_in(self, name: str | int) -> Key:
        """The key derived from this one for a name, or an index.

        Args:
            name: a path such as "encoder.layer.weight", whose parts are folded in one after the other, so that
                `key.fold_in("encoder").fold_in("layer.weight")` is the same; or an int from 0 to 2**32 - 1.

        Raises:
            TypeError, ValueError: `name` is neither.

        Example:
            >>> Key(1).fold_in("a.b") == Key(1).fold_in("a").fold_in("b") != Key(1).fold_in("ab")
            True
        """
        words = self.words
        for data in _folded(name):
            words = threefry.fold_in(words, data)
        return _of(words)

    def for_name(self, name: str) -> Key:
        return _folded_name(self, name)

    def for_block(self, index: int) -> Key:
        return self.fold_in(index)

    def __repr__(self) -> str:
        return f"Key({self.native_seed})"

    @property
    def native_seed(self) -> int:
        """The seed that makes this key, also of one that was derived."""
        return self.words[0] << 32 | self.words[1]

    def refuse(self, law: Law, dtype: torch.dtype) -> None:
        inverse_cdf(law, dtype)

    def draw(self, tensor: Tensor, law: Law) -> Tensor:
        """Fill what this process holds of `tensor`."""
        inverse = inverse_cdf(law, tensor.dtype)
        if torch.compiler.is_compiling():
            return captured.draw("key", self.words, tensor, law)
        if tensor.is_meta or tensor.numel() == 0:
            return tensor
        on_cpu, in_kernel = tensor.device.type == "cpu", tensor.device.type in fused.DEVICES
        limit = CHUNK if on_cpu else _DEVICE_CHUNK
        limit = limit * 4 // work_dtype(tensor.dtype).itemsize // (1 if inverse.tail is None else 2)
        buffers = None
        with torch.no_grad():
            for box in boxes(tensor, torch.empty(tensor.shape, device="meta")):
                if (fused if in_kernel else compiled).fill(*box, self.words, inverse):
                    continue
                for piece, serial in paced(views(box, limit)):
                    for part, index in views(piece, SERIAL) if serial and on_cpu else [piece]:
                        if buffers is None or buffers.size < part.numel():
                            buffers = _Buffers(part, self.words)
                        buffers.fill(part, index, inverse)
        return tensor


def _of(words: Sequence[int]) -> Key:
    """The key of two words."""
    key = object.__new__(Key)
    object.__setattr__(key, "words", tuple(words))
    return key


captured.SOURCES["key"] = _of


Words = tuple[Tensor, Tensor]


class _Buffers:
    """The memory in which the values of a piece are made, and of others that are no larger."""

    def __init__(self, piece: Tensor, key: threefry.Key) -> None:
        self.size = piece.numel()
        dtype, device = work_dtype(piece.dtype), piece.device
        self._words = torch.empty((3, self.size), dtype=torch.int32, device=device)
        self._out = torch.empty(self.size, dtype=dtype, device=device)
        self._scratch = Scratch(exact.BUFFERS, self.size, dtype, device)
        self._functions = exact.functions(self._scratch)
        self._cipher = threefry.Cipher(key)

    def fill(self, piece: Tensor, index: Tensor, inverse: InverseCdf) -> None:
        """Fill a view of a tensor, of which `index` tells the flat indices."""
        count = piece.numel()
        self._scratch.renew()
        x0, x1, scratch = self._words[:, :count]
        _encrypt(self._cipher, index, x0, x1, scratch)
        direct = piece.is_contiguous() and piece.dtype == self._out.dtype
        out = piece.view(-1) if direct else self._out[:count]
        make = _fine if inverse.normal else _uniform
        inverse.fill(out, functools.partial(make, (x0, x1)), self._functions)
        if not direct:
            piece.copy_(out.view(piece.shape))


@functools.lru_cache(1024)
def _folded_name(key: Key, name: str) -> Key:
    """What `key.fold_in(name)` gives; the keys of modules, which their parameters share, are made once."""
    path, _, last = name.rpartition(".")
    return (_folded_name(key, path) if path else key).fold_in(last)


def _folded(name: str | int) -> Iterator[int]:
    """The words to fold in, one after the other: two a part of a path, by a cryptographic hash."""
    if isinstance(name, str):
        for part in name.split("."):
            digest = hashlib.sha256(part.encode(errors="surrogatepass")).digest()
            yield int.from_bytes(digest[:4], "big")
            yield int.from_bytes(digest[4:8], "big")
        return
    number = checks.integer("name", name, "a string or an int")
    if not 0 <= number < 2**32:
        raise ValueError(f"`name` must be from 0 to 2**32 - 1 if it is an int, got {checks.short(name)}.")
    yield number


def _uniform(words: Words, out: Tensor, low: float, high: float) -> None:
    """As jax.random.uniform: the upper 23 bits (52 in float64) are the fraction f of low + f * (high - low)."""
    if out.dtype == torch.float64:
        fraction = _wide(words).bitwise_right_shift_(12).bitwise_and_((1 << 52) - 1)
        out.copy_(fraction).mul_(2.0**-52)
    else:
        bits = words[0].bitwise_xor_(words[1])
        out.copy_(bits.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF)).mul_(2.0**-23)
    if low == -high:
        out.mul_(2).sub_(1).mul_(high)  # rounded once, as JAX's fused multiply-add
    else:
        out.mul_(high - low)
        if low != 0:
            out.add_(low)
    torch.nn.functional.hardtanh_(out, low, high)


def _fine(words: Words, out: Tensor, low: float, high: float) -> None:
    """All 32 bits (64 in float64) as a number around the middle of low and high, finest there."""
    if out.dtype == torch.float64:
        out.copy_(_wide(words)).mul_((high - low) * 2.0**-64)
    else:
        out.copy_(words[0].bitwise_xor_(words[1])).mul_((high - low) * 2.0**-32)
    if low != -high:
        out.add_((low + high) / 2)
    torch.nn.functional.hardtanh_(out, low, high)


def _wide(words: Words) -> Tensor:
    return words[0].long().bitwise_left_shift_(32).bitwise_or_(words[1].long().bitwise_and_(0xFFFFFFFF))


def _encrypt(cipher: threefry.Cipher, index: Tensor, x0: Tensor, x1: Tensor, scratch: Tensor) -> None:
    """Write the words at the flat indices that the strides and offset of `index` tell, in row-major order."""
    offset = int(index.storage_offset())
    if index.is_contiguous():
        cipher.encrypt(offset, x0, x1, scratch)
        return
    flat = flat_indices(index, x0.device)
    if offset + span(index) < 2**31:
        x1.copy_(flat.view(-1)).add_(offset)
        x0.zero_()
    else:
        flat = flat.long().add_(offset)
        x1.copy_(flat.view(-1))
        x0.copy_(flat.bitwise_right_shift_(32).view(-1))
    cipher.encrypt_counters(x0, x1, scratch)
