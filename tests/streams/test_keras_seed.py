"""A tensor filled from a KerasSeed is what Keras' initializer with that seed returns on that backend, to the bit.

The oracle is Keras itself, with each of its backends in a process of its own.
"""

import functools

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import torch_kinit as kinit
from tests.support.backends import NAMES, Backend, backend, same_bits
from torch_kinit import KerasSeed
from torch_kinit.streams.pieces import CHUNK

INITIALIZER = "getattr(keras.initializers, law)(**config, seed=seed)(shape, dtype=dtype)"
ON_ONE_THREAD = f"""
import keras, torch
threads = torch.get_num_threads()
torch.set_num_threads(1)
result = {INITIALIZER}
torch.set_num_threads(threads)
"""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}

every_backend = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.usefixtures("_one_thread")


def keras(name, law, config, shape, seed, dtype="float32"):
    """What Keras' initializer returns."""
    call = f"import keras; result = {INITIALIZER}"
    if (name, dtype) == ("jax", "float64"):
        call = f"import jax, keras\nwith jax.enable_x64(True):\n    result = {INITIALIZER}"
    if (name, law) == ("torch", "Orthogonal"):  # torch's QR rounds otherwise on two
        call = ON_ONE_THREAD
    return backend(name)(call, law=law, config=config, shape=shape, seed=seed, dtype=dtype)


def ours(law, config):
    """This package's initializer of the same law."""
    return kinit.get({"class_name": law, "config": config})


def check(name, law, config, shape, seed, dtype="float32", tensor=None, layout="keras"):
    """Fill `tensor`, or a new one, and compare it with Keras' array."""
    filled = torch.empty(shape, dtype=DTYPES[dtype]) if tensor is None else tensor
    assert ours(law, config)(filled, layout=layout, generator=KerasSeed(seed, name)) is filled
    found = filled.detach()
    if layout == "torch" and filled.ndim >= 2:
        found = found.permute(*range(2, filled.ndim), 1, 0)  # (out, in, *spatial) to (*spatial, in, out)
    expected = keras(name, law, config, shape, seed, dtype)
    if dtype == "float64" and name != "torch":
        assert (found - expected).abs().max() <= 4 * 2.0**-52 * expected.abs().max()
        return
    if law == "Orthogonal" and name != "torch":
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5 * abs(config.get("gain", 1.0)))
        return
    assert same_bits(found, expected)


# --- any law, shape, seed and dtype ----------------------------------------------------------------------------------

MEANS, STDS = st.floats(-3, 3, width=32), st.floats(0.0625, 2, width=32)
LAWS = {
    "RandomNormal": st.fixed_dictionaries({"mean": MEANS, "stddev": STDS}),
    "TruncatedNormal": st.fixed_dictionaries({"mean": MEANS, "stddev": STDS}),
    "RandomUniform": st.builds(lambda low, width: {"minval": low, "maxval": low + width}, MEANS, st.floats(0.1, 6)),
    "VarianceScaling": st.fixed_dictionaries(
        {
            "scale": st.floats(0.01, 9),
            "mode": st.sampled_from(["fan_in", "fan_out", "fan_avg"]),
            "distribution": st.sampled_from(["truncated_normal", "untruncated_normal", "uniform", "normal"]),
        }
    ),
    **{f"{who}{law}": st.just({}) for who in ("Glorot", "He", "Lecun") for law in ("Normal", "Uniform")},
}
FEW = [(), (0,), (7,), (1, 1), (5, 3), (3, 0, 5), (4, 1, 9), (2, 3, 5, 7), (3, 2, 4, 2, 3), (65_537,), (257, 263)]
ANY = st.lists(st.integers(1, 9), max_size=5).map(tuple) | st.sampled_from([*FEW, (3, 2, 127, 101), (5, 7, 3, 11, 67)])
SHAPES = {"jax": st.sampled_from(FEW), "tensorflow": ANY, "torch": ANY}
MATRICES = [(1, 1), (3, 1), (1, 4), (2, 3), (5, 4), (7, 7), (3, 3, 2), (2, 3, 2, 5)]
EDGES = st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
SEEDS = {
    "jax": EDGES | st.integers(0, 2**32 - 1),
    "tensorflow": EDGES
    | st.sampled_from([-1, -(2**63), 2**31 - 2, 2**32, 2**63 - 1])
    | st.integers(-(2**63), 2**63 - 1),
    "torch": EDGES | st.sampled_from([-1, 2**32, 2**63, -(2**64)]) | st.integers(-(10**30), 10**30),
}
deterministic = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@every_backend
@pytest.mark.parametrize("law", LAWS)
@deterministic(max_examples=12)
@given(data=st.data())
def test_any_law_shape_seed_and_dtype(name, law, data):
    """Whatever the law, shape, seed, dtype and backend, the tensor has the bits of Keras' array."""
    dtype = data.draw(st.sampled_from(["float32", "float32", "float16", "bfloat16"]))
    check(name, law, data.draw(LAWS[law]), data.draw(SHAPES[name]), data.draw(SEEDS[name]), dtype)


