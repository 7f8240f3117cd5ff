"""A law is data: it compares, goes through JSON and pickle, does not change, and refuses what makes no law."""

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
import torch

import torch_kinit as kinit
from torch_kinit import Constant, Normal, TruncatedNormal, Uniform
from torch_kinit.streams.laws import Entries, law_from_dict

INF = math.inf
DATA = {
    "Uniform": (Uniform, (-1, 2), {"law": "Uniform", "arguments": [-1.0, 2.0]}),
    "Normal": (Normal, (0, 1), {"law": "Normal", "arguments": [0.0, 1.0]}),
    "TruncatedNormal": (TruncatedNormal, (0, 1), {"law": "TruncatedNormal", "arguments": [0.0, 1.0, -2.0, 2.0]}),
    "one-sided": (TruncatedNormal, (0, 1, -INF, 3), {"law": "TruncatedNormal", "arguments": [0.0, 1.0, "-inf", 3.0]}),
    "both": (TruncatedNormal, (0, 1, -INF, INF), {"law": "TruncatedNormal", "arguments": [0.0, 1.0, "-inf", "inf"]}),
    "Constant": (Constant, (3,), {"law": "Constant", "arguments": [3.0]}),
    "Entries": (Entries, (0.5, 0.25, 0.0, 1.0), {"law": "Entries", "arguments": [0.5, 0.25, 0.0, 1.0]}),
}  # fmt: skip
every_kind = pytest.mark.parametrize(("kind", "arguments", "written"), DATA.values(), ids=DATA)


@every_kind
def test_json(kind, arguments, written):
    """A law is written to strict JSON, infinities too, and read back equal."""
    law = kind(*arguments)
    assert law.to_dict() == written
    assert law_from_dict(json.loads(json.dumps(law.to_dict(), allow_nan=False))) == law


@every_kind
def test_equality_and_hash(kind, arguments, written):
    """Laws are equal by kind and numbers, whatever type these had, and so are their hashes and copies."""
    law = kind(*arguments)
    for same in (kind(*map(np.float32, arguments)), pickle.loads(pickle.dumps(law)), copy.deepcopy(law)):
        assert same == law
        assert hash(same) == hash(law)
    other = kind(arguments[0] - 1, *arguments[1:])
    assert law != other
    assert len({law, other, kind(*arguments)}) == 2


@every_kind
def test_frozen(kind, arguments, written):
    """No number of a law can be changed."""
    law = kind(*arguments)
    for field in dataclasses.fields(law):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(law, field.name, 5.0)
    assert law == kind(*arguments)


def test_kinds_are_different():
    """Laws of two kinds are not equal, even if their values are."""
    laws = [Constant(0.5), Normal(0.5, 0.0), TruncatedNormal(0.5, 0.0), Normal(0.0, 1.0)]
    laws += [TruncatedNormal(0.0, 1.0, -INF, INF), Uniform(0.0, 1.0)]
    assert len(set(laws)) == len(laws)


def test_a_repr_makes_the_law_again():
    """The repr of each public law is the call that makes it."""
    for law in (Uniform(-1.0, 2.0), Normal(0.5, 1.0), TruncatedNormal(0.1, 0.2, -1.0, 3.0), Constant(3.0)):
        assert eval(repr(law), vars(kinit)) == law


REFUSED = {
    "uniform, equal": (Uniform, (1.0, 1.0), ValueError, "`low` must be less than `high`"),
    "uniform, infinite": (Uniform, (0.0, INF), ValueError, "`high` must be finite, got inf"),
    "uniform, NaN": (Uniform, (math.nan, 1.0), ValueError, "`low` must be finite, got nan"),
    "uniform, string": (Uniform, ("0", 1.0), TypeError, "`low` must be a number, got '0' of type str"),
    "normal, negative": (Normal, (0.0, -1.0), ValueError, r"`std` must not be negative, got -1\.0"),
    "normal, bool": (Normal, (True, 1.0), TypeError, "`mean` must be a number, got True of type bool"),
    "normal, infinite": (Normal, (0.0, INF), ValueError, "`std` must be finite, got inf"),
    "truncated, empty": (TruncatedNormal, (0.0, 1.0, 2.0, 2.0), ValueError, "`lower` must be less than `upper`"),
    "truncated, NaN": (TruncatedNormal, (0.0, 1.0, math.nan, 2.0), ValueError, "`lower` must be a number, got nan"),
    "truncated, tensor": (TruncatedNormal, (torch.zeros(()), 1.0), TypeError, "`mean` must be a number"),
    "constant, infinite": (Constant, (INF,), ValueError, "`value` must be finite, got inf"),
    "constant, none": (Constant, (None,), TypeError, "`value` must be a number, got None"),
}


@pytest.mark.parametrize(("kind", "arguments", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(kind, arguments, error, message):
    """A number that makes no law is refused by name."""
    with pytest.raises(error, match=message):
        kind(*arguments)


UNFIT = {
    "uniform": (Uniform(-1e5, 1e5), "cannot hold"),
    "uniform between numbers": (Uniform(1.0001, 1.0002), "has no value between"),
    "normal": (Normal(6e4, 1e3), r"`mean`=60000\.0 and `std`=1000\.0 give values up to 6\.9e\+04"),
    "truncated": (TruncatedNormal(0.0, 1e5), "cannot hold"),
    "truncated, no spread": (TruncatedNormal(1e5, 0.0), "cannot hold"),
    "constant": (Constant(1e5), "does not fit in"),
}


@pytest.mark.parametrize(("law", "message"), UNFIT.values(), ids=UNFIT)
def test_a_law_that_does_not_fit_is_refused(law, message):
    """A law of values that a dtype does not have is refused for it, and accepted for a wider one."""
    with pytest.raises(ValueError, match=message):
        law.support(torch.float16)
    law.support(torch.float32)
