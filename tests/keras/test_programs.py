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
    # An initializer that is None is made by Keras on the way, and the live model does not keep it.
    wanted = ["refused" if "_initializer=None" in outcome.source else "exact" for outcome in captured]
    assert [outcome.verdict for outcome in captured] == wanted, found
    assert found["exact"], found
    assert found["warned"], found


@keras_here
def test_few_programs():
    """Twenty programs on torch: exact, or told."""
    check("torch", range(20), here)


@pytest.mark.slow
@on_each_backend
def test_many_programs(name):
    """A hundred and fifty programs on torch, and the first fifty of them on the others: exact, or told."""
    check(name, range(1000, 1150 if name == "torch" else 1050))


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
def test_an_archive_is_never_wrong_without_a_word(tmp_path):
    """A .keras file, which tells shared objects too, gives every weight or a warning where the plain config does."""
    sources = [program(number) for number in range(20, 50)]
    for i, (source, made) in enumerate(zip(sources, real("torch", sources, run=here, folder=tmp_path), strict=True)):
        archive = replayed(source, made, "torch", seed=1, keras_config=tmp_path / f"{i}.keras")
        assert archive.verdict in ("exact", "warned") or from_config(source, made, "torch").verdict == "silent", source


ONE_OBJECT = """
def make():
    init = ki.HeNormal()
    return keras.Sequential([keras.Input((4,)), kl.Dense(4, kernel_initializer=init), kl.Dense(3),
                             kl.Dense(4, kernel_initializer=init)])
"""


@keras_here
def test_an_archive_tells_shared_objects(tmp_path):
    """A .keras file says which layers have one initializer, of which model.to_json() has nothing."""
    (made,) = real("torch", [ONE_OBJECT], run=here, folder=tmp_path)
    archive = replayed(ONE_OBJECT, made, "torch", seed=1, keras_config=tmp_path / "0.keras")
    assert archive.verdict == "exact"
    assert from_config(ONE_OBJECT, made, "torch").differing == ("2.weight",)


RECURRENT = """
def make():
    {}
    return keras.Sequential([keras.Input((6, 4)), {}])
"""


@keras_here
def test_initializers_of_recurrent_layers_are_not_one_for_their_ids(tmp_path):
    """Keras saves them twice and so gives each an id in a .keras file; one that two layers share is known by it."""
    own = RECURRENT.format("", "kl.Dense(4), kl.GRU(4, return_sequences=True), kl.Dense(3), kl.LSTM(4)")
    gru, lstm = "kl.GRU(4, return_sequences=True, kernel_initializer=init)", "kl.LSTM(4, kernel_initializer=init)"
    shared = RECURRENT.format("init = ki.RandomNormal(stddev=0.02)", f"{gru}, kl.Dense(3), {lstm}")
    found = real("torch", [own, shared], run=here, folder=tmp_path)
    outcomes = [
        replayed(source, made, "torch", seed=1, keras_config=tmp_path / f"{i}.keras")
        for i, (source, made) in enumerate(zip([own, shared], found, strict=True))
    ]
    assert outcomes[0].verdict == "exact"
    assert outcomes[1].equal
    assert not any("may be one object" in text for text in outcomes[1].warnings)


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


def test_orthogonal_kernels_may_round_otherwise():
    """On JAX and TensorFlow, whose QR rounds otherwise, an orthogonal kernel is equal within 5e-5; no other is."""
    orthogonal, _ = torch.linalg.qr(torch.randn(6, 6))
    for kernel, off, differing in (
        (orthogonal, 4e-5, []),
        (orthogonal, 6e-5, ["0.weight"]),
        (torch.randn(6, 6), 1e-6, ["0.weight"]),
    ):
        port = Port([("Dense", [(6, 4)])])
        port.model.load_state_dict({"0.weight": kernel[:, :4].t() + off})
        assert port.differing([kernel[:, :4]], "jax") == differing
        assert port.differing([kernel[:, :4]], "torch") == ["0.weight"]
