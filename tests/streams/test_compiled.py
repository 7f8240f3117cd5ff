"""Inside compiled() a Key draws, in kernels, the values that it draws eagerly."""

import functools
import itertools

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.kernels import CHUNK, KEY, LEAST, SHARED, check_same, compilable, drawn, every_law
from torch_kinit import compiled
from torch_kinit.numerics import threefry
from torch_kinit.streams import compiled as kernels
from torch_kinit.streams.inverse import inverse_cdf


@pytest.fixture
def device(device):
    """Each device that kernels can be compiled for."""
    return compilable(device)


@every_law
def test_values_are_those_of_eager_draws(law, device):
    """Sizes below, at and around those of a call, a block and a thread's share give the bits of eager draws."""
    keys = itertools.cycle([KEY, kinit.Key(2**64 - 1).fold_in("a.b")])
    for size, key in zip((1, LEAST - 1, LEAST, LEAST + 1, SHARED - 1, SHARED + CHUNK + 5), keys, strict=False):
        with compiled():
            ours = drawn(law, size, key=key, device=device)
        check_same(ours, drawn(law, size, key=key, device=device))
    with compiled():
        assert drawn(law, 0, device=device).numel() == 0


def test_the_comparison_sees_a_bit(device):
    """The helper above rejects a value whose last bits differ."""
    eager = torch.ones(3, device=device)
    with pytest.raises(AssertionError):
        check_same(eager * (1 + 2**-20), eager)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("std", [1e-9, 3e-8, 1e-6, 6e-5, 0.05, 300.0, 7e3])
def test_half_precision_is_rounded_in_the_kernel(std, dtype, device):
    """bfloat16 and float16 tensors get the bits of eager draws: subnormal, tied and large; in any order."""
    law = functools.partial(kinit.random_normal_, std=std)
    for layout in (torch.contiguous_format, torch.channels_last):
        with compiled():
            ours = drawn(law, (40, 30, 8, 9), dtype=dtype, device=device, memory_format=layout)
        check_same(ours, drawn(law, (40, 30, 8, 9), dtype=dtype, device=device))


STRIDED = {
    "channels_last": lambda t: t.view(64, 7, 5, 512).permute(0, 3, 1, 2),
    "transposed": lambda t: t.view(1120, 1024).t(),
    "at an odd offset": lambda t: t[3 : 3 + CHUNK],
    "columns": lambda t: t.view(1120, 1024)[:, 5:905],
}


@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
def test_any_strides(view, device):
    """A view of any strides gets its values in row-major order, and nothing else is written."""
    ours, eager = (torch.zeros(1120 * 1024, device=device) for _ in range(2))
    with compiled():
        kinit.random_normal_(view(ours), generator=KEY)
    kinit.random_normal_(view(eager), generator=KEY)
    check_same(ours, eager)


def test_a_view_that_is_negated_gets_its_values(device):
    """The imaginary part of a conjugate, whose memory has the other sign, is drawn eagerly."""
    view = torch.zeros(2 * LEAST, dtype=torch.complex64, device=device).conj().imag
    assert view.is_neg()
    with compiled():
        kinit.random_uniform_(view, generator=KEY)
    check_same(view.resolve_neg(), drawn(kinit.random_uniform_, 2 * LEAST, device=device))


@pytest.mark.parametrize("start", [0, 2**31 - 7, 2**32 - 70_001, 2**40 + 3], ids=hex)
@pytest.mark.parametrize("stride", [1, 3, 4001], ids=lambda s: f"stride {s}")
def test_indices_past_32_bits(start, stride, device):
    """A shard of a tensor of any size: both words of the index count, with the carry from one to the other."""
    law = inverse_cdf(kinit.Uniform(0.0, 1.0), torch.float32)
    index = torch.empty(0, device="meta").as_strided((700, 200), (stride * 200, stride), start)
    index = index if stride > 1 else index.reshape(700, 200)
    ours = torch.empty(700, 200, device=device)
    with compiled():
        assert kernels.fill(ours, index, KEY.words, law)
    indices = (start + torch.arange(ours.numel()) * stride).tolist()
    for position in (0, 1, 139_999, 70_000 // stride, 70_001 // stride):
        word = functools.reduce(lambda a, b: a ^ b, threefry.block(KEY.words, indices[position]))
        assert float(ours.view(-1)[position]) == (word >> 9) * 2.0**-23


@pytest.mark.parametrize("axis", [0, 1])
def test_a_part_of_a_tensor(axis, device):
    """A part, of which views of the whole's indices tell the place, has the values of the whole."""
    law = inverse_cdf(kinit.Normal(0.0, 0.05), torch.float32)
    index = torch.empty(600, 500, device="meta").chunk(2, axis)[1]
    part = torch.empty(index.shape, device=device)
    with compiled():
        assert kernels.fill(part, index, KEY.words, law)
    check_same(part, drawn(kinit.random_normal_, 600, 500, device=device).chunk(2, axis)[1])


def test_a_dtensor(device, tmp_path, monkeypatch):
    """A DTensor is drawn in a kernel, with the values of a plain tensor."""
    if not torch.distributed.is_available() or device.type != "cpu":
        pytest.skip("a group of CPUs")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        placed = DTensor.from_local(torch.empty(600, 500), init_device_mesh("cpu", (1,)), [Shard(1)])
        eager = drawn(kinit.random_normal_, 600, 500)
        monkeypatch.setattr("torch_kinit.streams.key._Buffers", None)
        with compiled():
            check_same(kinit.random_normal_(placed, generator=KEY).to_local(), eager)
    finally:
        torch.distributed.destroy_process_group()


def test_a_model(device):
    """`apply(seed=...)` inside compiled() leaves the values that it leaves outside."""

    def initialized():
        model = nn.Sequential(nn.Linear(700, 300), nn.Conv2d(16, 64, 9), nn.LSTM(200, 200), nn.LayerNorm(9)).to(device)
        model[1].to(memory_format=torch.channels_last)
        kinit.apply(model, {nn.Linear: "he_uniform"}, seed=1)
        return model

    with compiled():
        ours = initialized()
    for mine, eager in zip(ours.parameters(), initialized().parameters(), strict=True):
        check_same(mine.detach(), eager.detach())


def test_a_draw_is_seen_by_autograd(device):
    """A compiled draw counts as a write, so that a backward pass through what was there raises."""
    tensor = torch.empty(LEAST, device=device)
    before = tensor._version
    with compiled():
        drawn_in_place = kinit.random_uniform_(tensor, generator=KEY)
    assert drawn_in_place is tensor
    assert tensor._version > before
