"""The kernels of accelerators draw the CPU's bits: under Triton's interpreter, and as their machine code is written."""

import collections
import math
import os
import subprocess
import sys
import types

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torch_kinit as kinit
from tests.conftest import DEVICES
from tests.support.kernels import (
    KEY,
    LAWS,
    ODD,
    PLACES,
    TAILS,
    VIEWS,
    Recorded,
    check_same,
    drawn,
    eager,
    every_law,
    meta,
)
from torch_kinit.numerics import exact, threefry
from torch_kinit.streams import fused
from torch_kinit.streams.inverse import CENTRAL, inverse_cdf
from torch_kinit.streams.pieces import joined_axes

triton = pytest.importorskip("triton")
tl = triton.language

every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)


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


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", ["uniform", "truncated"])
def test_any_part_of_a_tensor(place, name, interpreted):
    """A box of a tensor, as a process holds of a DTensor, gets what its flat indices say, both words of them."""
    law = {"uniform": kinit.Uniform(-0.1, 0.7), "truncated": kinit.TruncatedNormal(0.0, 0.05)}[name]
    index, inverse = place(), inverse_cdf(law, torch.float32)
    ours = torch.empty(index.shape)
    assert fused.fill(ours, index, KEY.words, inverse)
    check_same(ours, eager(index, inverse))


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
    """`apply(seed=)` draws each of a few random parameters in one launch, with the values of the CPU."""
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Conv2d(4, 8, 3), torch.nn.Embedding(11, 7))
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
        fused.launch("draw", "CENTRAL", tensor, index, KEY.words, fused._numbers(inverse, tensor.dtype, False))
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
