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
from torch_kinit.layers import feedforward, others
from torch_kinit.layers.flatten import is_of_inputs, mark, sizes_of, with_sizes
from torch_kinit.layers.recurrent import GRU, LSTM, SIMPLE_RNN
from torch_kinit.layers.variable import Entry, InitializerOf, Layout, Options, Twins, Variable, holds

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


def layout_of(module: nn.Module, options: Options) -> Sequence[Variable]:
    """The variables of `module` itself, children aside (except a child that Keras sees as part of the layer)."""
    found, sizes = _variables(module, options), sizes_of(module)
    return found if sizes is None else with_sizes(found, sizes)


def _variables(module: nn.Module, options: Options) -> Sequence[Variable]:
    """The variables of a module by its class."""
    layout = _layout_for(type(module))
    return layout(module, options) if callable(layout) else layout


def _layout_for(cls: type[nn.Module]) -> Layout | tuple[Variable, ...]:
    """The layout of a class: that of its nearest base in the table, and what is known of the nearer ones by name."""
    bases = cls.__mro__
    place = next((i for i, base in enumerate(bases) if base in _ROWS and _ROWS[base].variables), len(bases))
    known = _ROWS[bases[place]].variables if place < len(bases) else None
    by_name = tuple(base for base in bases[:place] if others.rows_of(base))
    return _layout_beside(known or (), by_name) if by_name else known or ()


def _layout_beside(known: Layout | tuple[Variable, ...], by_name: tuple[type, ...]) -> Layout:
    """A layout of the table, with the variables that are known by the names of nearer bases in place of its own."""

    def variables(module: Any, options: Options) -> Sequence[Variable]:
        found = known(module, options) if callable(known) else known
        said = others.variables_of(module, by_name)
        return list(({variable.tensor: variable for variable in found} | said).values()) if said else found

    return variables


def twins_of(path: str, module: nn.Module, options: Options, initializer_of: InitializerOf) -> list[Entry]:
    """The entries that the Keras layers that `module` stands for would have in a saved model: none, one or several."""
    twins = _twins_for(type(module))
    made = twins(module, options, initializer_of) if twins else []
    return [{**entry, "config": {"name": path, **entry["config"]}} for entry in made]


def _twins_for(cls: type[nn.Module]) -> Twins | None:
    """From a module of a class to the Keras layers that it stands for; None if there are none."""
    rows = (_ROWS[base].twins if base in _ROWS else others.twins_for(base) for base in cls.__mro__)
    return next(filter(None, rows), None)


def register_layout(cls: type[nn.Module], layout: Callable[[Any], Iterable[Variable]] | type[nn.Module]) -> None:
    """Tell how modules of `cls` and its subclasses store their variables.

    Args:
        cls: a module class; registering it again replaces its layout, also a built-in one.
        layout: a function from a module to its `Variable`s, the main weight first. Those whose attribute is None
            (a layer without bias) are passed over. Or another class with a known layout, such as torch.nn.RMSNorm:
            `cls` stores its variables as that one does, under the same names. Of these a module needs the main weight;
            others that it lacks (an RMSNorm without bias taken for a LayerNorm) are passed over, too. What the layout
            reads beside them, such as the `groups` of a Conv2d or the `hidden_size` of an LSTM, it must have.

    `replay_keras` takes a module of `cls` for the Keras layer that the other class stands for, where it has the
    attributes that tell that layer's sizes, such as `in_features`; where it lacks them, its weights have no Keras layer
    that draws them, as those of a function's layout, and `twin` in `order` says which one does.

    Raises:
        TypeError: `cls` is not a module class, or `layout` is neither callable nor a module class.
        ValueError: `layout` is a class of which no layout is known. When a module is planned: it lacks what the layout
            of the other class needs.

    Example: GPT-2's Conv1D keeps its weight as (in, out), which is Keras' layout; another RMSNorm is one like torch's.
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
        >>> class OwnRMSNorm(nn.Module):
        ...     def __init__(self, features):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.empty(features))
        >>> register_layout(OwnRMSNorm, nn.RMSNorm)
        >>> kinit.plan(OwnRMSNorm(6))["weight"].role
        'gamma'
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"`cls` must be a subclass of torch.nn.Module, got {checks.short(cls)}.")
    if isinstance(layout, type) and issubclass(layout, nn.Module):
        _ROWS[cls] = _stored_as(cls, layout)
    elif callable(layout) and not isinstance(layout, type):
        _ROWS[cls] = Row(_checked(cls, layout), _ROWS[cls].twins if cls in _ROWS else None)
    else:
        raise TypeError(
            f"`layout` must be a function from a module to its variables, or a class, got {checks.short(layout)}."
        )


def _checked(cls: type[nn.Module], layout: Callable[[Any], Iterable[Variable]]) -> Layout:
    """A registered function as a layout; what it gives is looked at when it is asked."""

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

    return checked


def _stored_as(cls: type[nn.Module], other: type[nn.Module]) -> Row:
    """The row of a class that stores its variables as another one does."""
    known, twins = _layout_for(other), _twins_for(other)
    said = f"{cls.__name__} is registered to store its variables as {other.__name__}"
    if not known:
        raise ValueError(
            f"`layout` is {other.__name__}, of which no layout is known; give a class such as torch.nn.Linear, or a "
            "function from a module to its Variables."
        )

    def variables(module: Any, options: Options) -> Sequence[Variable]:
        try:
            found = known(module, options) if callable(known) else known
        except AttributeError as error:
            raise ValueError(f"{said}, whose layout reads `{error.name or error}`, which it lacks.") from None
        held = [variable for variable in found if _has(module, variable.tensor)]
        if found and all(variable.role != found[0].role for variable in held):
            raise ValueError(f"{said}, whose main weight is `{found[0].tensor}`, which it lacks.")
        return held

    def entries(module: Any, options: Options, initializer_of: InitializerOf) -> list[Entry]:
        try:
            return twins(module, options, initializer_of) if twins else []
        except AttributeError:  # nothing tells the sizes of the Keras layer
            return []

    return Row(variables, entries)


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


def _has(module: Any, name: str) -> bool:
    """Whether a module or one inside it has an attribute of this path, be it None; asked without parametrizations."""
    path, _, last = name.rpartition(".")
    try:
        holder = module.get_submodule(path)
    except AttributeError:
        return False
    return holds(holder, last) or hasattr(holder, last)
