"""After any error everything is as it was."""

import itertools
from functools import partial
from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import torch_kinit as kinit
from tests.support.fingerprint import fingerprint
from tests.support.memory import PeakMemory
from tests.support.models import Positions, Symmetric, linear, seeded, symmetric, tied


class Failing(Symmetric):
    """It fails from the second time on; the first is torch's, when it is registered."""

    called = False

    def right_inverse(self, x):
        if self.called:
            torch.rand(3)
            raise RuntimeError("no way back")
        self.called = True
        return x.triu()


def boom(tensor, generator=None):
    """An initializer that fails after it has drawn and written."""
    nn.init.normal_(tensor, generator=generator)
    nn.init.normal_(tensor)
    raise RuntimeError("boom")


def chain(*modules):
    return lambda: nn.Sequential(*(make() for make in modules), nn.BatchNorm1d(4), nn.Linear(4, 4))


FAILURES = {
    "unused rule": (chain(linear), {"0": "zeros", "haed": "zeros"}, {}, kinit.UnusedRuleError),
    "uncovered": (Positions, {"head": "zeros"}, {}, kinit.UncoveredParameterError),
    "tied": (tied, {nn.Embedding: "zeros", nn.Linear: "ones"}, {}, kinit.TiedParameterError),
    "value": (chain(linear), {"0": "ones", "2": partial(kinit.he_normal_, fans=(-1, 2))}, {}, ValueError),
    "lazy": (chain(lambda: nn.LazyLinear(4)), None, {}, ValueError),
    "no right_inverse": (chain(linear, lambda: symmetric(Symmetric())), None, {}, ValueError),
    "integer generator": (chain(linear), None, {"generator": 0}, TypeError),
    "convention": (chain(linear), None, {"convention": "keras"}, ValueError),
    "foreign, midway": (chain(linear), {"2": boom}, {}, RuntimeError),
    "foreign, of a bias": (
        chain(linear),
        {"2": nn.init.xavier_normal_, "2.bias": nn.init.xavier_normal_},
        {},
        ValueError,
    ),
    "foreign, after weight_norm": (
        chain(lambda: parametrizations.weight_norm(linear())),
        {"2": boom},
        {},
        RuntimeError,
    ),
    "foreign, after spectral_norm": (
        chain(lambda: parametrizations.spectral_norm(linear())),
        {"2": boom},
        {},
        RuntimeError,
    ),
    "foreign, after orthogonal": (chain(lambda: parametrizations.orthogonal(linear())), {"2": boom}, {}, RuntimeError),
    "failing right_inverse": (chain(linear, lambda: symmetric(Failing())), None, {}, RuntimeError),
    "Cayley without trivialization": (
        chain(linear, lambda: parametrizations.orthogonal(linear(), orthogonal_map="cayley", use_trivialization=False)),
        None,
        {},
        Exception,
    ),
}


@pytest.mark.parametrize("use_global", [True, False], ids=["global", "generator"])
@pytest.mark.parametrize(("make", "rules", "options", "kind"), FAILURES.values(), ids=FAILURES)
def test_an_error_leaves_everything_untouched(make, rules, options, kind, use_global):
    """After any error all parameters, buffers, modes and random states are what they were, bit for bit."""
    model, generator = make(), seeded()
    if not use_global:
        options = {"generator": generator, **options}
    before = fingerprint(model, generator)
    with pytest.raises(kind):
        kinit.apply(model, rules, **options)
    assert fingerprint(model, generator) == before


# Errors of this package's own, or of torch beneath it, halfway.


class FailAt(TorchDispatchMode):
    """Raises in place of the operation of this number; `count` is how many there have been."""

    def __init__(self, number):
        super().__init__()
        self.number, self.count = number, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.number:
            raise RuntimeError("out of order")
        return func(*args, **(kwargs or {}))


def failing(function, number):
    """The function, which raises when it is called for the time of this number."""
    count = itertools.count(1)

    def call(*args, **kwargs):
        if next(count) == number:
            raise RuntimeError("out of order")
        return function(*args, **kwargs)

    return call


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3), nn.BatchNorm1d(4), nn.LSTM(4, 3), nn.Linear(4, 4))


