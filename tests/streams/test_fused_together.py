"""Small tensors on accelerators are drawn in few launches, with the values that each key draws alone."""

import math
import types

import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.conftest import DEVICES
from tests.support.fake_run import cut, on_ranks
from tests.support.kernels import check_same, initialized_in_kernels
from tests.support.sharded_run import RULES, Net
from torch_kinit.streams import fused
from torch_kinit.streams.joint import SMALL, draw_together, joins

pytest.importorskip("triton")

INF = float("inf")
LAWS = {
    "UNIFORM": [kinit.Uniform(-0.05, 0.05), kinit.Uniform(0.0, 0.3), kinit.Uniform(-0.1, 0.7)],
    "CENTRAL": [kinit.TruncatedNormal(0.0, 0.05), kinit.TruncatedNormal(0.3, 2.0, -0.5, 1.5)],
    "NORMAL": [kinit.Normal(0.0, 0.05), kinit.Normal(-7.0, 3.0), kinit.TruncatedNormal(-1.0, 0.05, -4.0, 3.1)],
    "TAIL": [kinit.TruncatedNormal(0.0, 1.0, 3.0, INF), kinit.TruncatedNormal(0.4, 0.3, -5.0, -1.0)],
}
ALL = [law for each in LAWS.values() for law in each]
VIEWS = {
    "in one line": lambda dtype: torch.zeros(7, 5, dtype=dtype),
    "at an odd offset": lambda dtype: torch.zeros(40, dtype=dtype)[3:],
    "one value": lambda dtype: torch.zeros(1, 1, dtype=dtype),
    "of several programs": lambda dtype: torch.zeros(fused._BLOCK + 9, dtype=dtype),
    "transposed": lambda dtype: torch.zeros(6, 9, dtype=dtype).t(),
    "some columns": lambda dtype: torch.zeros(6, 9, dtype=dtype)[:, 2:7:2],
    "channels_last": lambda dtype: torch.zeros(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last),
    "four axes": lambda dtype: torch.zeros(3, 4, 5, 12, dtype=dtype).permute(2, 0, 3, 1)[:3, :, :7, 1:],
}
ON = [device for device in DEVICES if device in fused.DEVICES]
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)  # fmt: skip


def keys(count):
    return [kinit.Key(2**64 - 1 - i).fold_in(str(i)) for i in range(count)]


@every_dtype
def test_values_are_those_of_each_key(dtype, together, interpreted, monkeypatch):
    """Tensors of all laws and strides, each with a key and a law of its own, get the eager values, and nothing else."""
    monkeypatch.setattr(fused, "_FEW", 0)
    wanted = [(law, make) for law in ALL for make in VIEWS.values()]
    ours, others = ([make(dtype) for _, make in wanted] for _ in range(2))
    assert all(joins(tensor, law) for tensor, (law, _) in zip(ours, wanted, strict=True))
    draw_together([(t, key, law) for t, key, (law, _) in zip(ours, keys(len(wanted)), wanted, strict=True)])
    assert sum(count for _, count in together) == len(wanted)
    assert {law for law, _ in together} == set(LAWS)
    assert not interpreted
    monkeypatch.setattr(fused, "DEVICES", ())
    for tensor, other, key, (law, _) in zip(ours, others, keys(len(wanted)), wanted, strict=True):
        key.draw(other, law)
        whole = [torch.empty(0, dtype=dtype).set_(t.untyped_storage()) for t in (tensor, other)]
        check_same(*whole)


@pytest.mark.parametrize("law", LAWS)
def test_a_launch_for_a_law(law, together, interpreted):
    """Tensors of a dtype and of one kind of law take one launch, whatever the law's numbers; a few one each."""
    for count in (3, fused._FEW + 1, 40):
        tensors = [torch.empty(3 + i) for i in range(count)]
        laws = [LAWS[law][i % len(LAWS[law])] for i in range(count)]
        draw_together(list(zip(tensors, keys(count), laws, strict=True)))
        expected = [] if count == 3 else [(law, count)]
        assert (together, len(interpreted)) == (expected, 3 if count == 3 else 0)
        together.clear()
        interpreted.clear()


def test_a_table_has_so_many_rows(together, monkeypatch):
    """More tensors than a table has rows take several launches; a rest of a few one each."""
    monkeypatch.setattr(fused, "_MOST_ROWS", 20)
    draws = [(torch.zeros(3), key, kinit.Uniform(1.0, 2.0)) for key in keys(45)]
    draw_together(draws)
    assert together == [("UNIFORM", 20)] * 2
    assert all(tensor.min() >= 1 for tensor, *_ in draws)


def model_of(count):
    return nn.ModuleList(
        [nn.Linear(6 + i % 3, 8) for i in range(count)]
        + [nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last) for _ in range(count)]
        + [nn.Embedding(9, 5, padding_idx=2), nn.LSTM(4, 3), nn.Linear(200, 50), nn.Linear(4, 3).double()]
    )


def test_a_model_takes_few_launches(together, interpreted, monkeypatch):
    """`apply(seed=)` draws all small parameters of a model in as many launches as there are kinds of them."""
    model = model_of(20)
    kinit.apply(model, seed=1)
    assert together == [("UNIFORM", 22), ("UNIFORM", 20)]
    assert 200 * 50 in interpreted  # which is not small
    ours = [p.detach().clone() for p in model.parameters()]
    assert not model[40].weight[2].any()
    monkeypatch.setattr(fused, "DEVICES", ())
    kinit.apply(model, seed=1)
    for mine, other in zip(ours, model.parameters(), strict=True):
        check_same(mine, other.detach())


