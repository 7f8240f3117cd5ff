"""Small tensors drawn together have the values that each key draws alone."""

import pytest
import torch

import torch_kinit as kinit
from tests.support.kernels import check_same
from torch_kinit.streams.joint import SMALL, draw_together, joins

LAWS = {
    "uniform, symmetric": kinit.Uniform(-0.05, 0.05),
    "uniform, from zero": kinit.Uniform(0.0, 0.3),
    "uniform": kinit.Uniform(-0.1, 0.7),
    "truncated": kinit.TruncatedNormal(0.0, 0.05),
    "truncated, moved": kinit.TruncatedNormal(0.3, 2.0, -0.5, 1.5),
    "mirrored": kinit.TruncatedNormal(-1.0, 0.05, -4.0, 3.1),
    "normal": kinit.Normal(0.0, 0.05),
    "normal, moved": kinit.Normal(-7.0, 3.0),
}
SHAPES = [(), (1,), (7, 5), (3, 4, 5, 2), (SMALL,)]
VIEWS = {
    "contiguous": torch.empty,
    "transposed": lambda shape, dtype: torch.empty(shape[::-1], dtype=dtype).permute(
        tuple(reversed(range(len(shape))))
    ),
    "with gaps": lambda shape, dtype: torch.zeros((*shape, 2), dtype=dtype)[..., 0],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS)
def test_values_are_those_of_each_key(make, dtype):
    """Tensors of all laws and several shapes, each with its key, get the bits that the key gives each alone."""
    wanted = [(law, shape) for shape in SHAPES for law in LAWS.values()]
    ours, alone = ([make(shape, dtype=dtype) for _, shape in wanted] for _ in range(2))
    keys = [kinit.Key(2**64 - 1 - i).fold_in(str(i)) for i in range(len(wanted))]
    assert all(joins(tensor, law) for tensor, (law, _) in zip(ours, wanted, strict=True))
    draw_together([(tensor, key, law) for tensor, key, (law, _) in zip(ours, keys, wanted, strict=True)])
    for tensor, other, key, (law, _) in zip(ours, alone, keys, wanted, strict=True):
        check_same(tensor, key.draw(other, law))


OTHERS = {
    "large": (torch.empty(SMALL + 1), kinit.Normal(0.0, 1.0)),
    "empty": (torch.empty(0), kinit.Normal(0.0, 1.0)),
    "float64": (torch.empty(3, dtype=torch.float64), kinit.Normal(0.0, 1.0)),
    "on meta": (torch.empty(3, device="meta"), kinit.Normal(0.0, 1.0)),
    "a tail": (torch.empty(3), kinit.TruncatedNormal(0.0, 1.0, 3.0, 4.0)),
    "no spread": (torch.empty(3), kinit.Normal(2.0, 0.0)),
    "a constant": (torch.empty(3), kinit.Constant(2.0)),
}


@pytest.mark.parametrize(("tensor", "law"), OTHERS.values(), ids=OTHERS)
def test_what_is_drawn_alone(tensor, law):
    """Large, empty and float64 tensors, tails and constants do not join."""
    assert not joins(tensor, law)
