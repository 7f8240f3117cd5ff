"""compiled(): draws from a Key in a kernel that a C compiler makes of compiled.c, with the values of eager ones."""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torch_kinit import checks
from torch_kinit.numerics import threefry
from torch_kinit.numerics.exact import ERFINV, FORMATS
from torch_kinit.streams.inverse import CENTRAL, InverseCdf
from torch_kinit.streams.pieces import is_plain, joined_axes, note_write

_LEAST = 1 << 10  # values from which on a call takes less than the passes of an eager draw
_CHUNK = 1 << 19  # values that a thread draws at a time
_SHARED = 1 << 20  # values from which on it pays to start threads
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_UNIFORM, _CENTRAL, _NORMAL = range(3)
# Without contraction, and with all that changes no value: no error numbers or flags are kept.
_FLAGS = ("-std=c11", "-O3", "-fno-fast-math", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
_FOR_THIS_CPU = ("-march=native", "-mcpu=native", "")  # as compilers and machines have it, or not at all


class _Session:
    """What the draws inside one `compiled()` share."""

    def __init__(self) -> None:
        self.broken = False  # whether there is no kernel


_session: ContextVar[_Session | None] = ContextVar("compiled", default=None)


@contextmanager
def compiled() -> Iterator[None]:
    """Let draws from a Key, those of `apply(seed=...)` too, run in a kernel made by the machine's C compiler.

    It is for the CPU: accelerators have a kernel of their own, without asking. The values are those of eager draws, the
    same bits. Use it as a context or as a decorator: with all of torch's threads a value takes 1.0 to 1.6 nanoseconds
    on two cores instead of 7 to 12. The first draw of a process waits half a second for the compiler, which is that of
    the environment variable CC, or else `cc`, `gcc` or `clang`.

    In the kernel are draws of 2**10 values or more, float32, bfloat16 and float16. Others, and truncated normals that
    lie beyond one standard deviation as a whole, are eager as before. So is everything, after one warning, without a
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
    """Draw `tensor` in the kernel, at the flat indices that a view `index` tells; False leaves it to an eager draw."""
    session = _session.get()
    if session is None or session.broken or not _fits(tensor, inverse):
        return False
    try:
        kernel = _kernel()
    except Exception as error:  # of as many types as compilers have ways to fail
        session.broken = True
        reason = textwrap.shorten(str(error), 200)
        checks.warn(
            f"`compiled()`: the kernel cannot be built ({type(error).__name__}: {reason}). Draws are eager until the "
            "context ends, of the same values."
        )
        return False
    _run(kernel, tensor.detach(), index, key, inverse)
    return True


def _fits(tensor: Tensor, inverse: InverseCdf) -> bool:
    """Whether the kernel can fill `tensor`."""
    return (
        tensor.numel() >= _LEAST
        and tensor.dtype in _DTYPES
        and tensor.device.type == "cpu"
        and inverse.tail is None
        and inverse.scale != 0
        and is_plain(tensor)
    )


class _Axis(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("size", "to", "at")]


@cache  # of what could be built: an error is tried again
def _kernel() -> ctypes.CDLL:
    """The kernel, built and loaded."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler: no CC in the environment, and no cc, gcc or clang")
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "compiled.so")
        for of_cpu in _FOR_THIS_CPU:
            flags = [*_FLAGS, *filter(None, [of_cpu]), "-fPIC", "-shared"]
            command = [*compiler.split(), *flags, str(source), "-o", str(library), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                break
        else:
            raise RuntimeError(f"{compiler}: {done.stderr.strip()}")
        kernel = ctypes.CDLL(str(library))  # which stays when its file goes
    pointer, long, word = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32
    types: list[Any] = [pointer, ctypes.c_int, pointer, ctypes.c_int, *[long] * 3, *[word] * 2, ctypes.c_int, pointer]
    kernel.draw.argtypes, kernel.draw.restype = types, None
    return kernel


def _run(kernel: ctypes.CDLL, tensor: Tensor, index: Tensor, key: threefry.Key, inverse: InverseCdf) -> None:
    found = joined_axes(tensor, index)
    axes = (_Axis * len(found))(*(_Axis(*axis) for axis in found))
    numbers = _numbers(inverse)
    law = _UNIFORM if not inverse.normal else _CENTRAL if inverse.largest <= CENTRAL else _NORMAL
    count, start = tensor.numel(), int(index.storage_offset())

    def draw(first: int, size: int) -> None:  # without the interpreter's lock
        memory, dtype = tensor.data_ptr(), _DTYPES[tensor.dtype]
        kernel.draw(memory, dtype, axes, len(found), first, size, start, *key, law, numbers)

    threads = torch.get_num_threads() if count >= _SHARED else 1
    if threads == 1:
        draw(0, count)
    else:
        with ThreadPoolExecutor(threads) as pool:
            firsts = range(0, count, _CHUNK)
            for _ in pool.map(lambda first: draw(first, min(_CHUNK, count - first)), firsts):
                pass
    note_write(tensor)


def _numbers(inverse: InverseCdf) -> ctypes.Array[ctypes.c_float]:
    """The struct `numbers` of compiled.c."""
    (limit, near, near_coefficients), (_, far, far_coefficients) = ERFINV[torch.float32]
    log = FORMATS[torch.float32].log
    functions = [math.log(2), *log, limit, near, *near_coefficients, far, *far_coefficients]
    all_ = [*inverse.numbers(), *functions]
    return (ctypes.c_float * len(all_))(*all_)
