"""The kernels of accelerators draw the CPU's bits: under Triton's interpreter, and as their machine code is written."""

import collections
import functools
import importlib.util
import math
import os
import re
import struct
import subprocess
import sys
import types
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torch_kinit as kinit
from tests.conftest import DEVICES
from tests.support.kernels import KEY, LAWS, TAILS, as_argument, check_same, drawn, every_law, rounded_once
from torch_kinit.numerics import exact, threefry
from torch_kinit.streams import fused, keras_jax
from torch_kinit.streams.inverse import CENTRAL, inverse_cdf
from torch_kinit.streams.pieces import joined_axes

triton = pytest.importorskip("triton")
tl = triton.language

every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
ODD = fused._BLOCK + 77  # a program and a part of one


@pytest.fixture
def interpreted(monkeypatch):
    """Lets Triton's interpreter run the kernels on the CPU; gives the number of values of each launch."""
    from triton.runtime import interpreter

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", rounded_once)
    monkeypatch.setattr(interpreter, "_implicit_cvt", functools.partial(as_argument, interpreter._implicit_cvt))
    spec = importlib.util.spec_from_file_location(
        "interpreted_kernels", Path(fused.__file__).with_name("fused_kernels.py")
    )
    kernels = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, kernels)
    spec.loader.exec_module(kernels)
    launches, launch = [], fused.launch

    def counted(kernel, law, tensor, *arguments):
        launches.append(tensor.numel())
        launch(kernel, law, tensor, *arguments)

    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused, "launch", counted)
    monkeypatch.setattr(fused, "_failures", collections.Counter())
    return launches


@every_law
def test_each_law(law, interpreted, monkeypatch):
    """One launch draws a tensor, of one value too, as the eager draw does."""
    for size in (1, ODD):
        ours = drawn(law, size)
        assert interpreted.pop() == size
        with monkeypatch.context() as patch:
            patch.setattr(fused, "DEVICES", ())
            check_same(ours, drawn(law, size))
    assert not interpreted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("law", TAILS.values(), ids=TAILS)
def test_each_tail(law, dtype, interpreted, monkeypatch):
    """Truncated normals beyond one standard deviation go by Newton's steps, as the eager draw does."""
    ours = drawn(law, ODD, dtype=dtype)
    assert interpreted == [ODD]
    monkeypatch.setattr(fused, "DEVICES", ())
    check_same(ours, drawn(law, ODD, dtype=dtype))


@every_dtype
@pytest.mark.parametrize("name", ["uniform", "uniform, symmetric", "truncated, moved", "normal, moved", "one-sided"])
def test_each_dtype(name, dtype, interpreted, monkeypatch):
    """bfloat16 and float16 tensors get the float32 value, rounded to the nearest; float64 ones values of 64 bits."""
    ours = drawn(LAWS[name], ODD, dtype=dtype)
    assert interpreted == [ODD]
    monkeypatch.setattr(fused, "DEVICES", ())
    check_same(ours, drawn(LAWS[name], ODD, dtype=dtype))


ENDS = {  # indices whose words are nearly the least or the greatest, found by trying
    torch.float32: (35_325_878, 108_157_853, 95_762),  # of the words, one xor the other
    torch.float64: (35_803_616, 54_866_101),  # of the upper word
}


