"""What is timed: the same fills by this package, by torch.nn.init and by Keras on torch."""

import keras
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.laws import Normal, TruncatedAtTwo, Uniform, check_law

SIZE = 16 << 20
SHAPE = (4096, 4096)
PARAMETERS = 400

_float32 = torch.empty(SHAPE)
_bfloat16 = torch.empty(SHAPE, dtype=torch.bfloat16)
_limit = (3 * 2 / 4096) ** 0.5


def keras_truncated_normal():
    """Keras' own, which returns a new tensor."""
    return keras.initializers.TruncatedNormal(stddev=0.05, seed=0)(SHAPE)


# name: (the call, the law its result must have)
FILLS = {
    "tensor.uniform_": (lambda: _float32.uniform_(), Uniform(0, 1)),
    "tensor.normal_": (lambda: _float32.normal_(), Normal(0, 1)),
    "kinit.trunc_normal_": (lambda: kinit.trunc_normal_(_float32), TruncatedAtTwo(0, 0.05)),
    "kinit.trunc_normal_, bfloat16": (lambda: kinit.trunc_normal_(_bfloat16), None),
    "kinit.trunc_normal_, a tail": (lambda: kinit.trunc_normal_(_float32, lower=3, upper=float("inf")), None),
    "torch.nn.init.trunc_normal_": (
        lambda: nn.init.trunc_normal_(_float32, std=0.05, a=-0.1, b=0.1),
        TruncatedAtTwo(0, 0.05),
    ),
    "Keras' TruncatedNormal on torch": (keras_truncated_normal, None),
    "kinit.he_uniform_": (lambda: kinit.he_uniform_(_float32), Uniform(-_limit, _limit)),
    "kinit.random_normal_": (lambda: kinit.random_normal_(_float32), Normal(0, 0.05)),
}


def check(name, values):
    """Whether a fill has given what it should."""
    law = FILLS[name][1]
    if law is not None:
        # torch.nn.init rounds its bound to float32, which lies outside by half a spacing
        values = values.double().clamp(law.low, law.high) if name.startswith("torch") else values
        check_law(values.flatten()[: 1 << 20], law)
    else:
        assert bool(torch.isfinite(values).all())
        assert float(values.float().std()) > 0.01


def model():
    """A model of 400 small parameters, so that the bookkeeping is what takes time."""
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(PARAMETERS // 2)))


def fill_bare(module):
    """The fills that a plan of defaults does for `model()`, and nothing else."""
    for layer in module:
        kinit.glorot_uniform_(layer.weight)
        kinit.zeros_(layer.bias)


def plan_and_apply(module):
    """What is compared with the bare fills."""
    return kinit.plan(module).apply()
