"""Philox gives the words of its authors' known-answer vectors, and of TensorFlow's own streams.

The vectors are those of the file kat_vectors of Random123 (Salmon, Moraes, Dror and Shaw), philox4x32 with 10 rounds:
four counter words, two key words, four words of the answer.
"""

import pytest
import torch

from tests.support.backends import backend, same_bits
from torch_kinit.numerics import philox

VECTORS = {
    "zeros": (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    "ones": (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    "digits of pi": (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
}
SEEDS = [0, 1, 7, -1, -(2**31), -(2**63), 2**31 - 3, 2**31 - 2, 2**31 - 1, 2**31, 2**40 + 7, 2**63 - 1]
OF_SEED = """
import tensorflow as tf
from keras.src.backend.tensorflow.random import _cast_seed
from keras.src.random.seed_generator import draw_seed

seed = _cast_seed(draw_seed(seed))
"""


def parsed(text):
    return tuple(int(word, 16) for word in text.split())


def signed(*numbers, bits=64):
    """The numbers, of so many bits, as signed ones of the same bits."""
    return [(number + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) for number in numbers]


def in_order(words):
    """The words as TensorFlow lays them out, as int32 of the same bits."""
    even, odd = words
    return torch.stack((even[0], odd[0], even[1], odd[1]), 1).flatten().int()


@pytest.mark.parametrize(("counter", "key", "answer"), VECTORS.values(), ids=VECTORS)
def test_known_answers(counter, key, answer):
    """A call gives the published words, in Python's integers and in tensors."""
    counter, key, answer = parsed(counter), parsed(key), parsed(answer)
    assert philox.block(key, counter) == answer
    call = torch.tensor(signed(counter[0] | counter[1] << 32))
    even, odd = philox.words(philox.Source(key, counter[2:]), call)
    assert (*even[:, 0].tolist(), *odd[:, 0].tolist()) == (answer[0], answer[2], answer[1], answer[3])


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_key_of_a_seed(seed):
    """Keras' seed gives the key and counter that TensorFlow scrambles it to."""
    code = OF_SEED + "result = [np.array(x).view('int64') for x in tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)]"
    key, counter = backend("tensorflow")("import numpy as np\n" + code, seed=seed)
    (k0, k1), (h0, h1) = philox.stream(seed)
    assert key.tolist() == signed(k0 | k1 << 32)
    assert counter.tolist() == [0, *signed(h0 | h1 << 32)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_the_words_of_a_seed(seed):
    """The calls 0, 1, ... of a seed's stream give the words of TensorFlow's stateless_uniform over all integers."""
    code = "result = tf.random.stateless_uniform((4004,), seed, minval=None, maxval=None, dtype=tf.int32).numpy()"
    words = philox.words(philox.stream(seed), philox.calls(0, 1001))
    assert same_bits(in_order(words), backend("tensorflow")(OF_SEED + code, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2**31 - 3, 2**32 - 5, 2**32, 2**40 + 1, 2**62], ids=hex)
def test_calls_of_large_numbers(first):
    """Call numbers carry into the counter's second word, as in TensorFlow."""
    key, high = (0x01234567, 0x89ABCDEF), (0xDEADBEEF, 0x00C0FFEE)
    code = """
import tensorflow as tf

key, counter = tf.constant([key], tf.uint64), tf.constant(counter, tf.uint64)
philox = tf.random.Algorithm.PHILOX.value
result = tf.raw_ops.StatelessRandomUniformFullIntV2(
    shape=(44,), key=key, counter=counter, alg=philox, dtype=tf.int32
).numpy()
"""
    counter = [first, high[0] | high[1] << 32]
    expected = backend("tensorflow")(code, key=key[0] | key[1] << 32, counter=counter)
    assert same_bits(in_order(philox.words(philox.Source(key, high), philox.calls(first, 11))), expected)


@pytest.mark.parametrize(("first", "count", "stride"), [(0, 1, 1), (3, 5, 1), (999, 2, 1), (5, 7, 128), (1, 3, 256)])
def test_slices(first, count, stride):
    """Calls from any number on, at any stride, give what they give among all."""
    source = philox.stream(42)
    every = philox.words(source, philox.calls(0, 1001))
    some = philox.words(source, philox.calls(first, count, stride))
    assert some[0].shape == (2, count)
    for mine, whole in zip(some, every, strict=True):
        assert same_bits(mine, whole[:, first::stride][:, :count])


def test_words_are_clean():
    """Words are integers of 32 bits, every bit of which is set in about half of them."""
    for word in philox.words(philox.stream(3), philox.calls(0, 10_000)):
        assert int(word.min()) >= 0
        assert int(word.max()) < 2**32
        share = torch.stack([(word >> bit & 1).double().mean() for bit in range(32)])
        assert (share - 0.5).abs().max() <= 6 * 0.5 / 20_000**0.5  # six standard errors


def test_no_calls():
    """No calls give no words."""
    even, odd = philox.words(philox.stream(0), philox.calls(5, 0))
    assert even.shape == odd.shape == (2, 0)
