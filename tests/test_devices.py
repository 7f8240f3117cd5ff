"""The same on every device. What the CPU alone cannot show is skipped where there is no accelerator."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.conftest import DEVICES
from tests.support.devices import ACCELERATOR, LAWS, ON_CPU, SHAPE, SOURCES, every_dtype, sources
from tests.support.draws import DRAWS, every_draw
from tests.support.laws import check_law
from tests.support.models import network
from torch_kinit import KerasSeed, Key
from torch_kinit.numerics import threefry
from torch_kinit.streams.keras_seed import BACKENDS

CPU = torch.device("cpu")
beside_the_cpu = pytest.mark.skipif(len(DEVICES) == 1, reason="compares an accelerator with the CPU, and there is none")

FIXED = {  # without chance: the call and a shape for it
    **{name: (kinit.get(name), (7, 5)) for name in ("zeros", "ones", "identity")},
    "constant": (lambda t: kinit.constant_(t, 0.3), (7, 5)),
    "array": (lambda t: kinit.constant_(t, torch.linspace(-1, 1, 7)), (7, 5)),
    "unit_forget_bias": (kinit.unit_forget_bias_, (24,)),
    "stft": (kinit.stft_, (33, 1, 64)),
}
FORMATS = {
    "contiguous": lambda *shape: torch.empty(shape),
    "channels_last": lambda *shape: torch.empty(shape).to(memory_format=torch.channels_last),
    "transposed": lambda out, inner, *rest: torch.empty(inner, out, *rest).transpose(0, 1),
    "part": lambda out, inner, *rest: torch.empty(2 * out, inner + 3, *rest)[::2, 1:-2],
}
every_law = pytest.mark.parametrize("draw", [draw for draw, _ in LAWS.values()], ids=LAWS)
every_format = pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)


def placed(make, shape, dtype, device):
    """A tensor of that format on a device; `to` would close its gaps."""
    like = make(*shape)
    room = torch.empty(like.untyped_storage().nbytes() // like.itemsize, dtype=dtype, device=device)
    return room.as_strided(like.shape, like.stride(), like.storage_offset())


def random_states(device, *generators):
    """The global states of the CPU and of a device, and those of generators."""
    states = [torch.get_rng_state(), *(g.get_state() for g in generators if g is not None)]
    return states if device.type == "cpu" else [*states, torch.get_device_module(device).get_rng_state()]


def check_values(found, want, *, exact=True):
    """Raise AssertionError unless values are those on the CPU, to the bit or to rounding; how many are not equal."""
    found, want = found.detach().cpu(), want.detach()
    assert found.dtype == want.dtype
    if exact:
        assert torch.equal(found, want)
    else:
        info = torch.finfo(want.dtype)
        bound = {torch.float32: 2e-6, torch.float64: 1e-12}.get(want.dtype, info.eps)
        torch.testing.assert_close(found, want, rtol=bound, atol=info.smallest_normal * info.eps)
    return int((found != want).sum())


def check_models(found, want, rounded=()):
    """Raise AssertionError unless two models have equal tensors; those of `rounded` to rounding."""
    expected = want.state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, tensor in found.state_dict().items():
        check_values(tensor, expected[name], exact=name not in rounded)


# --- tensors ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("make", [FORMATS["channels_last"], FORMATS["part"]], ids=["channels_last", "part"])
@sources("global", "generator of the device", "Key", "CPU generator")
@pytest.mark.parametrize(("draw", "law"), LAWS.values(), ids=LAWS)
def test_a_leaf_gets_its_law(draw, law, source, make, device):
    """Every law holds on every device, whatever draws, for a leaf that does not lie in one piece."""
    leaf = placed(make, SHAPE, torch.float32, device).requires_grad_()
    assert draw(leaf, generator=source(device)) is leaf
    assert leaf.is_leaf
    check_law(leaf, law)


@beside_the_cpu
@every_dtype
@sources(*ON_CPU)
@every_law
def test_what_is_drawn_on_the_cpu_is_copied(draw, source, dtype):
    """A CPU generator and a KerasSeed give an accelerator's tensor the bits of the CPU's."""
    for name, make in FORMATS.items():
        if name != "part" or isinstance(source(CPU), KerasSeed):  # of gaps torch takes normal values in another order
            there, here = (placed(make, (20, 30, 3, 5), dtype, device) for device in (ACCELERATOR, CPU))
            check_values(draw(there, generator=source(ACCELERATOR)), draw(here, generator=source(CPU)))


@beside_the_cpu
@every_format
@every_dtype
@every_draw
def test_a_key_is_the_same_everywhere(draw, dtype, make):
    """A Key's uniform values are equal bit for bit, normal ones to rounding; how many differ is printed."""
    tensors = [placed(make, (300, 200, 3, 5), dtype, device) for device in (ACCELERATOR, CPU)]
    differing = check_values(*(draw(tensor, generator=Key(5)) for tensor in tensors), exact=draw is DRAWS["uniform"])
    print(f"{ACCELERATOR}, {dtype}: {differing} of {tensors[0].numel()} values differ")