@pytest.mark.parametrize("dtype", ENDS, ids=str)
@pytest.mark.parametrize("name", ["truncated", "normal"])
def test_the_ends_of_a_law(name, dtype, interpreted):
    """The least and the greatest words, which meet bounds and the outermost branch of erfinv, give the eager values."""
    law = {"truncated": kinit.TruncatedNormal(0.0, 0.05), "normal": kinit.Normal(0.0, 1.0)}[name]
    inverse = inverse_cdf(law, dtype)
    assert (inverse.largest > CENTRAL) == (name == "normal")
    words = [threefry.block(KEY.words, i) for i in ENDS[dtype]]
    upper = [a ^ b if dtype == torch.float32 else a for a, b in words]
    shares = [((word ^ 1 << 31) + 0.5) / 2**32 for word in upper]  # of the signed words, from least to greatest
    furthest = min(min(share, 1 - share) for share in shares)
    assert -math.log(4 * furthest) > exact.ERFINV[dtype][-2][0]  # 1 - x*x is nearly 4 * furthest for x = 2 * share - 1
    for i in ENDS[dtype]:
        index, value = meta(i + 1)[i:], torch.empty(1, dtype=dtype)
        assert fused.fill(value, index, KEY.words, inverse)
        check_same(value, eager(index, inverse, dtype))


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


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", ["uniform", "truncated"])
def test_any_part_of_a_tensor(place, name, interpreted):
    """A box of a tensor, as a process holds of a DTensor, gets what its flat indices say, both words of them."""
    law = {"uniform": kinit.Uniform(-0.1, 0.7), "truncated": kinit.TruncatedNormal(0.0, 0.05)}[name]
    index, inverse = place(), inverse_cdf(law, torch.float32)
    ours = torch.empty(index.shape)
    assert fused.fill(ours, index, KEY.words, inverse)
    check_same(ours, eager(index, inverse))


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


@pytest.mark.parametrize("name", ["around 2**32", "columns across 2**32", "a box of four axes"])
def test_wide_positions(name, interpreted, monkeypatch):
    """Of 2**32 values or more positions are divided as 64-bit numbers, and a tensor takes several launches."""
    index, inverse = PLACES[name](), inverse_cdf(kinit.TruncatedNormal(0.0, 0.05), torch.float32)
    kernels = fused._kernels()
    recorded = Recorded(kernels.draw)
    monkeypatch.setattr(fused, "_kernels", lambda: types.SimpleNamespace(draw=recorded, CENTRAL=kernels.CENTRAL))
    for name, value in {"_MOST_VALUES": 64, "_MOST_NARROW": 0, "_BLOCK": 32}.items():
        monkeypatch.setattr(fused, name, value)
    ours = torch.empty(index.shape)
    assert fused.fill(ours, index, KEY.words, inverse)
    check_same(ours, eager(index, inverse))
    count = ours.numel()
    assert [arguments[1:3] for _, arguments, _ in recorded.launches] == [
        (first, min(first + 64, count)) for first in range(0, count, 64)
    ]
    assert not any(options["NARROW"] for _, _, options in recorded.launches)


VIEWS = {
    "channels_last": lambda t: t.view(4, 7, 5, 8).permute(0, 3, 1, 2),
    "transposed": lambda t: t.view(35, 32).t(),
    "at an odd offset": lambda t: t[3:900],
    "every third of some columns": lambda t: t.view(35, 32)[:, 5:29:3],
    "five axes that nothing joins": lambda t: t.view(7, 5, 4, 4, 2).permute(4, 2, 0, 3, 1)[..., 1:4],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_strides(view, interpreted, monkeypatch):
    """A view of any strides gets its values in row-major order, and nothing else is written."""
    ours, other = torch.zeros(1120), torch.zeros(1120)
    kinit.trunc_normal_(view(ours), generator=KEY)
    assert interpreted[0] == view(ours).numel()
    monkeypatch.setattr(fused, "DEVICES", ())
    kinit.trunc_normal_(view(other), generator=KEY)
    check_same(ours, other)


AXES = {
    "contiguous": (lambda: (torch.empty(3, 4, 5), meta(3, 4, 5)), [(60, 1, 1)]),
    "transposed": (lambda: (torch.empty(4, 3).t(), meta(3, 4)), [(4, 3, 1), (3, 1, 4)]),
    "rows of a shard": (lambda: (torch.empty(2, 4, 5), meta(6, 4, 5)[2:4]), [(40, 1, 1)]),
    "columns of a shard": (lambda: (torch.empty(6, 4, 2), meta(6, 4, 5)[..., 1:3]), [(24, 2, 5), (2, 1, 1)]),
    "one value": (lambda: (torch.empty(1, 1), meta(1, 1)), [(1, 0, 0)]),
}


@pytest.mark.parametrize(("make", "axes"), AXES.values(), ids=AXES)
def test_axes_are_joined(make, axes):
    """Axes that lie in one line in the tensor and in the whole count as one."""
    assert joined_axes(*make()) == axes


def test_a_model_takes_a_launch_a_draw(interpreted, monkeypatch):
    """`apply(seed=)` draws each random parameter in one launch, with the values of the CPU."""
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Conv2d(4, 8, 3), torch.nn.Embedding(11, 7))
    monkeypatch.setattr("torch_kinit.model.execute.joins", lambda tensor, law: False)  # which is for the CPU
    kinit.apply(model, seed=1)
    assert interpreted == [600, 288, 77]
    ours = [p.detach().clone() for p in model.parameters()]
    monkeypatch.setattr(fused, "DEVICES", ())
    kinit.apply(model, seed=1)
    for mine, other in zip(ours, model.parameters(), strict=True):
        check_same(mine, other.detach())


