"""`Known`, a row of the tables of other packages' layers: whose tensors of which names are which variables."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from torch_kinit.layers.variable import Variable

Found = Variable | Callable[[nn.Module, Tensor], Variable]  # without the name of its tensor


@dataclass(frozen=True)
class Known:
    r"""Tensors of one kind in another package, which need not be installed.

    Args:
        package: the name under which it is imported, "transformers".
        classes: a regex for the whole names of the classes that hold such tensors.
        tensors: a regex for the whole names of the tensors; one with a dot is for those of a module inside.
        found: the variable, with a name put in later; or a function from the module and the tensor to it.
        buffers: whether buffers are meant, too. Those of most names are tables that a constructor computes.

    Example:
        >>> norms = Known("transformers", r"\w+RMSNorm", "weight", Variable("gamma", "", "keras"))
        >>> norms.is_of("LlamaRMSNorm"), norms.is_of("LlamaAttention")
        (True, False)
    """

    package: str
    classes: str
    tensors: str
    found: Found
    buffers: bool = False

    @property
    def inside(self) -> bool:
        """Whether the tensors are those of a module inside."""
        return r"\." in self.tensors

    def is_of(self, class_name: str) -> bool:
        """Whether a class of the package holds such tensors, by its name."""
        return re.fullmatch(self.classes, class_name) is not None

    def variable(self, module: nn.Module, name: str, tensor: Tensor) -> Variable | None:
        """The variable that a tensor of this name is; None if it is another one's."""
        if re.fullmatch(self.tensors, name) is None or not (self.buffers or isinstance(tensor, nn.Parameter)):
            return None
        found = self.found if isinstance(self.found, Variable) else self.found(module, tensor)
        return replace(found, tensor=name)


def setting(module: Any, name: str, usual: float) -> float:
    """A number that a module was made with, as it or its config keeps it; the `usual` one where neither does."""
    for holder in (module, getattr(module, "config", None)):
        value = getattr(holder, name, None)
        if isinstance(value, (int, float)):
            return float(value)
    return usual