@beside_the_cpu
@pytest.mark.parametrize("words", [(0, 0), (2**32 - 1, 2**31), (123456789, 987654321)], ids=str)
def test_random_bits_are_the_same_everywhere(words):
    """A Key's raw bits are equal on every device, also where the counter's upper word changes."""
    for start in (0, 2**31 - 5, 2**32 - 5, 2**40 - 1):
        here, there = (threefry.bits(words, start, 10_000, device) for device in (CPU, ACCELERATOR))
        assert torch.equal(here, there.cpu())


@beside_the_cpu
@every_dtype
@pytest.mark.parametrize(("fill", "shape"), FIXED.values(), ids=FIXED)
def test_values_without_chance_are_the_same_everywhere(fill, shape, dtype):
    """Constants, identities and Fourier kernels have the bits of the CPU's."""
    there, here = (fill(torch.empty(shape, dtype=dtype, device=device)) for device in (ACCELERATOR, CPU))
    check_values(there, here)


@pytest.mark.slow
@every_dtype
@sources(*SOURCES)
def test_orthogonal_matrices(source, dtype, device):
    """The columns are orthonormal; a Stream's matrix is that of the CPU, a CPU generator's to rounding."""
    found = kinit.orthogonal_(torch.empty(96, 40, dtype=dtype, device=device), generator=source(device))
    columns, eps = found.cpu().double(), torch.finfo(dtype).eps
    assert torch.allclose(columns.T @ columns, torch.eye(40, dtype=torch.float64), atol=8 * eps)
    if source in [SOURCES[name] for name in ("Key", *ON_CPU)]:
        here = kinit.orthogonal_(torch.empty(96, 40, dtype=dtype), generator=source(CPU))
        native = isinstance(source(CPU), torch.Generator)
        assert torch.allclose(columns, here.double(), rtol=0, atol=max(1e-5, 4 * eps) if native else 0)


@sources(*list(SOURCES)[1:])
@pytest.mark.parametrize("draw", [*(draw for draw, _ in LAWS.values()), kinit.orthogonal_], ids=[*LAWS, "orthogonal"])
def test_no_other_random_state_moves(draw, source, device):
    """With a generator of any kind the global states of the CPU and the device stay, and equal ones give equal bits."""
    before = random_states(device)
    found = [draw(torch.empty(9, 6, 3, 3, device=device), generator=source(device)) for _ in range(2)]
    assert torch.equal(*found)
    assert all(map(torch.equal, random_states(device), before))


@sources(*SOURCES)
@every_law
def test_the_default_device_does_not_count(draw, source):
    """Where torch makes tensors by default changes no value: here that is meta, which would lose them."""
    found = []
    for default in ("cpu", "meta"):
        tensor, generator = torch.empty(6, 5, 3, 3), source(CPU)
        torch.manual_seed(1)
        with torch.device(default):
            found.append(draw(tensor, generator=generator))
    assert torch.equal(*found)


# --- models ----------------------------------------------------------------------------------------------------------

RULES = {"stem": "he_normal", "attend": {"kernel": "trunc_normal", "bias": "random_uniform"}, "head": "orthogonal"}
ROUNDED = ("stem.weight", "attend.in_proj_weight", "attend.out_proj.weight")  # what RULES draw from normal laws


def applied(model, rules=RULES, **arguments):
    kinit.apply(model, rules, **arguments)
    return model


