"""The kernel of accelerators draws the eager bits: under Triton's interpreter, and as its machine code is written."""

import collections
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

import torch_kinit as kinit
from tests.conftest import DEVICES
from tests.support.kernels import INF, KEY, LAWS, check_same, drawn, every_law
from torch_kinit.numerics import threefry
from torch_kinit.streams import fused
from torch_kinit.streams.inverse import CENTRAL, inverse_cdf
from torch_kinit.streams.pieces import joined_axes

pytest.importorskip("triton")

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
ODD = fused._BLOCK + 77  # a program and a part of one


@pytest.fixture
def interpreted(monkeypatch):
    """Lets Triton's interpreter run the kernel on the CPU; gives the number of values of each launch."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.spec_from_file_location(
        "interpreted_kernels", Path(fused.__file__).with_name("fused_kernels.py")
    )
    kernels = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, kernels)
    spec.loader.exec_module(kernels)
    launches, launch = [], fused.launch

    def counted(tensor, *arguments):
        launches.append(tensor.numel())
        launch(tensor, *arguments)

    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused, "launch", counted)
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


@HALVES
@pytest.mark.parametrize("name", ["uniform", "truncated, moved", "normal, moved"])
def test_half_precision(name, dtype, interpreted, monkeypatch):
    """bfloat16 and float16 tensors get the float32 value, rounded to the nearest."""
    ours = drawn(LAWS[name], ODD, dtype=dtype)
    assert interpreted == [ODD]
    monkeypatch.setattr(fused, "DEVICES", ())
    check_same(ours, drawn(LAWS[name], ODD, dtype=dtype))


@pytest.mark.parametrize("name", ["truncated", "normal"])
def test_the_ends_of_a_law(name, interpreted):
    """The least and the greatest words, which meet bounds and the outer branch of erfinv, give the eager values."""
    inverse = inverse_cdf(
        {"truncated": kinit.TruncatedNormal(0.0, 0.05), "normal": kinit.Normal(0.0, 1.0)}[name], torch.float32
    )
    assert (inverse.largest > CENTRAL) == (name == "normal")
    indices = torch.tensor([35_325_878, 108_157_853, 95_762])  # whose words are near the ends, found by trying
    words = [threefry.block(KEY.words, int(i)) for i in indices]
    shares = [((a ^ b) ^ 1 << 31) / 2**32 for a, b in words]  # of the signed words, from least to greatest
    assert min(min(share, 1 - share) for share in shares) < 1e-6
    ours = torch.empty(3)
    for i, value in zip(indices.tolist(), ours.unbind(), strict=True):
        fused.launch(value.view(1), meta(i + 1)[i:], KEY.words, inverse)
    check_same(ours, torch.stack([eager(meta(int(i) + 1)[int(i) :], inverse)[0] for i in indices]))


def meta(*shape):
    return torch.empty(shape, device="meta")


def eager(index, inverse):
    """The values that an eager draw gives at the flat indices of a view."""
    from torch_kinit.streams.key import _Buffers

    out = torch.empty(index.shape)
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
    fused.launch(ours, index, KEY.words, inverse)
    check_same(ours, eager(index, inverse))


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
    "float64": lambda: drawn(kinit.random_normal_, 5, dtype=torch.float64),
    "a tail": lambda: kinit.trunc_normal_(torch.empty(5), lower=3, upper=INF, generator=KEY),
    "no spread": lambda: kinit.random_normal_(torch.empty(5), mean=2.0, std=0.0, generator=KEY),
    "a trace": lambda: torch.func.vmap(lambda t: kinit.random_uniform_(t, generator=KEY))(torch.empty(2, 5)),
}


@pytest.mark.parametrize("draw", LEFT.values(), ids=LEFT)
def test_what_is_left_to_eager_draws(draw, interpreted):
    """float64, tails, constants and transforms are drawn eagerly."""
    draw()
    assert not interpreted


def test_where_no_kernel_can_be_built(monkeypatch):
    """One warning says so and why, at the line that drew, and the values are the eager ones."""
    expected = drawn(kinit.he_normal_, 30, 20)

    def fails(*arguments):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused, "_broken", set())
    monkeypatch.setattr(fused, "launch", fails)
    with pytest.warns(UserWarning, match=r"Triton cannot build .* on cpu \(RuntimeError: no compiler\)") as warned:
        ours = [kinit.he_normal_(torch.empty(30, 20), generator=KEY) for _ in range(2)]
    for each in ours:
        check_same(each, expected)
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.slow
@pytest.mark.skipif("cuda" not in DEVICES, reason="draws on an accelerator, and there is none")
@every_law
def test_a_gpu_has_the_bits_of_the_cpu(law):
    """2**26 values on a GPU, in one launch, are those of the CPU."""
    check_same(drawn(law, 1 << 26, device="cuda"), drawn(law, 1 << 26))


# --- what is run on a GPU --------------------------------------------------------------------------------------------

KERNELS = {"uniform": "UNIFORM", "within two standard deviations": "CENTRAL", "normal": "NORMAL"}
# Of float32, as PTX writes them: each is rounded by itself where it says so, which `fma` is not.
ROUNDED = re.compile(r"^\s*(?:@\S+\s+)?((?:add|sub|mul|mad|fma|div|sqrt|rcp|ex2|lg2)\.\S*f32)\s", re.MULTILINE)


def machine_code(law, dtype):
    """PTX of the kernel for an H100, built without one."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from torch_kinit.streams import fused_kernels as kernels

    names = kernels.draw.arg_names
    floats = ("factor", "middle", "scale", "low", "high", "shift", "least", "most")
    constants = {"LAW": getattr(kernels, law).value, "AXES": 2, "BLOCK": fused._BLOCK}
    signature = dict.fromkeys(names, "i32") | dict.fromkeys(floats, "fp32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernels.draw, signature=signature | {"out": f"*{dtype}"}, constexprs=constants)
    return build(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}).asm["ptx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "dtype"), list(zip(KERNELS.values(), ("fp32", "bf16", "fp16"), strict=True)), ids=KERNELS
)
def test_each_operation_is_rounded(law, dtype):
    """The kernel as it is built for a GPU has no fused multiply-add and no approximate quotient or root."""
    found = collections.Counter(ROUNDED.findall(machine_code(law, dtype)))
    kinds = {"UNIFORM": {"mul", "add"}, "CENTRAL": {"mul", "add", "sub", "div"}}
    assert set(found) == {f"{kind}.rn.f32" for kind in kinds.get(law, {"mul", "add", "sub", "div", "sqrt"})}
