"""Draws in compiled kernels, and how they are compared with eager ones."""

import collections
import functools
import importlib.util
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

import torch_kinit as kinit
from torch_kinit import shards
from torch_kinit.streams import compiled, fused

INF = math.inf
KEY = kinit.Key(3)
ODD = fused._BLOCK + 77  # a program and a part of one
LEAST, CHUNK, SHARED = compiled._LEAST, compiled._CHUNK, compiled._SHARED
LAWS = {
    "uniform, symmetric": kinit.random_uniform_,
    "uniform, from zero": functools.partial(kinit.random_uniform_, low=0, high=0.3),
    "uniform": functools.partial(kinit.random_uniform_, low=-0.1, high=0.7),
    "truncated": kinit.trunc_normal_,
    "truncated, moved": functools.partial(kinit.trunc_normal_, mean=0.3, std=2.0, lower=-0.5, upper=1.5),
    "truncated, wide": functools.partial(kinit.trunc_normal_, mean=-1.0, lower=-4, upper=3.1),
    "one-sided": functools.partial(kinit.trunc_normal_, mean=0.1, lower=-INF, upper=0.5),
    "normal": kinit.random_normal_,
    "normal, moved": functools.partial(kinit.random_normal_, mean=-7.0, std=3.0),
}
TAILS = {
    "a tail": functools.partial(kinit.trunc_normal_, lower=3, upper=INF),
    "a lower tail, moved": functools.partial(kinit.trunc_normal_, mean=0.4, std=0.3, lower=-5, upper=-1),
    "a narrow tail, far out": functools.partial(kinit.trunc_normal_, lower=20, upper=20.5),
}
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)


def interpret(patch):
    """Let Triton's interpreter run the kernels on the CPU; gives a list that gets the number of values of launches."""
    from triton.runtime import interpreter

    patch.setenv("TRITON_INTERPRET", "1")
    patch.setattr(interpreter.InterpreterBuilder, "create_fma", rounded_once)
    patch.setattr(interpreter, "_implicit_cvt", functools.partial(as_argument, interpreter._implicit_cvt))
    spec = importlib.util.spec_from_file_location(
        "interpreted_kernels", Path(fused.__file__).with_name("fused_kernels.py")
    )
    kernels = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, spec.name, kernels)
    spec.loader.exec_module(kernels)
    launches, launch = [], fused.launch

    def counted(kernel, law, tensor, *arguments):
        launches.append(tensor.numel())
        launch(kernel, law, tensor, *arguments)

    patch.setattr(fused, "_kernels", lambda: kernels)
    patch.setattr(fused, "DEVICES", ("cpu",))
    patch.setattr(fused, "launch", counted)
    patch.setattr(fused, "_failures", collections.Counter())
    return launches


def count_together(patch):
    """A list that gets the law and the number of tensors of each launch for many."""
    launches, launch = [], fused._launch_together

    def counted(law, axes, views):
        launches.append((law, len(views)))
        launch(law, axes, views)

    patch.setattr(fused, "_launch_together", counted)
    return launches


def initialized_in_kernels(rank, mesh):
    """What a rank holds of each parameter of `Net`, drawn under the interpreter, and the launches for many."""
    from tests.support.fake_run import distributed
    from tests.support.sharded_run import RULES, Net

    with torch.device("meta"):
        model = Net()
    distributed(model, mesh)
    with pytest.MonkeyPatch.context() as patch:
        interpret(patch)
        patch.setattr(fused, "_FEW", 0)
        launches = count_together(patch)
        kinit.apply(model, RULES, seed=7)
    return {name: shards.local_of(p).detach() for name, p in model.named_parameters()}, launches


@functools.cache
def compiler_of(device):
    """Why kernels cannot be compiled for a device, or nothing."""
    if device != "cpu":
        return "compiled() is for the CPU"
    return "" if any(map(shutil.which, ("cc", "gcc", "clang"))) else "no C compiler"


def compilable(device):
    """The device, for which kernels can be compiled, or the test is skipped."""
    if reason := compiler_of(device.type):
        pytest.skip(reason)
    return device


def drawn(law, *arguments, key=KEY, **settings):
    """An empty tensor of these arguments, filled."""
    return law(torch.empty(*arguments, **settings), generator=key)


def check_same(ours, eager):
    """Raise AssertionError unless two tensors are equal in dtype and every bit."""
    assert ours.dtype == eager.dtype
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[ours.itemsize]
    assert torch.equal(ours.contiguous().view(bits).cpu(), eager.contiguous().view(bits).cpu())


def as_argument(convert, value):
    """A kernel's argument: a number is a float32, where Triton's interpreter leaves a Python float, and loses -0.0."""
    if not isinstance(value, float):
        return convert(value)
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    return tl.tensor(TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)


def rounded_once(builder, x, y, z):
    """x*y + z of float32 as `tl.fma` has it on every device, rounded once; Triton's interpreter rounds twice.

    The product is exact in float64. Where the sum is not, its last bit is made odd, towards what was lost (Knuth's
    error of a sum), so that the sum does not lie on the middle of two float32 numbers unless the exact one does.
    """
    import numpy as np
    from triton.runtime.interpreter import TensorHandle

    product, addend = np.multiply(x.data, y.data, dtype=np.float64), z.data.astype(np.float64)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    odd = bits + np.where((lost > 0) == (total > 0), 1, -1)
    bits = np.where((lost != 0) & (bits & 1 == 0), odd, bits)
    return TensorHandle(bits.view(np.float64).astype(np.float32), z.dtype.scalar)


def meta(*shape):
    return torch.empty(shape, device="meta")


def eager(index, inverse, dtype=torch.float32):
    """The values that an eager draw gives at the flat indices of a view."""
    from torch_kinit.streams.key import _Buffers

    out = torch.empty(index.shape, dtype=dtype)
    _Buffers(out, KEY.words).fill(out, index, inverse)
    return out


PLACES = {
    "around 2**31": lambda: meta(2**33)[2**31 - 40 : 2**31 + 50],
    "around 2**32": lambda: meta(2**33)[2**32 - 40 : 2**32 + 50],
    "far out": lambda: meta(2**45)[2**44 + 3 : 2**44 + 90],
    "columns across 2**32": lambda: meta(2**17, 2**16)[2**16 - 5 : 2**16 + 5, 7:19],
    "a box of four axes": lambda: meta(9, 8, 7, 6, 5)[2:5, 1:4, ::2, 1:5, 3],
    "a box of five axes": lambda: meta(9, 8, 7, 6, 5)[2:5, 1:4, ::2, 1:5, ::2],
}


VIEWS = {
    "channels_last": lambda t: t.view(4, 7, 5, 8).permute(0, 3, 1, 2),
    "transposed": lambda t: t.view(35, 32).t(),
    "at an odd offset": lambda t: t[3:900],
    "every third of some columns": lambda t: t.view(35, 32)[:, 5:29:3],
    "five axes that nothing joins": lambda t: t.view(7, 5, 4, 4, 2).permute(4, 2, 0, 3, 1)[..., 1:4],
}


class Recorded:
    """A kernel that keeps the grid and the arguments of its launches, and launches another one, if any."""

    def __init__(self, kernel=None):
        self.kernel, self.launches = kernel, []

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            self.launches.append((grid, arguments, options))
            if self.kernel is not None:
                self.kernel[grid](*arguments, **options)

        return launch
