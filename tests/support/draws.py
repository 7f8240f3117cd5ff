"""A draw of each kind, from the plain uniform to a far tail."""

import math

import pytest

import torch_kinit as kinit

INF = math.inf

DRAWS = {
    "uniform": kinit.random_uniform_,
    "normal": kinit.random_normal_,
    "truncated": kinit.trunc_normal_,
    "one-sided": lambda t, **g: kinit.trunc_normal_(t, lower=-1, upper=INF, **g),
    "tail": lambda t, **g: kinit.trunc_normal_(t, lower=3, upper=INF, **g),
    "lower tail": lambda t, **g: kinit.trunc_normal_(t, lower=-5, upper=-3.5, **g),
    "scaled": kinit.he_normal_,
}
every_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