LEFT = {
    "no spread": lambda: kinit.random_normal_(torch.empty(5), mean=2.0, std=0.0, generator=KEY),
    "a trace": lambda: torch.func.vmap(lambda t: kinit.random_uniform_(t, generator=KEY))(torch.empty(2, 5)),
    "a fake tensor": lambda: draw_fake(5),
    "a negated view": lambda: kinit.random_uniform_(torch.zeros(5, dtype=torch.complex64).conj().imag, generator=KEY),
    "float64 as on JAX": lambda: kinit.random_uniform_(torch.empty(5).double(), generator=kinit.KerasSeed(1, "jax")),
    "TensorFlow's": lambda: kinit.random_uniform_(torch.empty(5), generator=kinit.KerasSeed(1, "tensorflow")),
}


def draw_fake(size):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        kinit.random_uniform_(torch.empty(size), generator=KEY)


@pytest.mark.parametrize("draw", LEFT.values(), ids=LEFT)
def test_what_is_left_to_others(draw, interpreted):
    """Constants, transforms, subclasses and what no kernel knows are drawn without it."""
    draw()
    assert not interpreted


def test_an_expanded_tensor_is_refused(interpreted):
    """Elements that share their memory are refused, as torch's own fills do."""
    with pytest.raises(RuntimeError, match="single memory location"):
        KEY.draw(torch.empty(3, 1).expand(3, 4), kinit.Uniform(0.0, 1.0))
    assert not interpreted


def test_autograd_is_told_of_the_write(interpreted):
    """A tensor that autograd has saved cannot be changed by a draw without notice."""
    weight = torch.nn.Parameter(torch.ones(4))
    loss = (weight * weight).sum()
    kinit.random_uniform_(weight, generator=KEY)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        kinit.random_uniform_(torch.empty(4), generator=KEY)
    assert interpreted == [4, 4]


