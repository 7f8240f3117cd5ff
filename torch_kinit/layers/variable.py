"""`Variable`, how a torch module stores one variable of Keras'; `Options`; and the entries of saved Keras layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torch_kinit import checks
from torch_kinit.initializers.axes import LAYOUTS, keras_view, resolve_fans
from torch_kinit.initializers.names import recipe
from torch_kinit.torch_internals import tensors_of

CONVENTIONS = ("keras-3.15", "keras-3.14")


@dataclass(frozen=True)
class Options:
    """How to read a layer where Keras has had more than one convention; checked when it is made."""

    convention: str = "keras-3.15"  # the version of Keras whose attention fans are meant, one of `CONVENTIONS`
    depthwise: bool = True  # whether a convolution with as many groups as input channels is Keras' DepthwiseConv

    def __post_init__(self) -> None:
        checks.choice("convention", self.convention, CONVENTIONS)
        checks.boolean("depthwise", self.depthwise)


@dataclass(frozen=True)
class Variable:
    """One tensor of a torch module, as the variable that Keras makes of it.

    Args:
        role: what Keras calls it: kernel, recurrent_kernel, depthwise_kernel, embeddings, bias, gamma, beta, alpha,
            moving_mean, moving_variance; or a name of your own, then give `default` too.
        tensor: the attribute that holds it, "weight", or a path such as "out_proj.weight".
        layout: how its axes are ordered, "torch" (out, in, *spatial) or "keras" (*spatial, in, out); or a function
            from the tensor to a *view* of it in Keras' layout.
        fans: Keras' (fan_in, fan_out) where they are not those of the Keras-layout shape.
        blocks: how many equal blocks along the tensor's first axis are each a variable of their own.
        swapped: whether the first two of three blocks along the first axis stand in the other order in Keras.
        default: the initializer, as the value of a rule gives it: a name, "trunc_normal(std=0.02)", a number, an
            array, a function; None for the role's usual one in `KERAS_DEFAULTS`. A rule of the user's wins over it.
        zero_row: the index of a row that stays zero whatever the initializer.
        row: (index, rows) where this tensor is one of so many rows of one variable of Keras'.
        flattened: (channels, *spatial) of the inputs, where torch's Flatten made the first axis of the Keras layout
            of them: Keras has the channels last there. See `flattened`.
        origin: whose default it is, as the plan's rule column says: "Keras", or the package of the model's authors.

    Example:
        >>> import torch
        >>> Variable("kernel", "weight").views(torch.empty(8, 4, 3, 5))[0].shape
        torch.Size([3, 5, 4, 8])
    """

    role: str
    tensor: str
    layout: str | Callable[[Tensor], Tensor] = "torch"
    fans: tuple[int, int] | None = None
    blocks: int = 1
    swapped: bool = False
    default: Any = None
    zero_row: int | None = field(default=None, kw_only=True)
    row: tuple[int, int] | None = field(default=None, kw_only=True)
    flattened: tuple[int, ...] | None = field(default=None, kw_only=True)
    origin: str = field(default="Keras", kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.layout):
            checks.choice("layout", self.layout, LAYOUTS)
        if not isinstance(self.default, str | None):
            object.__setattr__(self, "default", recipe(self.default))  # so that variables can be compared
        if self.fans is not None:
            object.__setattr__(self, "fans", resolve_fans(self.fans, ()))
        if self.blocks < 1:
            raise ValueError(f"`blocks` must be 1 or more, got {self.blocks!r}.")

    def views(self, tensor: Tensor) -> list[Tensor]:
        """Views of `tensor` in Keras' layout, one a block; what Keras flattens stands in its axes (*spatial, channels).

        `as_in_keras` makes one axis of these, which takes a copy.
        """
        parts_wanted = 3 if self.swapped else self.blocks
        if parts_wanted > 1 and (tensor.ndim == 0 or tensor.shape[0] % parts_wanted):
            raise ValueError(f"{self.tensor} of shape {tuple(tensor.shape)} has no {parts_wanted} equal blocks.")
        parts = [tensor] if self.blocks == 1 else list(tensor.chunk(self.blocks))
        if self.zero_row is not None and not -len(tensor) <= self.zero_row < len(tensor):
            raise ValueError(f"{self.tensor} of shape {tuple(tensor.shape)} has no row {self.zero_row}.")
        layout = self.layout
        views = [layout(part) if callable(layout) else keras_view(part, layout) for part in parts]
        return views if self.flattened is None else [self._channels_last(view, self.flattened) for view in views]

    def _channels_last(self, view: Tensor, sizes: tuple[int, ...]) -> Tensor:
        count = math.prod(sizes)
        if view.ndim == 0 or view.shape[0] != count:
            raise ValueError(
                f"{self.tensor} was said to follow a Flatten of {sizes}, which gives {count} inputs; "
                f"its shape in Keras' layout is {tuple(view.shape)}."
            )
        return torch.unflatten(view, 0, sizes).movedim(0, len(sizes) - 1)

    def as_in_keras(self, view: Tensor) -> Tensor:
        """One of the `views` in the shape of Keras' variable: itself, or a copy where that merges axes."""
        return view if self.flattened is None else view.flatten(0, len(self.flattened) - 1)

    def blocks_of(self, tensor: Tensor) -> list[Tensor]:
        """Keras' variables, one a block, with swapped blocks where Keras has them; views of `tensor` or of a copy."""
        if self.swapped:
            tensor = tensor.clone()
            _swap(tensor)
        return self.views(tensor)

    def fill(self, tensor: Tensor, initializer: Callable[[Tensor], object]) -> None:
        """Run `initializer` on each Keras view of `tensor`, then put swapped blocks where torch has them."""
        for view in self.views(tensor):
            initializer(view)
        if self.swapped:
            with torch.no_grad():
                _swap(tensor)


def _swap(tensor: Tensor) -> None:
    """Exchange the first third of the rows of `tensor` with the second, 64 KiB of float32 or one row at a time."""
    rows = tensor.shape[0] // 3
    step = max(1, (1 << 14) // max(1, tensor[0].numel())) if rows else 1
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        first, second = tensor[start:stop], tensor[rows + start : rows + stop]
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)


Layout = Callable[[Any, Options], Sequence[Variable]]  # from a module to its variables, the main weight first
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
    return name in tensors_of(module) or parametrize.is_parametrized(module, name)


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
