"""A Key's numbers are those of JAX where JAX has them, follow their laws, and depend on key and index alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import torch_kinit as kinit
from tests.support.backends import backend, same_bits
from tests.support.draws import DRAWS, every_draw
from tests.support.laws import KS_BOUND, N, Normal, TruncatedAtTwo, Uniform, check_law, ks
from tests.support.memory import PeakMemory
from torch_kinit import Key
from torch_kinit.numerics import threefry
from torch_kinit.streams import key as streams_key
from torch_kinit.streams.key import _encrypt
from torch_kinit.streams.pieces import CHUNK

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
wide_dtypes = pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)

PRNG_KEY = """
import jax

with jax.enable_x64(True):
    result = jax.random.PRNGKey(jax.numpy.uint64(seed))
"""
FOLD_IN = "import jax; result = jax.random.fold_in(jax.numpy.array(words, 'uint32'), data)"
UNIFORM = """
import jax

with jax.enable_x64(True):
    result = jax.random.uniform(jax.numpy.array(words, "uint32"), tuple(shape), dtype, low, high)
"""
# The counters' upper words, then their lower ones, as tests/numerics/test_threefry.py has them.
WORDS = """
import jax, numpy
from jax.extend.random import threefry_2x32

counters = numpy.array(indices, "uint64")
halves = numpy.concatenate([counters >> numpy.uint64(32), counters & numpy.uint64(2**32 - 1)]).astype("uint32")
result = threefry_2x32(tuple(jax.numpy.array(words, "uint32")), jax.numpy.array(halves))
"""


def unsigned(tensor):
    return tuple(word % 2**32 for word in tensor.tolist())


def jax_uniform(key, shape, dtype, low=0.0, high=1.0):
    name = str(dtype).removeprefix("torch.")
    return backend("jax")(UNIFORM, words=key.words, shape=shape, dtype=name, low=low, high=high)


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**64 - 1))
def test_a_key_is_that_of_jax(seed):
    """Key(seed) has the words of jax.random.PRNGKey with 64-bit seeds: the seed's upper half and its lower half."""
    assert Key(seed).words == unsigned(backend("jax")(PRNG_KEY, seed=seed)) == divmod(seed, 2**32)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**64 - 1), index=st.integers(0, 2**32 - 1))
def test_fold_in_of_an_int_is_that_of_jax(seed, index):
    """fold_in(int) derives the key of jax.random.fold_in, and `for_block` is the same."""
    key = Key(seed)
    assert key.fold_in(index).words == unsigned(backend("jax")(FOLD_IN, words=key.words, data=index))
    assert key.for_block(index) == key.fold_in(index)


@given(parts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5), cut=st.integers(1, 4))
def test_a_path_is_folded_in_part_by_part(parts, cut):
    """A path gives the key of its parts, one after the other, wherever it is cut."""
    parts = ".".join(parts).split(".")
    first, second = parts[:cut], parts[cut:]
    key = Key(1).fold_in(".".join(first))
    assert Key(1).fold_in(".".join(parts)) == (key.fold_in(".".join(second)) if second else key)


def test_parts_do_not_run_together():
    """Where one part ends and the next begins counts, and so do empty parts and whether a part is a number."""
    names = ["ab.c", "a.bc", "abc", "a.b.c", "c.ab", "", ".", "abc.", ".abc", "0", 0, "1", 1, "00"]
    keys = [Key(1).fold_in(name) for name in names] + [Key(1)]
    assert len(set(keys)) == len(keys)


def test_names_do_not_collide():
    """100000 names, paths and indices all give different keys."""
    names = [f"{a}.{b}" for a in range(100) for b in range(300)] + [f"{a}_{b}" for a in "abc" for b in range(10_000)]
    keys = {Key(0).fold_in(name) for name in [*names, *range(40_000)]}
    assert len(keys) == 100_000


REFUSED_SEEDS = {
    "bool": (True, TypeError, "`seed` must be an int, got True of type bool"),
    "float": (1.0, TypeError, "`seed` must be an int, got 1.0 of type float"),
    "string": ("3", TypeError, "`seed` must be an int, got '3' of type str"),
    "none": (None, TypeError, "`seed` must be an int, got None"),
    "negative": (-1, ValueError, r"`seed` must be from 0 to 2\*\*64 - 1, got -1"),
    "too large": (2**64, ValueError, r"`seed` must be from 0 to 2\*\*64 - 1, got 18446744073709551616"),
}
REFUSED_NAMES = {
    "bool": (False, TypeError, "`name` must be a string or an int, got False of type bool"),
    "float": (1.0, TypeError, "`name` must be a string or an int, got 1.0 of type float"),
    "bytes": (b"a", TypeError, "`name` must be a string or an int, got b'a' of type bytes"),
    "none": (None, TypeError, "`name` must be a string or an int, got None"),
    "negative": (-1, ValueError, r"`name` must be from 0 to 2\*\*32 - 1 if it is an int, got -1"),
    "too large": (2**32, ValueError, r"`name` must be from 0 to 2\*\*32 - 1 if it is an int, got 4294967296"),
}


