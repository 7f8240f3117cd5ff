"""Keras' initializers for PyTorch: in-place functions, and rules that initialize whole models."""

from torch_kinit._elementary import (
    constant_,
    ones_,
    random_normal_,
    random_uniform_,
    trunc_normal_,
    unit_forget_bias_,
    zeros_,
)
from torch_kinit._fans import fans
from torch_kinit._identifiers import get, serialize
from torch_kinit._initializers import (
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
    lecun_normal_,
    lecun_uniform_,
    variance_scaling_,
)
from torch_kinit._layouts import Variable, register_layout
from torch_kinit._plan import Plan, apply, plan
from torch_kinit._rules import (
    KERAS_DEFAULTS,
    TiedParameterError,
    UncoveredParameterError,
    UnusedRuleError,
    skip,
)
from torch_kinit._steps import Step
from torch_kinit._structured import identity_, orthogonal_, stft_

__version__ = "0.1.0"

__all__ = [
    "KERAS_DEFAULTS",
    "Plan",
    "Step",
    "TiedParameterError",
    "UncoveredParameterError",
    "UnusedRuleError",
    "Variable",
    "apply",
    "constant_",
    "fans",
    "get",
    "glorot_normal_",
    "glorot_uniform_",
    "he_normal_",
    "he_uniform_",
    "identity_",
    "lecun_normal_",
    "lecun_uniform_",
    "ones_",
    "orthogonal_",
    "plan",
    "random_normal_",
    "random_uniform_",
    "register_layout",
    "serialize",
    "skip",
    "stft_",
    "trunc_normal_",
    "unit_forget_bias_",
    "variance_scaling_",
    "zeros_",
]
