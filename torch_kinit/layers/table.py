"""The table of layers: for each torch class, how it stores Keras' variables and which Keras layers it stands for.

A new layer is one row. The layouts, of Keras 3.15 and torch 2.13, are proved in tests/layers/test_layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_kinit import checks
from torch_kinit.layers import feedforward
from torch_kinit.layers.flatten import is_of_inputs, mark, sizes_of, with_sizes
from torch_kinit.layers.recurrent import GRU, LSTM, SIMPLE_RNN
from torch_kinit.layers.variable import Entry, InitializerOf, Layout, Options, Twins, Variable

M = TypeVar("M", bound=nn.Module)


class Row(NamedTuple):
    """What is known of a torch class: its variables, and the Keras layers that it stands for; None for no such."""

    variables: Layout | tuple[Variable, ...] | None
    twins: Twins | None = None


_CONV_TRANSPOSE = Row(feedforward.KERNEL_AND_BIAS, feedforward.conv_transpose)
_BATCH_NORM = Row(feedforward.GAMMA_BETA_AND_STATISTICS, feedforward.batch_norm)
_ROWS: dict[type[nn.Module], Row] = {
    nn.Linear: Row(feedforward.KERNEL_AND_BIAS, feedforward.dense),
    nn.Bilinear: Row(feedforward.bilinear_variables),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), Row(feedforward.conv_variables, feedforward.conv)),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _CONV_TRANSPOSE),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), Row(feedforward.embedding_variables, feedforward.embedding)),
    nn.RNN: Row(SIMPLE_RNN.layer_variables, SIMPLE_RNN.layer_twins),
    nn.LSTM: Row(LSTM.layer_variables, LSTM.layer_twins),
    nn.GRU: Row(GRU.layer_variables, GRU.layer_twins),
    nn.RNNCell: Row(SIMPLE_RNN.cell_variables, SIMPLE_RNN.cell_twin),
    nn.LSTMCell: Row(LSTM.cell_variables, LSTM.cell_twin),
    nn.GRUCell: Row(GRU.cell_variables, GRU.cell_twin),
    nn.MultiheadAttention: Row(feedforward.attention_variables, feedforward.attention),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm), _BATCH_NORM),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _BATCH_NORM),
    nn.GroupNorm: Row(feedforward.GAMMA_AND_BETA, feedforward.group_norm),
    nn.LayerNorm: Row(feedforward.GAMMA_AND_BETA, feedforward.layer_norm),
    nn.RMSNorm: Row(feedforward.GAMMA, feedforward.rms_norm),
    nn.PReLU: Row(feedforward.ALPHA, feedforward.prelu),
    **dict.fromkeys((nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout), Row(None, feedforward.dropout)),
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), Row(None, feedforward.dropout)),
}


def _rows_of(module: nn.Module) -> Iterable[Row]:
    """The rows of a module's class and its bases, the nearest first."""
    return (_ROWS[cls] for cls in type(module).__mro__ if cls in _ROWS)


def layout_of(module: nn.Module, options: Options) -> Sequence[Variable]:
    """The variables of `module` itself, children aside (except a child that Keras sees as part of the layer)."""
    found, sizes = _variables(module, options), sizes_of(module)
    return found if sizes is None else with_sizes(found, sizes)


def _variables(module: nn.Module, options: Options) -> Sequence[Variable]:
    """The variables of a module by its class."""
    variables = next((row.variables for row in _rows_of(module) if row.variables), ())
    return variables(module, options) if callable(variables) else variables


