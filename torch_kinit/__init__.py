"""Keras' initializers for PyTorch, in the style of torch.nn.init, for one tensor or a whole model.

One tensor: `he_normal_(weight)` and its kin fill it in place. `generator=` is a torch.Generator, `Key` or `KerasSeed`.
A model: `apply(model, rules)` gives each layer Keras' default, or what a rule says; `plan` shows that beforehand.
One seed, any machine: `apply(model, seed=0)`, of sharded models too; `materialize` gives memory to one on meta.
Keras' own numbers: `replay_keras(model, seed, backend="jax")`. Keras' weights: `from_keras`, `to_keras`.

Example:
    >>> import torch_kinit as kinit
    >>> kinit.KERAS_DEFAULTS["kernel"], kinit.law("glorot_uniform", (4, 2))
    ('glorot_uniform', Uniform(low=-1.0, high=1.0))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch_kinit.initializers.axes import fans
from torch_kinit.initializers.names import get, law, serialize
from torch_kinit.initializers.plain import (
    constant_,
    ones_,
    random_normal_,
    random_uniform_,
    trunc_normal_,
    unit_forget_bias_,
    zeros_,
)
from torch_kinit.initializers.scaled import (
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
    lecun_normal_,
    lecun_uniform_,
    variance_scaling_,
)
from torch_kinit.initializers.structured import identity_, orthogonal_, stft_
from torch_kinit.layers.table import flattened, register_layout
from torch_kinit.layers.variable import Variable
from torch_kinit.model.apply import apply, plan
from torch_kinit.model.fsdp1 import param_init_fn
from torch_kinit.model.materialize import materialize
from torch_kinit.model.plan import INSPECTIONS, Plan
from torch_kinit.model.rule_files import load_rules
from torch_kinit.model.rules import (
    KERAS_DEFAULTS,
    TiedParameterError,
    UncoveredParameterError,
    UnusedRuleError,
    skip,
)
from torch_kinit.model.steps import Step
from torch_kinit.streams.compiled import compiled
from torch_kinit.streams.keras_seed import KerasSeed
from torch_kinit.streams.key import Key
from torch_kinit.streams.laws import Constant, Normal, TruncatedNormal, Uniform

if TYPE_CHECKING:
    from torch_kinit.inspection import plot
    from torch_kinit.inspection.audit.audit import audit
    from torch_kinit.inspection.audit.report import Audit, Finding
    from torch_kinit.inspection.compare.compare import compare
    from torch_kinit.inspection.compare.differences import Difference
    from torch_kinit.inspection.compare.report import Comparison
    from torch_kinit.inspection.outputs.forward import OutputReport
    from torch_kinit.inspection.outputs.layerwise import OutputRow
    from torch_kinit.inspection.probe.probe import probe
    from torch_kinit.inspection.probe.report import ProbeReport, ProbeRow
    from torch_kinit.keras.foreign import register_keras_layer
    from torch_kinit.keras.live import keras_config
    from torch_kinit.keras.port import rules_from_keras
    from torch_kinit.keras.replay import replay_keras
    from torch_kinit.keras.twin import Twin, twin
    from torch_kinit.keras.weights import from_keras, to_keras

__version__ = "0.7.0"

__all__ = [
    "Audit", "Comparison", "Constant", "Difference", "Finding", "KERAS_DEFAULTS", "KerasSeed", "Key", "Normal",
    "OutputReport", "OutputRow", "Plan", "ProbeReport", "ProbeRow", "Step", "TiedParameterError", "TruncatedNormal",
    "Twin", "UncoveredParameterError", "Uniform", "UnusedRuleError", "Variable", "apply", "audit", "compare",
    "compiled", "constant_", "fans", "flattened", "from_keras", "get", "glorot_normal_", "glorot_uniform_",
    "he_normal_", "he_uniform_", "identity_", "keras_config", "law", "lecun_normal_", "lecun_uniform_", "load_rules",
    "materialize", "ones_", "orthogonal_", "param_init_fn", "plan", "plot", "probe", "random_normal_",
    "random_uniform_", "register_keras_layer", "register_layout", "replay_keras", "rules_from_keras", "serialize",
    "skip", "stft_", "to_keras", "trunc_normal_", "twin", "unit_forget_bias_", "variance_scaling_", "zeros_",
]  # fmt: skip

# Imported when one of them is first asked for: they are half of the package, and most programs need none.
_KERAS = {
    "keras.foreign": ["register_keras_layer"],
    "keras.live": ["keras_config"],
    "keras.port": ["rules_from_keras"],
    "keras.replay": ["replay_keras"],
    "keras.twin": ["Twin", "twin"],
    "keras.weights": ["from_keras", "to_keras"],
}
_INSPECTION = {
    "inspection.audit.audit": ["audit"],
    "inspection.audit.report": ["Audit", "Finding"],
    "inspection.compare.compare": ["compare"],
    "inspection.compare.report": ["Comparison"],
    "inspection.compare.differences": ["Difference"],
    "inspection.outputs.forward": ["OutputReport"],
    "inspection.outputs.layerwise": ["OutputRow"],
    "inspection.probe.probe": ["probe"],
    "inspection.probe.report": ["ProbeReport", "ProbeRow"],
}


def _live_here(names: dict[str, Any]) -> None:
    """Let names say that they are this module's, whatever file they stand in: in tracebacks and pickles."""
    for found in names.values():
        if hasattr(found, "__module__"):
            found.__module__ = __name__
    globals().update(names)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    of_keras = any(name in names for names in _KERAS.values())
    for path, names in (_KERAS if of_keras else {**_KERAS, **_INSPECTION}).items():
        file = importlib.import_module(f"{__name__}.{path}")
        _live_here({each: getattr(file, each) for each in names})
    if not of_keras:
        globals()["plot"] = importlib.import_module(f"{__name__}.inspection.plot")
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _inspection(path: str, name: str) -> Callable[..., Any]:
    """A function of inspection/ that is imported when it is called."""
    return lambda *args, **settings: getattr(importlib.import_module(f"{__name__}.{path}"), name)(*args, **settings)


INSPECTIONS.update(
    audit=_inspection("inspection.audit.audit", "audit_plan"), plot=_inspection("inspection.plot", "plan")
)
_live_here({name: globals()[name] for name in __all__ if name in globals()})
