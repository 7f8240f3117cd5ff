"""Threefry gives the words of its authors' known-answer vectors, and the bits of jax.random.

The vectors are those of the file kat_vectors of Random123 (Salmon, Moraes, Dror and Shaw), threefry2x32 with 20 rounds:
two counter words, two key words, two words of the answer.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.backends import backend, same_bits
from torch_kinit.numerics import threefry

VECTORS = {
    "zeros": ("00000000 00000000", "00000000 00000000", "6b200159 99ba4efe"),
    "ones": ("ffffffff ffffffff", "ffffffff ffffffff", "1cb996fc bb002be7"),
    "digits of pi": ("243f6a88 85a308d3", "13198a2e 03707344", "c4923a9c 483df7a0"),
}
KEYS = [(0, 0), (1, 0), (42, 7), (2**31, 2**31 - 1), (2**32 - 1, 2**32 - 1)]
# Where an upper word begins, where int32 wraps, where pieces meet.
STARTS = [0, 1, 2**17 - 3, 2**31 - 5, 2**32 - 5, 2**32, 3 * 2**32 - 1, 2**40 + 12345, 2**63 - 20]

words = st.integers(0, 2**32 - 1)
BITS = "import jax; result = jax.random.bits(jax.numpy.array(key, 'uint32'), (count,))"
FOLDED = "import jax; result = jax.random.fold_in(jax.numpy.array(key, 'uint32'), data)"
# The counters' upper words, then their lower ones.
WORDS = """
import jax, numpy
from jax.extend.random import threefry_2x32

counters = numpy.array([start + i for i in range(count)], "uint64")
halves = numpy.concatenate([counters >> numpy.uint64(32), counters & numpy.uint64(2**32 - 1)]).astype("uint32")
result = threefry_2x32(tuple(jax.numpy.array(key, "uint32")), jax.numpy.array(halves))
"""


def parsed(text):
    return tuple(int(word, 16) for word in text.split())


def unsigned(tensor):
    return [word % 2**32 for word in tensor.tolist()]


@pytest.mark.parametrize(("counter", "key", "answer"), VECTORS.values(), ids=VECTORS)
def test_known_answers(counter, key, answer):
    """A counter gives the published words, in Python's integers and in tensors."""
    counter, key, answer = parsed(counter), parsed(key), parsed(answer)
    assert threefry.block(key, counter[0] << 32 | counter[1]) == answer
    x0, x1 = threefry.words(key, counter[0] << 32 | counter[1], 1)
    assert (*unsigned(x0), *unsigned(x1)) == answer


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 65537, 2**18 + 5])
def test_bits_are_those_of_jax(key, count):
    """The bits of a key from 0 on are jax.random.bits."""
    assert same_bits(threefry.bits(key, 0, count), backend("jax")(BITS, key=key, count=count))


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS, ids=hex)
def test_words_are_those_of_jax_at_any_counter(start):
    """Counters of 64 bits give JAX's words, also where the upper word changes within a block."""
    theirs = backend("jax")(WORDS, key=(42, 7), start=start, count=16)
    assert same_bits(torch.cat(threefry.words((42, 7), start, 16)), theirs)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(key=st.tuples(words, words), start=st.integers(0, 2**63 - 16))
def test_any_key_and_counter(key, start):
    """Any key and counter give JAX's words, in tensors and in Python's integers, whose xor are the bits."""
    x0, x1 = threefry.words(key, start, 12)
    assert same_bits(torch.cat((x0, x1)), backend("jax")(WORDS, key=key, start=start, count=12))
    assert threefry.block(key, start + 5) == (x0[5].item() % 2**32, x1[5].item() % 2**32)
    assert same_bits(threefry.bits(key, start, 12), x0 ^ x1)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(key=st.tuples(words, words), data=words)
def test_fold_in_is_that_of_jax(key, data):
    """fold_in derives the key of jax.random.fold_in."""
    assert threefry.fold_in(key, data) == tuple(unsigned(backend("jax")(FOLDED, key=key, data=data)))


def test_fold_in_takes_the_lower_word():
    """Of a larger number fold_in takes 32 bits, so keys stay keys."""
    assert threefry.fold_in((3, 4), 2**40 + 5) == threefry.fold_in((3, 4), 5)


@pytest.mark.parametrize("start", [1, 131, 2**17 - 1, 2**17 + 1, 299_999])
@pytest.mark.parametrize("count", [1, 17, 2**17 + 3])
def test_a_slice_equals_the_whole(start, count):
    """The bits from any index on are those of the whole stream there."""
    whole = threefry.bits((5, 9), 0, start + count)
    assert same_bits(threefry.bits((5, 9), start, count), whole[start:])


def test_the_device_is_that_asked_for():
    """Without a device the words are made on the CPU whatever torch's default; on `meta` they are made there."""
    with torch.device("meta"):
        assert threefry.bits((0, 0), 0, 3).device.type == "cpu"
    assert threefry.bits((0, 0), 2**32 - 1, 3, torch.device("meta")).is_meta
