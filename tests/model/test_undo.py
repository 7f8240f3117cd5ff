"""After any error everything is as it was."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.fingerprint import fingerprint
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