@pytest.mark.parametrize(("seed", "error", "message"), REFUSED_SEEDS.values(), ids=REFUSED_SEEDS)
def test_a_seed_is_refused(seed, error, message):
    """What is no int from 0 to 2**64 - 1 is no seed."""
    with pytest.raises(error, match=message):
        Key(seed)


@pytest.mark.parametrize(("name", "error", "message"), REFUSED_NAMES.values(), ids=REFUSED_NAMES)
def test_a_name_is_refused(name, error, message):
    """What is neither a string nor an int from 0 to 2**32 - 1 is no name."""
    with pytest.raises(error, match=message):
        Key(0).fold_in(name)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@wide_dtypes
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (7, 0), (2**17 - 1,), (2**17 + 3,), (3, 2**17 + 1)], ids=str)
def test_uniform_values_are_those_of_jax(dtype, shape):
    """Values from 0 to 1 are jax.random.uniform's of the same key, bit for bit, whatever the shape."""
    key = Key(2**40 + 7)
    found = kinit.random_uniform_(torch.empty(shape, dtype=dtype), 0.0, 1.0, generator=key)
    assert same_bits(found, jax_uniform(key, shape, dtype))


@pytest.mark.slow
@wide_dtypes
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**64 - 1), high=st.floats(2.0**-60, 2.0**60, width=32))
def test_symmetric_uniform_values_are_those_of_jax(dtype, seed, high):
    """Between bounds -a and a that the dtype can express, values are jax.random.uniform's, bit for bit."""
    found = kinit.random_uniform_(torch.empty(501, dtype=dtype), -high, high, generator=Key(seed))
    assert same_bits(found, jax_uniform(Key(seed), (501,), dtype, -high, high))


LAWS = {
    "uniform": (lambda t, **g: kinit.random_uniform_(t, -0.3, 1.2, **g), Uniform(-0.3, 1.2)),
    "symmetric": (lambda t, **g: kinit.random_uniform_(t, -0.3, 0.3, **g), Uniform(-0.3, 0.3)),
    "normal": (lambda t, **g: kinit.random_normal_(t, 0.7, 0.02, **g), Normal(0.7, 0.02)),
    "truncated": (lambda t, **g: kinit.trunc_normal_(t, -0.5, 0.05, **g), TruncatedAtTwo(-0.5, 0.05)),
}


@wide_dtypes
@pytest.mark.parametrize(("draw", "law"), LAWS.values(), ids=LAWS)
def test_values_have_their_law(dtype, draw, law):
    """Support, mean, std and distribution are the law's in closed form."""
    check_law(draw(torch.empty(N, dtype=dtype), generator=Key(1)), law)


@wide_dtypes
@pytest.mark.parametrize(("lower", "upper"), [(1.0, math.inf), (1.5, 2.5), (4.0, math.inf), (-math.inf, -3.0)])
def test_tails_have_their_law(dtype, lower, upper):
    """A tail has the normal's distribution given the tail, by the complementary error function."""
    values = kinit.trunc_normal_(
        torch.empty(N, dtype=dtype), std=1.0, lower=lower, upper=upper, generator=Key(3)
    ).double()
    assert lower <= float(values.min())
    assert float(values.max()) <= upper
    sign = 1 if lower + upper > 0 else -1
    near, far = sorted((sign * lower, sign * upper))

    def above(x):
        return torch.special.erfc(torch.as_tensor(x, dtype=torch.float64) / math.sqrt(2)) / 2

    assert ks(sign * values, lambda x: (above(near) - above(x)) / (above(near) - above(far))) <= KS_BOUND


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_draw
def test_half_precision_is_rounded(draw, dtype):
    """float16 and bfloat16 values are the float32 ones rounded, but to the other side where that leaves the bounds."""
    exact = draw(torch.empty(300, 70), generator=Key(4))
    found, rounded = draw(torch.empty(300, 70, dtype=dtype), generator=Key(4)), exact.to(dtype)
    low, high = found.min(), found.max()  # inside the bounds, as tests/streams/test_draw.py has it
    assert torch.equal(found, rounded.clamp(low, high))
    assert int((found != rounded).sum()) < 0.03 * found.numel()


def large_index(shape, stride, offset):
    """A meta tensor of this shape, strides and offset, within storage that nobody has."""
    whole = torch.empty(offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1, device="meta")
    return whole.as_strided(shape, stride, offset)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 2**31 - 5, 2**32 - 5, 2**32, 3 * 2**32 - 1, 2**40 + 12345], ids=hex)