PLANNED, ARRAYS = kinit.plan(network()), kinit.to_keras(network())
WAYS = {
    "global generator": lambda model, generator: kinit.apply(model),
    "generator": lambda model, generator: kinit.apply(model, generator=generator),
    "seed": lambda model, generator: kinit.apply(model, seed=1),
    "KerasSeed": lambda model, generator: kinit.apply(model, generator=kinit.KerasSeed(1, "jax")),
    "Plan.apply": lambda model, generator: kinit.plan(model).apply(generator=generator),
    "Plan.apply with a seed": lambda model, generator: kinit.plan(model).apply(seed=1),
    "Plan.apply to another": lambda model, generator: PLANNED.apply(model, generator=generator),
    "replay_keras on torch": lambda model, generator: kinit.replay_keras(model, 1, backend="torch"),
    "replay_keras on JAX": lambda model, generator: kinit.replay_keras(model, 1, backend="jax"),
    "replay_keras on TensorFlow": lambda model, generator: kinit.replay_keras(model, 1, backend="tensorflow"),
    "from_keras": lambda model, generator: kinit.from_keras(model, ARRAYS),
}
DRAWN_BY_TORCH = ("global generator", "generator", "Plan.apply", "Plan.apply to another")


def check_nothing_changed(way, context):
    """Raise AssertionError unless a way to fill a model fails in a context and leaves all as it was."""
    model, generator = network(), seeded()
    before = fingerprint(model, generator)
    with context, pytest.raises((RuntimeError, TypeError), match="out of order"):  # from_keras blames the array
        WAYS[way](model, generator)
    assert fingerprint(model, generator) == before


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_whatever_operation_fails(way):
    """An error in any of torch's operations on the way, here twenty of them, leaves everything untouched."""
    model, generator = network(), seeded()
    WAYS[way](model, generator)  # what is computed once and kept is now there
    before = fingerprint(model, generator)
    with FailAt(0) as running:
        WAYS[way](model, generator)
    assert (fingerprint(model, generator) != before) == (way in DRAWN_BY_TORCH)  # the others come to the same values
    for number in {1 + i * (running.count - 1) // 19 for i in range(20)}:
        check_nothing_changed(way, FailAt(number))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "from_keras"])
def test_a_failing_qr(way, number):
    """LAPACK fails at the first or the second orthogonal weight."""
    check_nothing_changed(way, mock.patch.object(torch.linalg, "qr", failing(torch.linalg.qr, number)))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("way", DRAWN_BY_TORCH)
def test_a_failing_draw(way, number):
    """torch fails at the first or the second uniform draw."""
    check_nothing_changed(way, mock.patch.object(torch.Tensor, "uniform_", failing(torch.Tensor.uniform_, number)))


MIB = 1 << 20


def large(*more):
    """Weights of 64 MiB, and more layers."""
    return nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16)), *more)


def orthogonal():
    return parametrizations.orthogonal(nn.Linear(16, 16))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("source", ["seed", "generator"])
def test_a_failing_qr_of_a_large_model(source, number):
    """What is not kept in a large model is not touched before all that can fail is done."""
    model, generator = large(nn.LSTM(8, 8), nn.LSTM(8, 8)), seeded()
    before = fingerprint(model, generator)
    qr = mock.patch.object(torch.linalg, "qr", failing(torch.linalg.qr, number))
    with qr, pytest.raises(RuntimeError, match="out of order"):
        kinit.apply(model, **{source: 1 if source == "seed" else generator})
    assert fingerprint(model, generator) == before


def peak(model, rules=None, **arguments):
    """The most bytes that initializing a model takes beside it."""
    with PeakMemory(*model.parameters()) as memory:
        kinit.apply(model, rules, **arguments)
    return memory.peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "rules"),
    [
        ([], None),
        ([nn.Linear(64, 64)], {"16": "orthogonal"}),
        ([nn.Linear(64, 64)], {"0": "zeros", "16": "orthogonal"}),
        ([orthogonal()], None),
    ],
    ids=["linear", "with an orthogonal weight", "with constants", "with a parametrized weight"],
)
def test_no_copy_of_a_large_model_is_kept(more, rules):
    """Weights whose draw cannot fail are not kept: memory stays below a tenth of theirs."""
    assert peak(large(*more), rules, seed=1) < 64 * MIB / 10


def test_what_can_fail_is_kept():
    """The count of memory sees a kept copy: where another's initializer may fail at the end, all weights are kept."""
    assert peak(large(), {"15": nn.init.xavier_normal_}, generator=seeded()) > 60 * MIB