class NoOperation(TorchDispatchMode):
    """Refuses what reads, writes or allocates memory of a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.is_view:
            return func(*args, **(kwargs or {}))
        raise AssertionError(f"{func} is run")


def test_a_launch_is_all_that_is_done(monkeypatch):
    """A draw waits for nothing and allocates nothing, so that it can be captured in a CUDA graph."""
    recorded = Recorded()
    kernels = types.SimpleNamespace(draw=recorded, CENTRAL=types.SimpleNamespace(value=1))
    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    inverse, tensor = inverse_cdf(kinit.TruncatedNormal(0.0, 0.05), torch.float32), torch.empty(3, 70, 50).mT
    index = meta(3, 50, 70)
    with NoOperation():
        fused.launch("draw", "CENTRAL", tensor, index, KEY.words, fused._numbers(inverse, tensor.dtype))
    ((grid, arguments, options),) = recorded.launches
    assert grid == (11,)
    assert arguments[0] is tensor
    assert {type(argument) for argument in arguments[1:]} == {int, float}
    assert options["enable_fp_fusion"] is False


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """Lets each launch raise the next of some errors, or do nothing at None; gives a list of them to be filled."""
    errors = []

    def launch(kernel, law, tensor, *arguments):
        if error := errors.pop(0):
            raise error
        tensor.fill_(7.0)

    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused, "_kernels", lambda: types.SimpleNamespace())
    monkeypatch.setattr(fused, "_failures", collections.Counter())
    monkeypatch.setattr(fused, "_warned", set())
    monkeypatch.setattr(fused, "launch", launch)
    return errors


def test_where_no_kernel_can_be_built(failing, monkeypatch):
    """One warning says so and why, at the line that drew; it is tried three times, and the values are eager ones."""
    with monkeypatch.context() as patch:
        patch.setattr(fused, "DEVICES", ())
        expected = drawn(kinit.he_normal_, 30, 20)
    failing += [RuntimeError("no compiler")] * 4
    with pytest.warns(UserWarning, match=r"built or launched \(RuntimeError: no compiler\)") as warned:
        ours = [kinit.he_normal_(torch.empty(30, 20), generator=KEY) for _ in range(5)]
    for each in ours:
        check_same(each, expected)
    assert [warning.filename for warning in warned] == [__file__]
    assert len(failing) == 1


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("of torch"), RuntimeError("Triton Error [CUDA]: out of memory")], ids=repr
)
def test_a_lack_of_memory_passes(error, failing, recwarn):
    """However often memory lacks, the next draw tries its kernel again, without a warning."""
    failing += [*[error] * 9, None]
    kernels = [bool((drawn(kinit.he_normal_, 30, 20) == 7).all()) for _ in range(10)]
    assert kernels == [False] * 9 + [True]
    assert not list(recwarn)


@pytest.mark.filterwarnings("ignore:Triton's kernel")
def test_failures_in_a_row_count(failing):
    """A launch that goes well wipes out failures before it; another law or dtype has its own kernel, and count."""
    error = RuntimeError("launch failure")
    failing += [error, error, None, error, error, None, error, error, error, None, None]
    for _ in range(12):
        drawn(kinit.he_normal_, 30, 20)
    assert len(failing) == 2
    assert bool((drawn(kinit.he_uniform_, 30, 20) == 7).all())
    assert bool((drawn(kinit.he_normal_, 30, 20, dtype=torch.float16) == 7).all())
    assert not failing


def test_with_a_triton_that_lacks_something(monkeypatch):
    """Kernels that cannot even be read are a warning, too."""
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused, "_warned", set())
    monkeypatch.delitem(sys.modules, "torch_kinit.streams.fused_kernels", raising=False)
    monkeypatch.delattr("torch_kinit.streams.fused_kernels", raising=False)
    monkeypatch.delattr(triton, "jit")
    fused._kernels.cache_clear()
    with pytest.warns(UserWarning, match=r"cannot be loaded \(AttributeError: module 'triton' has no attribute 'jit'"):
        drawn(kinit.he_normal_, 30, 20)
    fused._kernels.cache_clear()


AFTER_TENSORFLOW = """
import warnings
import tensorflow, torch
import torch_kinit as kinit
from torch_kinit.streams import fused

expected = kinit.he_normal_(torch.empty(30, 20), generator=kinit.Key(3))
fused.DEVICES = ("cpu",)
with warnings.catch_warnings(record=True) as warned:
    ours = [kinit.he_normal_(torch.empty(30, 20), generator=kinit.Key(3)) for _ in range(2)]
assert all(torch.equal(each, expected) for each in ours)
print(*(warning.message for warning in warned))
"""


@pytest.mark.slow
def test_after_tensorflow():
    """Triton crashes a process that has imported TensorFlow before: there, draws go without it, and say so once."""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "tensorflow",
    }  # on torch Keras, which TensorFlow imports, loads Triton
    command = [sys.executable, "-c", AFTER_TENSORFLOW]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (message,) = done.stdout.splitlines()
    assert message.startswith("Triton crashes where it is imported after TensorFlow")


on_cuda = pytest.mark.skipif("cuda" not in DEVICES, reason="draws on an accelerator, and there is none")


@pytest.mark.slow
@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("law", (LAWS | TAILS).values(), ids=LAWS | TAILS)
def test_a_gpu_has_the_bits_of_the_cpu(law, dtype):
    """2**26 values on a GPU, in one launch, are those of the CPU."""
    size = 1 << (24 if dtype == torch.float64 else 26)
    check_same(drawn(law, size, dtype=dtype, device="cuda"), drawn(law, size, dtype=dtype))


@pytest.mark.slow
@on_cuda
@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
@pytest.mark.parametrize("name", ["uniform", "truncated", "normal, moved"])
def test_a_gpu_has_the_numbers_of_keras(name, backend):
    """2**24 values in Keras' layout, on a GPU, are those that a KerasSeed draws for the CPU."""
    draw, (there, here) = LAWS[name], (torch.empty(4096, 4096, device=device).t() for device in ("cuda", "cpu"))
    seed = kinit.KerasSeed(5, backend)
    check_same(draw(there, generator=seed), draw(here, generator=seed))