@pytest.mark.parametrize(("shape", "stride"), [((12,), (1,)), ((3, 4), (4, 1)), ((3, 4), (2**32 - 1, 1)), ((4,), (3,))])
def test_indices_of_64_bits(offset, shape, stride):
    """Past 2**32 too, the words at each index are those of JAX's cipher, in one stretch or with steps."""
    index = large_index(shape, stride, offset)
    flat = torch.zeros(shape, dtype=torch.int64).as_strided(shape, [0] * len(shape)) + offset
    for axis, (n, step) in enumerate(zip(shape, stride, strict=True)):
        flat = flat + step * torch.arange(n).view([-1 if d == axis else 1 for d in range(len(shape))])
    words = torch.empty((3, index.numel()), dtype=torch.int32)
    _encrypt(threefry.Cipher((42, 7)), index, *words)
    assert same_bits(words[:2].flatten(), backend("jax")(WORDS, words=(42, 7), indices=flat.flatten().tolist()))


# --- tensors ---------------------------------------------------------------------------------------------------------

FORMATS = {
    "channels_last": lambda d: torch.empty(6, 5, 70, 90, dtype=d).to(memory_format=torch.channels_last),
    "transposed": lambda d: torch.empty(90, 70, 5, 6, dtype=d).permute(3, 2, 1, 0),
    "every other": lambda d: torch.empty(6, 5, 70, 180, dtype=d)[..., 1::2],
    "inner axes of a larger one": lambda d: torch.empty(8, 5, 75, 90, dtype=d)[1:7, :, 2:72],
    "an offset": lambda d: torch.empty(6 * 5 * 70 * 90 + 3, dtype=d)[3:].view(6, 5, 70, 90),
}


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
@every_draw
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_format_does_not_count(make, draw, dtype):
    """A tensor of any strides gets the values of a contiguous one, over several pieces."""
    want = draw(torch.empty(6, 5, 70, 90, dtype=dtype), generator=Key(8))
    assert same_bits(draw(make(dtype), generator=Key(8)), want)


def test_expanded_tensors_are_refused():
    """A tensor that holds an element twice is refused, and left as it was."""
    base = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="more than once"):
        kinit.random_normal_(base.expand(3, 4), generator=Key(0))
    assert torch.equal(base, torch.zeros(3, 1))


@pytest.mark.parametrize("name", sorted(set(DRAWS) & {"uniform", "normal", "truncated", "scaled"}))
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3), (6, 4, 3, 5), (7,), ()], ids=str)
def test_layout_is_an_order_of_axes(name, shape):
    """A tensor in Keras' layout gets the values of torch's layout, with its axes in Keras' order."""
    draw = DRAWS[name]
    ours = draw(torch.empty(shape), generator=Key(5))
    order = (*range(2, len(shape)), 1, 0) if len(shape) > 1 else tuple(range(len(shape)))
    theirs = draw(torch.empty([shape[axis] for axis in order]), layout="keras", generator=Key(5))
    assert torch.equal(theirs, ours.permute(order))


@pytest.mark.parametrize("more", [-17, -1, 0, 1, 17])
@pytest.mark.parametrize("pieces", [1, 2])
@every_draw
def test_pieces_do_not_count(draw, more, pieces):
    """Around the size of one and of two pieces, each value is that of the same index in a larger tensor."""
    size = pieces * CHUNK + more
    extra = {"fans": (3, 5)} if draw is kinit.he_normal_ else {}
    whole = draw(torch.empty(3 * CHUNK), generator=Key(6), **extra)
    assert same_bits(draw(torch.empty(size), generator=Key(6), **extra), whole[:size])


@every_draw
@every_dtype
def test_nothing_to_draw(draw, dtype):
    """Tensors without values and on the meta device are returned as they are."""
    for tensor in (torch.empty(0, 3, dtype=dtype), torch.empty(4, 3, dtype=dtype, device="meta")):
        assert draw(tensor, generator=Key(0)) is tensor


@every_draw
def test_one_value(draw):
    """A tensor without axes gets the first value of the stream."""
    assert torch.equal(draw(torch.empty(()), generator=Key(9)), draw(torch.empty(1), generator=Key(9))[0])


@every_draw
def test_the_global_state_is_left_alone(draw):
    """A Key neither reads nor moves torch's random state, keeps the number of threads, and records no gradient."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    leaf = torch.empty(20, 3, requires_grad=True)
    assert draw(leaf, generator=Key(0)).grad_fn is None
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
@every_dtype
@every_draw
def test_memory(draw, dtype, monkeypatch):
    """At most 16 MiB are taken beside a strided tensor, and as much for twice its size: here an eighth of all."""
    peaks = []
    for size in ("CHUNK", "SERIAL"):
        monkeypatch.setattr(streams_key, size, getattr(streams_key, size) // 8)
    for rows in (1024, 2048):  # of so many pieces that both ways to draw them are tried
        tensor = torch.empty(rows, 256, dtype=dtype)
        with PeakMemory(tensor, torch.empty(0, device="meta")) as memory:  # whose tensors take none
            draw(tensor.t(), generator=Key(0))
        peaks.append(memory.peak)
    assert 0 < peaks[0] <= 2 * 2**20
    assert peaks[1] <= 1.01 * peaks[0]
