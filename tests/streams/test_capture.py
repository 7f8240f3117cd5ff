"""A draw can be traced, compiled, faked and mapped: no operation of it depends on data."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import torch_kinit as kinit
from tests.support.draws import DRAWS, every_draw
from tests.support.kernels import check_same
from tests.support.laws import N, TruncatedAtTwo, check_law


class _Operations(TorchDispatchMode):
    """Records what is called, with which dtypes."""

    def __init__(self):
        super().__init__()
        self.names, self.dtypes = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        for value in [*args, *(kwargs or {}).values(), result]:
            self.dtypes |= {value.dtype} if isinstance(value, torch.Tensor) else set()
            self.dtypes |= {value} if isinstance(value, torch.dtype) else set()
        return result


LAWS = {
    **DRAWS,
    "orthogonal": kinit.orthogonal_,
    "uniform scaled": kinit.glorot_uniform_,
    "constant": lambda t: kinit.constant_(t, 0.5),
    "identity": kinit.identity_,
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_operation_is_wider_than_float32_or_waits_for_the_device(law, dtype):
    """Filling a float32 tensor makes no float64 or 64-bit unsigned value and reads none back."""
    with _Operations() as seen:
        law(torch.empty(64, 48, dtype=dtype))
    assert seen.dtypes <= {dtype, torch.float32}
    assert not seen.names & {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "any", "all"}


def test_the_operation_recorder_sees_float64_and_waits():
    """The recorder above can fail: a loop until no value is outside, as torch's own sampler has, reads a flag back."""
    with _Operations() as seen:
        assert not bool((torch.zeros(3) > 2).any())
        torch.empty(3).double()
    assert torch.float64 in seen.dtypes
    assert "_local_scalar_dense" in seen.names


COMPILED = {name: law for name, law in LAWS.items() if name != "lower tail"}


@pytest.mark.slow
@pytest.mark.parametrize("law", COMPILED.values(), ids=COMPILED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_draws_are_captured_whole(law, dtype):
    """torch.compile(fullgraph=True) traces every draw without a generator, also above the chunk size."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: law(t), fullgraph=True, backend="aot_eager")
    for shape in ((40, 30), (7, 5)):
        tensor = torch.zeros(shape, dtype=dtype)
        compiled(tensor)
        assert bool((tensor != 0).any())


@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles_inline_module_allowlist")  # torch 2.6
def test_compiled_draws_have_their_law():
    """torch.compile's kernel for a compiled truncated normal follow the law too."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: kinit.trunc_normal_(t, std=0.05), fullgraph=True)
    check_law(compiled(torch.empty(N)), TruncatedAtTwo(0, 0.05))


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_fake_tensors_are_accepted(law):
    """FakeTensorMode runs every law: nothing depends on data."""
    with FakeTensorMode():
        for shape in ((20, 30), (3000, 200)):
            if shape[0] < 100 or law is not kinit.orthogonal_:
                assert law(torch.empty(shape)).shape == shape


@pytest.mark.parametrize("axis", [0, 1])
@every_draw
def test_vmap_draws_each_sample_anew(draw, axis):
    """torch.func.vmap(randomness="different") draws different values along the mapped axis."""
    tensor = torch.zeros((4, 20, 30) if axis == 0 else (20, 4, 30))
    torch.func.vmap(draw, in_dims=axis, randomness="different")(tensor)
    samples = tensor.movedim(axis, 0)
    assert bool((samples != 0).all())
    assert not torch.equal(samples[0], samples[1])


SOURCES = {
    "Key": kinit.Key(2**64 - 1).fold_in("encoder.weight"),
    "jax": kinit.KerasSeed(2**32 - 1, "jax"),
    "tensorflow": kinit.KerasSeed(-(2**63), "tensorflow"),
    "torch": kinit.KerasSeed(2**70 + 1, "torch"),
}
SEEDED = {
    "normal, no spread": lambda t, s: kinit.random_normal_(t, 0.5, 0.0, generator=s),
    "truncated, in Keras' layout": lambda t, s: kinit.he_normal_(t, layout="keras", generator=s),
}
PLACES = {
    "contiguous": lambda: torch.zeros(300, 20),
    "transposed": lambda: torch.zeros(20, 30).t(),
    "a parameter": lambda: torch.nn.Parameter(torch.zeros(30, 20)),
    "bfloat16": lambda: torch.zeros(30, 20, dtype=torch.bfloat16),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("law", SEEDED.values(), ids=SEEDED)
@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles_inline_module_allowlist")  # torch 2.6
def test_seeded_draws_in_graphs_have_the_eager_values(law, source):
    """A graph of torch.compile(fullgraph=True) fills a tensor from a Key or KerasSeed with the very bits, in place."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: law(t, source), fullgraph=True)
    for make in PLACES.values():
        tensor = make()
        returned = compiled(tensor)
        assert returned.data_ptr() == tensor.data_ptr()
        check_same(tensor.detach(), law(make(), source).detach())
        assert bool((tensor != 0).any())


class Noisy(torch.nn.Module):
    """Adds numbers of a key to its input."""

    def forward(self, x):
        return x + kinit.random_normal_(torch.empty_like(x), generator=kinit.Key(3))


def test_a_key_is_exported():
    """A program of torch.export holds the draw as one operator, and draws what the model does."""
    x = torch.zeros(3, 4)
    program = torch.export.export(Noisy(), (x,))
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    assert any("torch_kinit.draw" in str(graph) for graph in graphs)
    check_same(program.module()(x), Noisy()(x))


def test_a_graph_refuses_what_a_source_refuses():
    """What a KerasSeed cannot draw is an error of a compiled function, too."""
    seed = kinit.KerasSeed(0, "jax")
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: kinit.trunc_normal_(t, lower=-1.0, generator=seed), backend="aot_eager")
    with pytest.raises(ValueError, match="truncates at two"):
        compiled(torch.empty(3))