# --- what Keras draws on JAX -----------------------------------------------------------------------------------------

NUMBERS = [(-0.05, 0.07), (0.3, 0.5), (-1e-37, 1e-37), (0.1, 1e-40)]  # bounds, or mean and std
JAX_LAWS = [kinit.Uniform(low, high) for low, high in NUMBERS[:3]]
JAX_LAWS += [law(mean, abs(std)) for law in (kinit.Normal, kinit.TruncatedNormal) for mean, std in NUMBERS]
every_jax_law = pytest.mark.parametrize("law", JAX_LAWS, ids=repr)


def as_jax(start, count, law, dtype=torch.float32):
    """The values that the CPU draws."""
    out = torch.empty(count, dtype=dtype)
    keras_jax.draw(out, (5, 0), start, law)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@every_jax_law
def test_each_law_of_jax(law, dtype, interpreted, monkeypatch):
    """A KerasSeed of JAX draws in one launch, with the CPU's values, subnormal ones flushed as there."""
    monkeypatch.setattr(fused, "_BLOCK", 1 << 13)
    try:
        law.support(dtype)
    except ValueError:
        pytest.skip("no value of the law fits in the dtype")
    ours = kinit.KerasSeed(5, "jax").draw(torch.empty(ODD * 8, dtype=dtype), law)
    assert interpreted == [ODD * 8]
    check_same(ours, as_jax(0, ODD * 8, law, dtype))


def count_up(flat, k0, k1):
    """In place of random words: each value a float32 draw can be made of, in turn."""
    return (flat << 9).to(tl.uint32), (flat * 0).to(tl.uint32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "law", [kinit.Uniform(-0.1234, 0.1234), kinit.Normal(0.0, 1.0), kinit.TruncatedNormal(0.0, 1.0)], ids=repr
)
def test_every_input_of_jax(law, interpreted, monkeypatch):
    """A float32 draw has 2**23 possible inputs: each gives the CPU's value, which is that of jax.random."""

    def counters(self, start, x0, x1, scratch):
        torch.arange(start, start + x0.numel(), out=x0).bitwise_left_shift_(9)
        x1.zero_()

    monkeypatch.setattr(fused._kernels(), "_words", triton.jit(count_up))
    monkeypatch.setattr(fused, "_BLOCK", 1 << 20)
    monkeypatch.setattr(threefry.Cipher, "encrypt", counters)
    ours = torch.empty(1 << 23)
    assert fused.fill_as_jax(ours, meta(1 << 23), (5, 0), law)
    check_same(ours, as_jax(0, 1 << 23, law))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_strides_of_jax(view, interpreted, monkeypatch):
    """A KerasSeed's values go in row-major order of the view that is given, which Keras' layout often is."""
    ours, other = torch.zeros(1120), torch.zeros(1120)
    kinit.trunc_normal_(view(ours), generator=kinit.KerasSeed(5, "jax"))
    assert interpreted[0] == view(ours).numel()
    monkeypatch.setattr(fused, "DEVICES", ())
    kinit.trunc_normal_(view(other), generator=kinit.KerasSeed(5, "jax"))
    check_same(ours, other)