OTHERS = {
    "large": lambda: (torch.empty(SMALL + 1), kinit.Normal(0.0, 1.0)),
    "empty": lambda: (torch.empty(0), kinit.Normal(0.0, 1.0)),
    "on meta": lambda: (torch.empty(3, device="meta"), kinit.Normal(0.0, 1.0)),
    "a constant": lambda: (torch.empty(3), kinit.Constant(2.0)),
    "an expanded one": lambda: (torch.empty(3, 1).expand(3, 4), kinit.Uniform(0.0, 1.0)),
    "a subclass": lambda: (torch.empty(3).as_subclass(torch.nn.Buffer), kinit.Uniform(0.0, 1.0)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_drawn_alone(other, together):
    """Large and empty tensors, constants and what no kernel may write to do not join."""
    assert not joins(*other())


def test_what_a_launch_for_many_leaves(together, interpreted, monkeypatch):
    """More axes than kernels take, and normal laws without spread, are drawn alone, beside the others."""
    five = torch.zeros(7, 5, 4, 4, 2).permute(4, 2, 0, 3, 1)[..., 1:4]
    draws = [(torch.zeros(5), key, kinit.Normal(0.0, 1.0)) for key in keys(12)]
    draws += [(five, kinit.Key(7), kinit.Normal(0.0, 1.0)), (torch.zeros(3), kinit.Key(8), kinit.Normal(2.0, 0.0))]
    draw_together(draws)
    assert together == [("NORMAL", 12)]
    assert torch.equal(draws[-1][0], torch.full((3,), 2.0))
    monkeypatch.setattr(fused, "DEVICES", ())
    check_same(five, kinit.Key(7).draw(torch.zeros(five.shape), kinit.Normal(0.0, 1.0)))


def test_while_a_graph_is_captured(together, monkeypatch):
    """A launch that a graph records has its numbers with it, not in memory that is gone when it is replayed."""
    capturing = types.SimpleNamespace(is_current_stream_capturing=lambda: True)
    assert joins(torch.empty(3), kinit.Normal(0.0, 1.0))
    monkeypatch.setattr(torch, "get_device_module", lambda device: capturing)
    assert not joins(torch.empty(3), kinit.Normal(0.0, 1.0))


def test_autograd_is_told_of_each_write(together):
    """A tensor that autograd has saved cannot be changed without notice."""
    weights = [nn.Parameter(torch.ones(4)) for _ in range(12)]
    losses = [(weight * weight).sum() for weight in weights]
    draw_together([(w.detach(), key, kinit.Uniform(0.0, 1.0)) for w, key in zip(weights, keys(12), strict=True)])
    assert together == [("UNIFORM", 12)]
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("error", [RuntimeError("no compiler"), torch.OutOfMemoryError("out of memory")])
def test_where_a_kernel_fails(error, together, interpreted, monkeypatch, recwarn):
    """Each tensor is then drawn by itself; a lack of memory passes without a word."""

    def fail(*arguments):
        raise error

    monkeypatch.setattr(fused, "_launch_together", fail)
    monkeypatch.setattr(fused, "_warned", set())
    tensors, others = ([torch.zeros(5) for _ in range(12)] for _ in range(2))
    draw_together([(t, key, kinit.Normal(0.0, 1.0)) for t, key in zip(tensors, keys(12), strict=True)])
    assert interpreted == [5] * 12
    assert len(recwarn) == ("no compiler" in str(error))
    monkeypatch.setattr(fused, "DEVICES", ())
    for tensor, other, key in zip(tensors, others, keys(12), strict=True):
        check_same(tensor, key.draw(other, kinit.Normal(0.0, 1.0)))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"shard": 3}, {"shard": 2, "tensor": 2}], ids=str)
def test_shards_are_drawn_together(mesh):
    """What a process holds of small DTensors goes with the others, and has the values of the whole."""
    whole, world = Net(), math.prod(mesh.values())
    kinit.apply(whole, RULES, seed=7)
    ranks = (0, 1, world - 1)
    try:
        found = on_ranks(world, ranks, initialized_in_kernels, mesh)
    except NotImplementedError as error:  # torch 2.6 has no FSDP2 over tensor parallelism where sizes are uneven
        pytest.skip(str(error))
    for rank, (parameters, launches) in zip(ranks, found, strict=True):
        assert {law for law, _ in launches} == {"UNIFORM", "CENTRAL"}
        for name, parameter in whole.named_parameters():
            check_same(parameters[name], cut(parameter.detach(), name, rank, mesh))


@pytest.mark.slow
@pytest.mark.skipif(not ON, reason="draws on an accelerator, and there is none")
@every_dtype
def test_a_gpu_has_the_bits_of_the_cpu(dtype):
    """Many small tensors on a GPU get the values of the CPU, in few launches."""
    models = [model_of(300).to(dtype) for _ in range(2)]
    kinit.apply(models[0].to(ON[0]), seed=1)
    kinit.apply(models[1], seed=1)
    for there, here in zip(models[0].parameters(), models[1].parameters(), strict=True):
        check_same(there.detach(), here.detach())