def twins_of(path: str, module: nn.Module, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    """The entries that the Keras layers that `module` stands for would have in a saved model: none, one or several."""
    twins = next((row.twins for row in _rows_of(module) if row.twins), None)
    made = twins(module, options, initializer_of) if twins else []
    return [{**entry, "config": {"name": path, **entry["config"]}} for entry in made]


def register_layout(cls: type[nn.Module], layout: Callable[[Any], Iterable[Variable]]) -> None:
    """Tell how modules of `cls` and its subclasses store their variables.

    Args:
        cls: a module class; registering it again replaces its layout, also a built-in one.
        layout: a function from a module to its `Variable`s, the main weight first. Those whose attribute is None
            (a layer without bias) are passed over.

    Raises:
        TypeError: `cls` is not a module class, or `layout` is not callable.

    Example: GPT-2's Conv1D keeps its weight as (in, out), which is Keras' layout.
        >>> from torch import nn
        >>> import torch
        >>> class Conv1D(nn.Module):
        ...     def __init__(self, out_features, in_features):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.empty(in_features, out_features))
        ...         self.bias = nn.Parameter(torch.empty(out_features))
        >>> register_layout(Conv1D, lambda m: [Variable("kernel", "weight", "keras"), Variable("bias", "bias")])
        >>> import torch_kinit as kinit
        >>> kinit.plan(Conv1D(6, 2))["weight"].fans
        (2, 6)
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"`cls` must be a subclass of torch.nn.Module, got {checks.short(cls)}.")
    if not callable(layout):
        raise TypeError(f"`layout` must be a function from a module to its variables, got {checks.short(layout)}.")

    def checked(module: Any, options: Options) -> Sequence[Variable]:
        try:
            found = layout(module)
        except Exception as error:
            error.add_note(f"This was raised by the layout registered for {cls.__name__}.")
            raise
        variables = tuple(found) if isinstance(found, Iterable) else (None,)
        if not all(isinstance(variable, Variable) for variable in variables):
            raise TypeError(
                f"The layout registered for {cls.__name__} must give a list of Variables, got {checks.short(found)}."
            )
        return variables

    _ROWS[cls] = Row(checked, _ROWS[cls].twins if cls in _ROWS else None)


def flattened(module: M, sizes: Sequence[int] | None) -> M:
    """Say that the inputs of `module` are flattened from channels-first data of these `sizes`, and return it.

    torch's `Flatten` of (channels, height, width) counts through the positions of the first channel, then of the next;
    Keras, whose channels come last, through the channels of the first position. So a Linear after a Flatten has the
    columns of its weight in another order than the rows of its Keras kernel. Nothing in the module tells: say it here,
    and `from_keras`, `to_keras`, `replay_keras` and `KerasSeed`s go by Keras' order. Laws, fans and what the module
    computes stay the same.

    Args:
        module: a Linear or LazyLinear; a layer that works feature by feature between the Flatten and it, such as
            BatchNorm1d or PReLU; a recurrent layer; or a module of your own with a registered layout.
        sizes: (channels, *spatial) of one example before the Flatten: (C, L), (C, H, W) or (C, D, H, W). None if the
            port moves the channels last before it flattens, as Keras has them: that takes back what was said before,
            and settles the warning of `from_keras` and `replay_keras`.

    The mark is an attribute of the module: copies and pickles of the model have it, a state_dict does not.

    Returns:
        `module`.

    Raises:
        TypeError, ValueError: a module without such a weight, or of another number of inputs.

    Example:
        >>> import torch_kinit as kinit
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), kinit.flattened(nn.Linear(8 * 5 * 4, 2), (8, 5, 4)))
        >>> print(kinit.plan(model)["2.weight"].flattened)
        (8, 5, 4)
    """
    checks.module(module, "module")
    given = None if sizes is None else _checked_sizes(sizes)
    if given is not None:
        _refuse_other_inputs(module, given)
    mark(module, given)
    return module


def _checked_sizes(sizes: Any) -> tuple[int, ...]:
    wanted = "(channels, *spatial) as before the Flatten, or None"
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise TypeError(f"`sizes` must be {wanted}, got {checks.short(sizes)} of type {type(sizes).__name__}.")
    given = tuple(checks.integer("sizes", size, "a sequence of ints") for size in sizes)
    if len(given) < 2 or min(given) < 1:
        raise ValueError(f"`sizes` must be {wanted}, two sizes or more of at least 1, got {checks.short(given)}.")
    return given


def _refuse_other_inputs(module: nn.Module, sizes: tuple[int, ...]) -> None:
    """Raise if a module has no weight with an axis of inputs, or one of another number of them."""
    found = () if isinstance(module, nn.GroupNorm) else _variables(module, Options())  # whose groups would be others
    held = {v.tensor: tensor for v in found if is_of_inputs(v) and (tensor := _tensor_of(module, v)) is not None}
    ready = [v for v in found if v.tensor in held and not is_lazy(held[v.tensor])]
    for variable in ready:
        copy = torch.empty(held[variable.tensor].shape, device="meta")
        if variable.views(copy)[0].ndim != (2 if variable.role == "kernel" else 1):
            held.pop(variable.tensor)
        else:
            with_sizes([variable], sizes)[0].views(copy)
    if not held:
        raise ValueError(
            "`module` must be a layer with an input for each value that Flatten gives, such as a Linear; got "
            f"{checks.short(module)}."
        )


def _tensor_of(module: Any, variable: Variable) -> Any:
    """The tensor that a variable names; None if the module goes without it."""
    for name in variable.tensor.split("."):
        module = getattr(module, name, None)
    return module