def scattered():
    """A model with every second layer on an accelerator."""
    model = network()
    for layer in list(model.values())[::2]:
        layer.to(ACCELERATOR)
    return model


every_place = pytest.mark.parametrize("place", [lambda: network().to(ACCELERATOR), scattered], ids=["whole", "parts"])


@beside_the_cpu
@every_place
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_seed_gives_a_model_its_values_everywhere(place, dtype):
    """apply(seed=) gives a model on an accelerator, or partly there, the values that it has on the CPU."""
    check_models(*(applied(model.to(dtype), seed=7) for model in (place(), network())), ROUNDED)


@beside_the_cpu
@every_place
@pytest.mark.parametrize("name", ON_CPU)
def test_a_model_drawn_on_the_cpu(place, name):
    """A CPU generator and a KerasSeed do the same, but that an accelerator factors orthogonal matrices by itself."""
    rules = {**RULES, "read": {"recurrent_kernel": "he_uniform"}, "sum": {"recurrent_kernel": "he_uniform"}}
    rules["head"] = "he_normal" if name == "CPU generator" else "orthogonal"
    check_models(*(applied(model, rules, generator=SOURCES[name](CPU)) for model in (place(), network())))


@beside_the_cpu
@pytest.mark.parametrize("make", [network, scattered], ids=["on the CPU", "scattered"])
def test_a_generator_of_an_accelerator_is_refused_on_the_cpu(make):
    """A generator of an accelerator cannot draw for a CPU parameter, and then no value and no state changes."""
    model, generator = make(), torch.Generator(ACCELERATOR).manual_seed(1)
    before, states = copy.deepcopy(model).cpu(), random_states(ACCELERATOR, generator)
    with pytest.raises(ValueError, match=r"pass a generator of the tensor's device, or a CPU one"):
        kinit.apply(model, generator=generator)
    check_models(model, before)
    assert all(map(torch.equal, random_states(ACCELERATOR, generator), states))


def test_from_meta_to_ready(device):
    """A model made on meta and given storage has the values of one that was never there."""
    with torch.device("meta"):
        model = network()
    check_models(applied(model.to_empty(device=device), {}, seed=3), applied(network(), {}, seed=3))


@sources("generator of the device", "Key")
@pytest.mark.parametrize(
    "wrap", [parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm]
)
def test_parametrized_weights(wrap, source, device):
    """A parametrized weight is set on its device without the global states; from a Key it is that of the CPU."""
    found = []
    for place in (device, device, CPU):
        model = wrap(nn.Linear(5, 3)).to(place)
        before = random_states(device)
        kinit.apply(model, generator=source(place))
        assert all(map(torch.equal, random_states(device), before))
        found.append(model.weight.detach().cpu())
    assert torch.equal(found[0], found[1])
    assert isinstance(source(CPU), torch.Generator) or torch.allclose(found[0], found[2], atol=1e-5)


def failing(tensor, generator=None):
    """An initializer that draws from two generators, writes, and raises."""
    nn.init.normal_(tensor, generator=generator)
    nn.init.normal_(tensor)
    raise RuntimeError("no way on")


@sources("global", "generator of the device")
def test_an_error_puts_a_device_back(source, device):
    """After an error halfway the values and the random states of the device are what they were."""
    model, generator = network().to(device), source(device)
    before = [*random_states(device, generator), *copy.deepcopy(model).state_dict().values()]
    with pytest.raises(RuntimeError, match="no way on"):
        kinit.apply(model, {"head": failing}, generator=generator)
    assert all(map(torch.equal, [*random_states(device, generator), *model.state_dict().values()], before))


@beside_the_cpu
@pytest.mark.parametrize("name", BACKENDS)
def test_keras_numbers_on_an_accelerator(name):
    """replay_keras gives the bits of the CPU's model, and to_keras and from_keras carry them to and fro."""
    found, want, other = network().to(ACCELERATOR), network(), network().to(ACCELERATOR)
    for model in (found, want):
        kinit.replay_keras(model, 4, backend=name)
    check_models(found, want)
    arrays = kinit.to_keras(found)
    assert all((a == b).all() for a, b in zip(arrays, kinit.to_keras(want), strict=True))
    kinit.from_keras(other, arrays)
    check_models(other, want)
