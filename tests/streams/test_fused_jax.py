"""The kernels of accelerators draw what Keras draws on JAX, as the CPU does: under Triton's interpreter."""

import math
from fractions import Fraction

import pytest
import torch

import torch_kinit as kinit
from tests.support.kernels import ODD, PLACES, VIEWS, check_same, meta, rounded_once
from torch_kinit.numerics import threefry
from torch_kinit.streams import fused, keras_jax

triton = pytest.importorskip("triton")
tl = triton.language

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
