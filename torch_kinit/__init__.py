"""Keras' initializers for PyTorch: in-place functions, and rules that initialize whole models."""

from torch_kinit._apply import apply, plan
from torch_kinit._compiled import compiled
from torch_kinit._elementary import (
    constant_,
    ones_,
    random_normal_,
    random_uniform_,
    trunc_normal_,
    unit_forget_bias_,
    zeros_,
)
from torch_kinit._exchange import from_keras, to_keras
from torch_kinit._fans import fans
from torch_kinit._fsdp1 import param_init_fn
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
from torch_kinit._keras_seed import KerasSeed
from torch_kinit._key import Key
from torch_kinit._layouts import Variable, register_layout
from torch_kinit._matching import rules_from_keras
from torch_kinit._materialize import materialize
from torch_kinit._plan import Plan
from torch_kinit._replay import replay_keras
from torch_kinit._rules import (
    KERAS_DEFAULTS,
    TiedParameterError,
    UncoveredParameterError,
    UnusedRuleError,
    skip,
)
from torch_kinit._steps import Step
from torch_kinit._structured import identity_, orthogonal_, stft_
from torch_kinit._twins import Twin, twin

__version__ = "0.2.0"

__all__ = [
    "KERAS_DEFAULTS",
    "KerasSeed",
    "Key",
    "Plan",
    "Step",
    "TiedParameterError",
    "Twin",
    "UncoveredParameterError",
    "UnusedRuleError",
    "Variable",
    "apply",
    "compiled",
    "constant_",
    "fans",
    "from_keras",
    "get",
    "glorot_normal_",
    "glorot_uniform_",
    "he_normal_",
    "he_uniform_",
    "identity_",
    "lecun_normal_",
    "lecun_uniform_",
    "materialize",
    "ones_",
    "orthogonal_",
    "param_init_fn",
    "plan",
    "random_normal_",
    "random_uniform_",
    "register_layout",
    "replay_keras",
    "rules_from_keras",
    "serialize",
    "skip",
    "stft_",
    "to_keras",
    "trunc_normal_",
    "twin",
    "unit_forget_bias_",
    "variance_scaling_",
    "zeros_",
]
