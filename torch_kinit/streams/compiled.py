"""compiled(): draws from a Key in kernels that torch.compile makes, with the values of the eager ones.

A kernel does in one loop what takes an eager draw a hundred passes: of an index it makes the words of Threefry, of
these uniform values, and of these, if so asked, normal ones. What changes from draw to draw comes in tensors, so that
nothing is compiled again for another size, key or law. Every operation is one that IEEE 754 rounds exactly, in the
order of the eager draw, and scalars are float32 as they are there.
"""

from __future__ import annotations

import math
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks, torch_internals
from torch_kinit.numerics import threefry
from torch_kinit.numerics.exact import ERFINV, FORMATS, floats
from torch_kinit.streams.inverse import CENTRAL, InverseCdf
from torch_kinit.streams.pieces import flat_indices, span, views

_CHUNK = 1 << 21  # values a call makes, whose indices take 8 MiB
_STRIDED_CHUNK = 1 << 19  # where indices and values have buffers of their own
_LEAST = 1 << 16  # values from which on a call is the faster way also where its threads wait for a core
_LOWEST = -(1 << 31)
_ROW = 16  # a call's 13 words and three more, so that all calls' are aligned alike
_LOG = FORMATS[torch.float32].log
_SQRT_HALF = floats("3F3504F3")[0]


class _Session:
    """What the draws inside one `compiled()` share, and what is released with it."""

    def __init__(self) -> None:
        self.broken = False  # whether nothing can be compiled
        self._count = torch.empty(0, dtype=torch.int32, device="cpu")

    def count(self, size: int) -> Tensor:
        """The numbers from 0 up to `size`."""
        if len(self._count) < size:
            with torch.inference_mode(False):
                self._count = torch.arange(size, dtype=torch.int32, device="cpu")
        return self._count[:size]


_session: ContextVar[_Session | None] = ContextVar("compiled", default=None)


@contextmanager
def compiled() -> Iterator[None]:
    """Let draws from a Key, those of `apply(seed=...)` too, run in kernels made by torch.compile.

    It is for the CPU: accelerators have a kernel of their own, without asking. The values are those of eager draws, the
    same bits. Use it as a context or as a decorator, for models of hundreds of millions of values: with all of torch's
    threads a value takes 1 to 3 nanoseconds on two cores instead of 7 to 20, but a kernel takes 5 to 10 seconds to
    compile, the first 30. Inductor keeps kernels on disk; of another process each takes a second. There is one for
    uniform values, one for normal ones truncated at two standard deviations or less, and one for others, for each dtype
    and number of threads.

    Compiled are draws of 2**16 values or more, float32, bfloat16 and float16. Others, and truncated normals that lie
    beyond one standard deviation as a whole, are eager as before. So is everything, after one warning, without a C++
    compiler.

    Example:
        >>> import torch
        >>> from torch_kinit import Key, he_normal_
        >>> with compiled():
        ...     weight = he_normal_(torch.empty(4, 3), generator=Key(0))
        >>> torch.equal(weight, he_normal_(torch.empty(4, 3), generator=Key(0)))
        True
    """
    token = _session.set(_session.get() or _Session())
    try:
        yield
    finally:
        _session.reset(token)


def fill(tensor: Tensor, index: Tensor, key: threefry.Key, inverse: InverseCdf) -> bool:
    """Draw `tensor` in kernels, at the flat indices that a view `index` tells; False leaves that to an eager draw."""
    session = None if torch.compiler.is_compiling() else _session.get()
    if session is None or session.broken or not _fits(tensor, inverse):
        return False
    tensor = tensor.detach()
    dense = tensor.is_contiguous() and index.is_contiguous()
    pieces = list(views((tensor, index), _CHUNK if dense else _STRIDED_CHUNK))
    if any(span(where) >= 1 << 32 for _, where in pieces):
        return False
    try:
        _run(pieces, key, inverse, session)
    except Exception as error:  # of as many types as compilers have ways to fail
        session.broken = True
        reason = textwrap.shorten(str(error), 200)
        checks.warn(
            f"`compiled()`: torch.compile failed ({type(error).__name__}: {reason}). Draws are eager until the context "
            "ends, of the same values."
        )
        return False
    return True


def _fits(tensor: Tensor, inverse: InverseCdf) -> bool:
    """Whether a kernel can fill `tensor`: one without a subclass, a mode or a transform before its memory."""
    return (
        tensor.numel() >= _LEAST
        and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and tensor.device.type == "cpu"
        and inverse.tail is None
        and inverse.scale != 0
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch_internals.is_intercepted()
        and torch_internals.can_compile()
    )


def _run(pieces: Sequence[tuple[Tensor, ...]], key: threefry.Key, inverse: InverseCdf, session: _Session) -> None:
    dtype = pieces[0][0].dtype
    kernel = _kernel(_maker(inverse), dtype)
    words = _words(key, [int(where.storage_offset()) for _, where in pieces])
    numbers = torch.tensor(inverse.numbers(), dtype=torch.float32, device="cpu")
    for (piece, where), row in zip(pieces, words.unbind(), strict=True):
        direct = piece.is_contiguous()
        out = piece.view(-1) if direct else torch.empty(piece.numel(), dtype=dtype, device="cpu")
        kernel(out, _offsets(where, session), row, numbers)
        if not direct:
            piece.copy_(out.view(piece.shape))


