"""The entries that Keras layers have in a saved model, made for torch modules instead of read from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from torch_kinit.layers.variable import Options, Variable
from torch_kinit.torch_internals import buffers_of, parameters_of

Entry = dict[str, Any]
InitializerOf = Callable[[str], Any]  # from a tensor's name in its module to the Keras config of its initializer
Twins = Callable[[Any, Options, InitializerOf], list[Entry]]  # from a module to the Keras layers that it stands for

_TORCH_ONLY = ("num_batches_tracked", "second_bias", "projection_kernel", "bias_k", "bias_v")  # roles unknown to Keras
_FLAGS = {"bias": "use_bias", "gamma": "scale", "beta": "center"}


def entry(class_name: str, shape: Iterable[int | None] | None = None, **config: Any) -> Entry:
    """The entry of a layer that was built on inputs of `shape`, the batch aside; of an unbuilt one without it."""
    built = {} if shape is None else {"build_config": {"input_shape": [None, *shape]}}
    return {"class_name": class_name, "config": config, **built}


def holds(module: nn.Module, name: str) -> bool:
    """Whether a module has a tensor of this name; asked without running its parametrization."""
    held = parameters_of(module).get(name), buffers_of(module).get(name)
    return any(tensor is not None for tensor in held) or parametrize.is_parametrized(module, name)


def initializers(module: nn.Module, variables: Iterable[Variable], initializer_of: InitializerOf) -> Entry:
    """The arguments of the Keras layer that say which of `variables` it has, and their initializers."""
    config: Entry = {}
    for variable in variables:
        argument = f"{variable.role.removesuffix('_kernel')}_initializer"
        if variable.role not in _TORCH_ONLY and argument not in config:
            held = holds(module, variable.tensor)
            config |= {_FLAGS[variable.role]: held} if variable.role in _FLAGS else {}
            config |= {argument: initializer_of(variable.tensor)} if held else {}
    return config
