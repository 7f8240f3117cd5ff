"""Random Keras programs of all styles: a replay gives Keras' own weights, or says that it may not."""

import random
import re

import pytest
import torch

from tests.support.backends import NAMES
from tests.support.mechanical import Port
from tests.support.programs import counts, from_captured, from_config, here, outcomes, real, replayed
from tests.support.random_layers import NAMINGS, style_of
from tests.support.random_programs import TWINS, program

on_each_backend = pytest.mark.parametrize("name", NAMES)
keras_here = pytest.mark.usefixtures("_keras_on_cpu", "_one_thread")


def check(name, numbers, run=None):
    """No plain config gives other weights without a warning, and what keras_config captures gives the very weights."""
    plain, captured = outcomes(name, numbers, run=run)
    found = counts(name, plain, captured)
    assert not [outcome for outcome in plain if outcome.verdict in ("silent", "refused")], found
    assert [outcome.verdict for outcome in captured] == ["exact"] * len(numbers), found
    assert found["exact"], found
    assert found["warned"], found


@keras_here
def test_few_programs():
    """Twenty programs on torch: exact, or told."""
    check("torch", range(20), here)


@pytest.mark.slow
@on_each_backend
def test_many_programs(name):
    """Three hundred programs on each backend: exact, or told."""
    check(name, range(1000, 1300))


def stack(shape, *layers, dtype="float32"):
    return f"""
def make():
    return keras.Sequential([keras.Input({shape}, dtype="{dtype}"), {", ".join(layers)}])
"""


UNAMBIGUOUS = {
    "dense": stack((4,), "kl.Dense(6, 'relu', kernel_initializer='he_normal')", "kl.Dropout(0.1)", "kl.Dense(3)"),
    "dense, all by one name": stack((4,), *["kl.Dense(4, kernel_initializer='he_normal')"] * 3),
    "convolutions": stack((6, 6, 3), "kl.Conv2D(4, 2, kernel_initializer='he_uniform')", "kl.BatchNormalization()",
                          "kl.MaxPooling2D()", "kl.Conv2D(6, 2)", "kl.Flatten()", "kl.Dropout(0.5)",
                          "kl.Dense(3, kernel_initializer='lecun_normal')"),
    "recurrent": stack((6,), "kl.Embedding(11, 4)", "kl.LSTM(4, return_sequences=True)",
                       "kl.LSTM(4, kernel_initializer='he_normal')", "kl.Dense(3)", dtype="int32"),
    "names of its own": stack((4,), "kl.Dense(6, name='first')", "kl.Dense(4, name='second')"),
}  # fmt: skip


def check_unambiguous(name, sources, run=None):
    for source, made in zip(sources, real(name, sources, run=run), strict=True):
        assert from_config(source, made, name).verdict == "exact", source
        assert from_captured(source, made, name).verdict == "exact", source


@keras_here
@pytest.mark.parametrize("case", UNAMBIGUOUS)
def test_nothing_is_said_where_nothing_is_ambiguous(case):
    """A Sequential of common layers with initializers by name is replayed from its config, without a warning."""
    check_unambiguous("torch", [UNAMBIGUOUS[case]], here)


@pytest.mark.slow
@on_each_backend
def test_nothing_is_said_where_nothing_is_ambiguous_on(name):
    """So it is on each backend."""
    check_unambiguous(name, list(UNAMBIGUOUS.values()))


@keras_here
def test_an_archive_tells_what_the_config_does(tmp_path):
    """A .keras file gives the outcome of model.to_json()."""
    sources = [program(number) for number in range(20, 26)]
    for i, (source, made) in enumerate(zip(sources, real("torch", sources, run=here, folder=tmp_path), strict=True)):
        archive = replayed(source, made, "torch", seed=1, keras_config=tmp_path / f"{i}.keras")
        assert archive == from_config(source, made, "torch")


# The programs themselves, and the check that judges them.

KINDS = """Dense Conv1D Conv2D Conv2DTranspose DepthwiseConv2D SeparableConv2D Embedding SimpleRNN LSTM GRU
Bidirectional RNN StackedRNNCells LSTMCell TimeDistributed MultiHeadAttention GroupQueryAttention BatchNormalization
LayerNormalization GroupNormalization PReLU Dropout SpatialDropout1D SpatialDropout2D GaussianNoise EinsumDense
SpectralNormalization Flatten Add Concatenate"""
WAYS = r"""\.add\( keras\.Sequential\(\[ keras\.Model\( shared\d\( TimeDistributed\(model =init[,)] ={"class_name"
=ki\.HeNormal\(\) stddev=0\.02\) name= dense_98 seed=\d =None"""


def test_programs_are_of_all_kinds():
    """Three hundred programs have each layer, way to give initializers, and way to make models many times."""
    text = "\n".join(program(number) for number in range(300))
    for pattern in [rf"kl\.{kind}\(" for kind in KINDS.split()] + WAYS.split():
        assert len(re.findall(pattern, text)) >= 3, pattern
    assert program(7) == program(7)
    assert program(7) != program(7, **TWINS[0])
    assert {style_of(random.Random(number)).naming for number in range(60)} == set(NAMINGS)


@keras_here
def test_what_differs_is_found():
    """Another seed makes an outcome silent, and one changed value is found; so the check can fail."""
    source = UNAMBIGUOUS["convolutions"]
    (made,) = real("torch", [source], run=here)
    assert from_config(source, made, "torch", seed=2).differing == ("0.weight", "2.weight", "3.weight")
    assert from_config(source, made, "torch", seed=2).verdict == "silent"
    port = Port(made["layers"])
    port.model.load_state_dict(port.expected(made["weights"]), strict=False)
    assert not port.differing(made["weights"], "torch")
    with torch.no_grad():
        port.model[3].bias[0] += 1e-6
    assert port.differing(made["weights"], "jax") == ["3.bias"]