def test_any_part_of_jax(interpreted):
    """Each process draws its box of a DTensor alone, at any flat index."""
    law = kinit.Normal(0.1, 0.3)
    part = torch.empty(90)
    assert fused.fill_as_jax(part, meta(2**33)[2**32 - 40 : 2**32 + 50], (5, 0), law)
    check_same(part, as_jax(2**32 - 40, 90, law))
    index = PLACES["a box of four axes"]()
    box = torch.empty(index.shape)
    assert fused.fill_as_jax(box, index, (5, 0), law)
    check_same(box, as_jax(0, 15_120, law).view(9, 8, 7, 6, 5)[2:5, 1:4, ::2, 1:5, 3])


def test_boxes_of_jax(interpreted, monkeypatch):
    """What a process holds of a DTensor is drawn box by box, in its own memory."""
    law, local = kinit.Normal(0.1, 0.3), torch.empty(4, 7)
    rows = [(slice(0, 2), local[:2]), (slice(6, 8), local[2:])]
    monkeypatch.setattr(
        "torch_kinit.streams.keras_seed.boxes", lambda tensor, index: [(mine, index[at]) for at, mine in rows]
    )
    kinit.KerasSeed(5, "jax").draw(torch.empty(12, 7), law)
    whole = as_jax(0, 84, law).view(12, 7)
    check_same(local, torch.cat((whole[:2], whole[6:8])))
    assert interpreted == [14, 14]


@pytest.mark.parametrize("size", [1, 33, 5000])
def test_a_sum_is_rounded_once(size, interpreted):
    """What stands for `tl.fma` gives the float32 nearest to the exact x*y + z, also where two roundings do not."""
    from triton.runtime.interpreter import TensorHandle

    x, y, z = torch.randn(3, size)
    x[0] = y[0] = 1 + 2**-12  # (1 + 2**-12)**2 - 2**-60 lies next to the middle of two float32 numbers
    z[0] = -(2.0**-60)
    fraction = [
        Fraction(a) * Fraction(b) + Fraction(c) for a, b, c in zip(*torch.stack((x, y, z)).tolist(), strict=True)
    ]
    nearest = torch.tensor([nearest_float32(value) for value in fraction])
    found = rounded_once(None, *(TensorHandle(each.numpy(), tl.float32) for each in (x, y, z)))
    check_same(torch.from_numpy(found.data), nearest)
    assert x[0].double() ** 2 + z[0].double() == x[0].double() ** 2  # float64 loses the addend
    check_same(nearest[:1], torch.tensor([1 + 2**-11]))


def nearest_float32(value):
    """A fraction, rounded to the nearest float32, ties to even."""
    exponent = max(math.frexp(float(value))[1] - 24, -149) if value else 0
    return math.ldexp(round(value / Fraction(2) ** exponent), exponent)


# --- what is run on a GPU --------------------------------------------------------------------------------------------

INTEGERS = ("first", "count", "start", *(f"{kind}{axis}" for kind in ("size", "to", "at") for axis in range(4)))
KERNELS = [  # and the operations on floating-point numbers that it is made of
    ("draw", "UNIFORM", "fp32", {"mul", "add"}),
    ("draw", "CENTRAL", "bf16", {"mul", "add", "sub", "div"}),
    ("draw", "NORMAL", "fp16", {"mul", "add", "sub", "div", "sqrt"}),
    ("draw", "TAIL", "fp32", {"mul", "add", "sub", "div", "sqrt"}),
    ("draw", "UNIFORM", "fp64", {"mul", "add"}),
    ("draw", "NORMAL", "fp64", {"mul", "add", "sub", "div", "sqrt"}),
    ("draw", "TAIL", "fp64", {"mul", "add", "sub", "div", "sqrt"}),
    ("draw_as_jax", "JAX_UNIFORM", "bf16", {"mul", "add"}),
    ("draw_as_jax", "JAX_NORMAL", "fp32", {"mul", "add", "sub", "div", "sqrt", "fma"}),
]
every_kernel = pytest.mark.parametrize(
    ("kernel", "law", "dtype", "kinds"), KERNELS, ids=[" ".join(k[:3]) for k in KERNELS]
)
# As PTX writes them: each is rounded by itself where it says so, which `fma` is not.
ROUNDED = re.compile(
    r"^\s*(?:@\S+\s+)?((?:add|sub|mul|mad|fma|div|sqrt|rcp|rsqrt|ex2|lg2)\.\S*f(?:32|64))\s", re.MULTILINE
)