def _words(key: threefry.Key, starts: Sequence[int]) -> Tensor:
    """For each call, which begins at a flat index, the words that its kernel adds."""
    schedule = threefry.key_schedule(key)
    later = [schedule[(g + 1 + i) % 3] + (g + 1) * i for g in range(5) for i in range(2)]
    rows = [[start, (start >> 32) + schedule[0], schedule[1], *later] for start in starts]
    padding = [0] * (_ROW - len(rows[0]))
    return torch.tensor(
        [[threefry.signed(word) for word in row] + padding for row in rows], dtype=torch.int32, device="cpu"
    )


def _offsets(index: Tensor, session: _Session) -> Tensor:
    """The lower words of the flat indices, less the first one, that the strides of `index` tell."""
    if index.is_contiguous():
        return session.count(index.numel())
    return flat_indices(index, torch.device("cpu")).view(-1).int()


_Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def _maker(inverse: InverseCdf) -> _Kernel:
    if not inverse.normal:
        return _uniform
    return _central if inverse.largest <= CENTRAL else _normal


@cache  # of nine at most: three makers, three dtypes
def _kernel(make: Any, dtype: torch.dtype) -> _Kernel:
    """`make`, compiled. Its code is copied: torch.compile gives up on code that it has compiled eight times."""
    name = f"{make.__name__}_{dtype}".replace(".", "_")
    copy = types.FunctionType(make.__code__.replace(co_name=name), make.__globals__, name)
    # The threshold is where Inductor stops writing a value out in terms of all before it, which takes minutes.
    run: _Kernel = torch.compile(copy, fullgraph=True, options={"realize_opcount_threshold": 8})

    def kernel(out: Tensor, index: Tensor, words: Tensor, numbers: Tensor) -> None:
        for tensor in (out, index):
            torch_internals.mark_dynamic(tensor)  # not `dynamic=True`, which makes inputs of the coefficients, too
        run(out, index, words, numbers)

    return kernel


# --- what is compiled ------------------------------------------------------------------------------------------------


def _uniform(out: Tensor, index: Tensor, words: Tensor, numbers: Tensor) -> None:
    """As an eager Key's uniform values."""
    x = (_bits(index, words) >> 9 & 0x7FFFFF).float() * 2.0**-23
    x = (x * numbers[0] + numbers[1]) * numbers[2]
    out.copy_(_clamp(x, numbers[6], numbers[7]))  # within which the other bounds lie


def _central(out: Tensor, index: Tensor, words: Tensor, numbers: Tensor) -> None:
    """As an eager Key's normal values, within two standard deviations."""
    x = _fine(index, words, numbers)
    (_, middle, coefficients), _ = ERFINV[torch.float32]
    _finish(x * _polynomial(coefficients, _minus_log(x, (2, 1)) - middle), numbers, out)


def _normal(out: Tensor, index: Tensor, words: Tensor, numbers: Tensor) -> None:
    """As an eager Key's normal values."""
    x = _fine(index, words, numbers)
    w = _minus_log(x, (16, 8, 4, 2, 1))
    (limit, middle, coefficients), (_, further, others) = ERFINV[torch.float32]
    inner = _polynomial(coefficients, w - middle)
    outer = _polynomial(others, w.sqrt() - further)  # by the processor's instruction, which rounds correctly
    _finish(x * torch.where(w < limit, inner, outer), numbers, out)


def _fine(index: Tensor, words: Tensor, numbers: Tensor) -> Tensor:
    return _clamp(_bits(index, words).float() * numbers[0] + numbers[1], numbers[3], numbers[4])


def _finish(x: Tensor, numbers: Tensor, out: Tensor) -> None:
    out.copy_(_clamp(x * numbers[2] + numbers[5], numbers[6], numbers[7]))


def _bits(index: Tensor, words: Tensor) -> Tensor:
    """Threefry-2x32's words, one xor the other, for counters of which `index` holds the lower words less words[0]."""
    lower = index + words[0]
    carry = (lower ^ _LOWEST) < (words[0] ^ _LOWEST)  # as unsigned numbers
    x0, x1 = carry.int() + words[1], lower + words[2]
    for group in range(5):
        for by in threefry.ROTATIONS[group % 2]:
            x0 = x0 + x1
            x1 = _rotate_left(x1, by) ^ x0
        x0, x1 = x0 + words[3 + 2 * group], x1 + words[4 + 2 * group]
    return x0 ^ x1


def _rotate_left(x: Tensor, by: int) -> Tensor:
    return (x << by) | ((x >> (32 - by)) & ((1 << by) - 1))  # the shift to the right repeats the sign bit


def _minus_log(x: Tensor, steps: Sequence[int]) -> Tensor:
    """-log(1 - x*x) as `exact.log_` has it; its exponent by comparisons, since Inductor's views of bits are slow."""
    a, exponent = (1 + x) * (1 - x), torch.zeros_like(x)
    for step in steps:
        small = a < _SQRT_HALF * 2.0 ** (1 - step)
        a, exponent = torch.where(small, a * 2.0**step, a), torch.where(small, exponent - step, exponent)
    s = (a - 1) / (a + 1)
    return -(_polynomial(_LOG, s * s) * s + exponent * math.log(2))


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    leading, second, *rest = coefficients
    value = x * leading + second
    for coefficient in rest:
        value = value * x + coefficient
    return value


def _clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    x = torch.where(x < low, low, x)  # torch.clamp takes longer, looking for NaN
    return torch.where(x > high, high, x)