@pytest.mark.slow
@every_backend
@deterministic(max_examples=15)
@given(shape=st.sampled_from(MATRICES), gain=st.floats(0, 3), data=st.data())
def test_any_orthogonal(name, shape, gain, data):
    """An orthogonal matrix has the signs and columns of Keras': on torch its bits, elsewhere within 5e-5 of it."""
    check(name, "Orthogonal", {"gain": gain}, shape, data.draw(SEEDS[name]))


# Laws, shapes and parameters that chance does not find.
CASES = {
    "no axis": ("RandomNormal", {}, ()),
    "no value": ("HeUniform", {}, (4, 0, 2)),
    "one value": ("TruncatedNormal", {}, (1,)),
    "15 values": ("RandomNormal", {}, (15,)),  # torch's normals come by 16
    "16 values": ("RandomNormal", {}, (16,)),
    "17 values": ("RandomNormal", {}, (17,)),
    "no spread": ("RandomNormal", {"mean": 0.3, "stddev": 0.0}, (9,)),
    "truncated, no spread": ("TruncatedNormal", {"mean": 0.3, "stddev": 0.0}, (9,)),
    "wide": ("RandomUniform", {"minval": -1e30, "maxval": 1e29}, (100,)),
    "subnormal uniform": ("RandomUniform", {"minval": -1e-39, "maxval": 1e-38}, (1000,)),
    "some subnormal": ("TruncatedNormal", {"stddev": 3e-38}, (1000,)),
    "axes": ("HeNormal", {"input_axes": [1], "output_axes": [0, 2]}, (3, 5, 7)),
    "rows of more than a chunk": ("GlorotUniform", {}, (2, CHUNK + 3)),
    "just more than a chunk": ("RandomNormal", {}, (CHUNK + 1,)),
    "truncated in two chunks": ("HeNormal", {}, (CHUNK // 32 + 1, 48)),
    "truncated in many chunks": ("LecunNormal", {}, (512, 1031)),
    "orthogonal, few rows": ("Orthogonal", {"gain": 2.0}, (16, 48)),
    "orthogonal, negative gain": ("Orthogonal", {"gain": -0.5}, (5, 4)),
    "orthogonal, some subnormal": ("Orthogonal", {"gain": 1.2e-38}, (5, 4)),
    "orthogonal, of a subnormal gain": ("Orthogonal", {"gain": 1e-39}, (4, 5)),
    "orthogonal convolution": ("Orthogonal", {}, (3, 3, 8, 16)),
    "orthogonal square": ("Orthogonal", {}, (128, 128)),
}


@pytest.mark.slow
@every_backend
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases(name, case):
    """Short, long and degenerate tensors have the bits of Keras' arrays."""
    check(name, *case, 7)


@pytest.mark.slow
@every_backend
@pytest.mark.parametrize("law", ["RandomNormal", "RandomUniform", "TruncatedNormal", "HeNormal"])
@pytest.mark.parametrize("shape", [(7,), (65, 31)], ids=str)
def test_float64(name, law, shape):
    """float64 values are Keras' on torch, and within 4 units in the last place of the largest on JAX and TensorFlow."""
    check(name, law, {}, shape, 11, "float64")


@pytest.mark.slow
def test_orthogonal_float64_on_torch():
    """A float64 orthogonal matrix is Keras', too."""
    check("torch", "Orthogonal", {}, (6, 4), 11, "float64")


@pytest.mark.slow
def test_orthogonal_float16_on_tensorflow():
    """Keras' float16 matrix is within 4e-3 of this one, and not within the 5e-5 of float32."""
    apart = []
    for seed in range(20):
        filled = torch.empty(24, 16, dtype=torch.float16)
        kinit.orthogonal_(filled, layout="keras", generator=KerasSeed(seed, "tensorflow"))
        apart.append((filled - keras("tensorflow", "Orthogonal", {}, (24, 16), seed, "float16")).abs().max().item())
    assert 5e-5 < max(apart) <= 4e-3


@pytest.mark.slow
def test_jax_as_it_comes():
    """JAX without options to its compiler gives the same values, as far as this CPU rounds float16 in between."""
    plain = Backend("jax", XLA_FLAGS="")
    for law, dtype in {"HeNormal": "float32", "GlorotUniform": "float32", "RandomNormal": "bfloat16"}.items():
        call = f"import keras; result = {INITIALIZER}"
        found = plain(call, law=law, config={}, shape=(129, 33), seed=5, dtype=dtype)
        assert same_bits(found, keras("jax", law, {}, (129, 33), 5, dtype))
    plain.close()


# --- any tensor ------------------------------------------------------------------------------------------------------


def within(shape, axes, dtype):
    """A view of this shape whose axes lie in memory in the order `axes`, every other element of a larger tensor."""
    sizes = [shape[axis] for axis in axes]
    large = torch.full([size + 2 for size in sizes[:-1]] + [2 * sizes[-1] + 1], 7.0, dtype=dtype)
    inner = large[(*[slice(1, -1)] * (len(sizes) - 1), slice(1, None, 2))]
    return large, inner.permute([axes.index(axis) for axis in range(len(shape))])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorflow", "torch"])
@deterministic(max_examples=40)
@given(
    axes=st.integers(1, 5).flatmap(lambda n: st.permutations(range(n))),
    law=st.sampled_from(["HeNormal", "GlorotUniform", "RandomNormal"]),
    layout=st.sampled_from(["torch", "keras"]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_any_strides_and_layout(name, axes, law, layout, dtype):
    """A view in any memory order and layout gets the values by its indices, and nothing around it changes."""
    shape = (3, 5, 2, 7, 4)[: len(axes)]
    large, view = within(shape, axes, DTYPES[dtype])
    tensor = view.permute(-1, -2, *range(len(shape) - 2)) if layout == "torch" and len(shape) > 1 else view
    check(name, law, {}, shape, 3, dtype, tensor, layout)
    view.fill_(7.0)
    assert bool((large == 7.0).all())


MEMORY = {
    "channels_last": lambda: torch.empty(8, 4, 3, 5).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.empty(8, 4, 3, 5, 2).to(memory_format=torch.channels_last_3d),
    "transposed": lambda: torch.empty(50, 40).t(),
    "rows of a larger tensor": lambda: torch.empty(60, 50)[7:47],
    "columns of a larger tensor, many chunks": lambda: torch.empty(700, 500)[:, 3:403],
    "parameter": lambda: torch.nn.Parameter(torch.empty(40, 50)),
    "leaf": lambda: torch.empty(40, 50, requires_grad=True),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "law"), [*((name, "HeNormal") for name in NAMES), ("torch", "Orthogonal")])
@pytest.mark.parametrize("make", MEMORY.values(), ids=MEMORY)
def test_memory_formats(name, law, make):
    """torch's memory formats, slices and leaves that require gradients are filled in torch's layout like any tensor."""
    tensor = make()
    out, fan_in, *spatial = tensor.shape
    strides, leaf = tensor.stride(), tensor.requires_grad
    check(name, law, {}, (*spatial, fan_in, out), 3, tensor=tensor, layout="torch")
    assert tensor.stride() == strides
    assert (tensor.requires_grad, tensor.is_leaf, tensor.grad_fn) == (leaf, True, None)


@every_backend
@pytest.mark.parametrize("law", ["HeNormal", "HeUniform", "RandomNormal", "Orthogonal"])
def test_meta_and_empty_tensors(name, law):
    """Tensors on the meta device and without values are returned as they are."""
    for tensor in (torch.empty(3, 4, device="meta"), torch.empty(0, 4), torch.empty(4, 0, 3)):
        assert ours(law, {})(tensor, generator=KerasSeed(1, name)) is tensor


@every_backend
@pytest.mark.parametrize("law", ["HeNormal", "HeUniform", "RandomNormal", "Orthogonal"])
def test_defaults_do_not_matter(name, law):
    """torch's default dtype, default device and global random state are neither read nor moved."""
    tensor, again = torch.empty(40, 30), torch.empty(40, 30)
    ours(law, {})(tensor, generator=KerasSeed(1, name))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            ours(law, {})(again, generator=KerasSeed(1, name))
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_bits(tensor, again)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_and_backends_differ():
    """Another seed, or backend, gives other numbers; 2**32 and 2**31 - 2 apart they are the same ones again."""

    def values(seed, name):
        return kinit.random_uniform_(torch.empty(50), generator=KerasSeed(seed, name))

    drawn = [values(seed, name) for name in NAMES for seed in (0, 1, 2**31, 2**32 - 1)]
    assert len({tuple(v.tolist()) for v in drawn}) == len(drawn)
    assert same_bits(values(5, "torch"), values(5 + 2**32, "torch"))
    assert same_bits(values(5, "tensorflow"), values(5 - (2**31 - 2), "tensorflow"))