def machine_code(kernel, law, dtype, target, stage):
    """A kernel as it is built for a GPU, without one."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from torch_kinit.streams import fused_kernels as kernels

    function, wide = getattr(kernels, kernel), dtype == "fp64"
    constants = {"LAW": getattr(kernels, law).value, "AXES": 2, "NARROW": True, "BLOCK": fused._BLOCK}
    signature = dict.fromkeys(function.arg_names, "i64" if wide else "fp32") | dict.fromkeys(INTEGERS, "i64")
    signature |= {"out": f"*{dtype}", "k0": "i32", "k1": "i32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in function.arg_names}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    return build(source, target=GPUTarget(*target), options={"enable_fp_fusion": False}).asm[stage]


@pytest.mark.slow
@every_kernel
def test_each_operation_is_rounded(kernel, law, dtype, kinds):
    """A kernel as it is built for an H100 fuses only where it says so, and has no approximate quotient or root."""
    text = machine_code(kernel, law, dtype, ("cuda", 90, 32), "ptx")
    suffix = "f64" if dtype == "fp64" else "f32"
    assert set(ROUNDED.findall(text)) == {f"{kind}.rn.{suffix}" for kind in kinds}
    if (law, dtype) == ("NORMAL", "fp64"):  # whose constants stay float64
        for number in exact.ERFINV[torch.float64][0][2]:
            assert f"0d{struct.pack('>d', number).hex().upper()}" in text


FUSED_BY_AMD = re.compile(r"\bv_(?:pk_)?(?:fma|fmac|mad|mac|fmaak|fmamk|madak|madmk)_(?:legacy_)?f(?:32|64)")


@pytest.mark.slow
@every_kernel
def test_nothing_is_fused_for_amd(kernel, law, dtype, kinds):
    """For an MI300 only quotients and roots, which are correctly rounded, have fused steps, and subnormals are kept."""
    text = machine_code(kernel, law, dtype, ("hip", "gfx942", 64), "amdgcn")
    assert "denorm_mode_32 3" in text
    assert "denorm_mode_16_64 3" in text
    quotients, fused_steps = len(re.findall(r"v_div_fixup_f(?:32|64)", text)), len(FUSED_BY_AMD.findall(text))
    roots = len(re.findall(r"v_(?:sqrt_f32|rsq_f64)", text))
    if "fma" in kinds:
        assert fused_steps > 5 * quotients + 2 * roots
    else:
        assert fused_steps == 5 * quotients + (7 if dtype == "fp64" else 2) * roots
    assert bool(quotients) == ("div" in kinds)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_kernel_for_all_numbers(dtype):
    """Sizes, offsets, keys and a law's numbers, and where the memory begins, do not make Triton compile anew."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    from torch_kinit.streams import fused_kernels as kernels

    draw, dtype = kernels.draw, getattr(torch, dtype)
    bind = create_function_from_signature(draw.signature, draw.params, make_backend(GPUTarget("cuda", 90, 32)))
    recorded, found = Recorded(), set()
    for law in (kinit.TruncatedNormal(0.0, 1.0), kinit.TruncatedNormal(0.1, 0.3)):
        for tensor, index in (
            (torch.empty(64, dtype=dtype), meta(64)),
            (torch.empty(48, dtype=dtype)[1:], meta(2**40)[2**33 : 2**33 + 47]),
            (torch.empty(1, dtype=dtype), meta(1)),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fused, "_kernels", lambda: types.SimpleNamespace(draw=recorded, CENTRAL=kernels.CENTRAL))
                numbers = fused._numbers(inverse_cdf(law, dtype), dtype)
                fused.launch("draw", "CENTRAL", tensor, index, (2**32 - 1, 1), numbers)
    for _, arguments, options in recorded.launches:
        del options["enable_fp_fusion"]
        found.add(str(bind(*arguments, **options)[1]))
    assert len(recorded.launches) == 6
    assert len(found) <= (1 if dtype == torch.float32 else 2)  # a zero has fewer bits
