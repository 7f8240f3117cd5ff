"""How each torch layer stores what Keras calls kernel, recurrent_kernel, bias: one row a tensor.

A layer's layout is the list of its `Variable`s, main weight first. Proved against Keras by equal outputs, see
tests/layers/test_layouts.py. The maps are those of Keras 3.15 and torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_kinit import checks
from torch_kinit.initializers.axes import LAYOUTS
from torch_kinit.initializers.plain import keras_view
from torch_kinit.initializers.scaled import resolve_fans

CONVENTIONS = ("keras-3.15", "keras-3.14")


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
        default: the Keras initializer, by name; None for the role's usual one in `KERAS_DEFAULTS`.
        zero_row: the index of a row that stays zero whatever the initializer.
        row: (index, rows) where this tensor is one of so many rows of one variable of Keras'.

    Example:
        >>> Variable("kernel", "weight").views(torch.empty(8, 4, 3, 5))[0].shape
        torch.Size([3, 5, 4, 8])
    """

    role: str
    tensor: str
    layout: str | Callable[[Tensor], Tensor] = "torch"
    fans: tuple[int, int] | None = None
    blocks: int = 1
    swapped: bool = False
    default: str | None = None
    zero_row: int | None = field(default=None, kw_only=True)
    row: tuple[int, int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(self.layout):
            checks.choice("layout", self.layout, LAYOUTS)
        if self.fans is not None:
            object.__setattr__(self, "fans", resolve_fans(self.fans, ()))
        if self.blocks < 1:
            raise ValueError(f"`blocks` must be 1 or more, got {self.blocks!r}.")

    def views(self, tensor: Tensor) -> list[Tensor]:
        """Views of `tensor` in Keras' layout, one a block."""
        parts_wanted = 3 if self.swapped else self.blocks
        if parts_wanted > 1 and (tensor.ndim == 0 or tensor.shape[0] % parts_wanted):
            raise ValueError(f"{self.tensor} of shape {tuple(tensor.shape)} has no {parts_wanted} equal blocks.")
        parts = [tensor] if self.blocks == 1 else list(tensor.chunk(self.blocks))
        if self.zero_row is not None and not -len(tensor) <= self.zero_row < len(tensor):
            raise ValueError(f"{self.tensor} of shape {tuple(tensor.shape)} has no row {self.zero_row}.")
        layout = self.layout
        if callable(layout):
            return [layout(part) for part in parts]
        return [keras_view(part, layout) for part in parts]

    def blocks_of(self, tensor: Tensor) -> list[Tensor]:
        """Keras' variables, one a block, with swapped blocks where Keras has them; views of `tensor` or of a copy."""
        if self.swapped:
            tensor = tensor.clone()
            _swap(tensor, tensor.shape[0] // 3)
        return self.views(tensor)

    def fill(self, tensor: Tensor, initializer: Callable[[Tensor], object]) -> None:
        """Run `initializer` on each Keras view of `tensor`, then put swapped blocks where torch has them."""
        for view in self.views(tensor):
            initializer(view)
        if self.swapped:
            with torch.no_grad():
                _swap(tensor, tensor.shape[0] // 3)


def _swap(tensor: Tensor, rows: int) -> None:
    """Exchange the first `rows` rows of `tensor` with the next, 64 KiB of float32 or one row at a time."""
    step = max(1, (1 << 14) // max(1, tensor[0].numel())) if rows else 1
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        first, second = tensor[start:stop], tensor[rows + start : rows + stop]
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)


class Options(NamedTuple):
    """Where Keras has had more than one convention."""

    convention: str = "keras-3.15"
    depthwise: bool = True


Layout = Callable[[Any, Options], Sequence[Variable]]
_LAYOUTS: dict[type[nn.Module], Layout] = {}


def register_layout(cls: type[nn.Module], layout: Callable[[Any], Iterable[Variable]]) -> None:
    """Tell how modules of `cls` and its subclasses store their variables.

    Args:
        cls: a module class; registering it again replaces its layout, also a built-in one.
        layout: a function from a module to its `Variable`s, the main weight first. Those whose attribute is None
            (a layer without bias) are passed over.

    Raises:
        TypeError: `cls` is not a module class, or `layout` is not callable.

    Example: GPT-2's Conv1D keeps its weight as (in, out), which is Keras' layout.
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
        raise TypeError(f"`cls` must be a subclass of torch.nn.Module, got {cls!r}.")
    if not callable(layout):
        raise TypeError(f"`layout` must be a function from a module to its variables, got {layout!r}.")

    def checked(module: Any, options: Options) -> Sequence[Variable]:
        variables = layout(module)
        if isinstance(variables, Variable) or not isinstance(variables, Iterable):
            raise TypeError(
                f"The layout registered for {cls.__name__} must give a list of Variables, got {variables!r}."
            )
        variables = tuple(variables)
        for variable in variables:
            if not isinstance(variable, Variable):
                raise TypeError(f"The layout registered for {cls.__name__} must give Variables, got {variable!r}.")
        return variables

    _LAYOUTS[cls] = checked


def layout_of(module: nn.Module, options: Options) -> Sequence[Variable]:
    """The variables of `module` itself, children aside (except a child that Keras sees as part of the layer)."""
    for cls in type(module).__mro__:
        if cls in _LAYOUTS:
            return _LAYOUTS[cls](module, options)
    return ()


def _split(tensor: Tensor, axis: int, sizes: tuple[int, int]) -> Tensor:
    return torch.unflatten(tensor, axis, sizes)


_KERNEL = Variable("kernel", "weight")
_BIAS = Variable("bias", "bias")


def _linear(m: nn.Linear, options: Options) -> Sequence[Variable]:
    return _KERNEL, _BIAS


def _bilinear(m: nn.Bilinear, options: Options) -> Sequence[Variable]:
    # No twin in Keras; as EinsumDense("bi,bj,ijo->bo") would have it, (in1, in2, out).
    kernel = Variable(
        "kernel", "weight", lambda w: w.permute(1, 2, 0), (m.in1_features * m.in2_features, m.out_features)
    )
    return kernel, _BIAS


def _conv(m: nn.Conv2d, options: Options) -> Sequence[Variable]:
    if options.depthwise and m.groups == m.in_channels > 1:
        channels = m.in_channels

        def depthwise(w: Tensor) -> Tensor:  # (channels * multiplier, 1, *k) to (*k, channels, multiplier)
            split = _split(w.squeeze(1), 0, (channels, -1))
            return split.permute(*range(2, split.ndim), 0, 1)

        return Variable("depthwise_kernel", "weight", depthwise), _BIAS
    return _KERNEL, _BIAS


def _conv_transpose(m: nn.ConvTranspose2d, options: Options) -> Sequence[Variable]:
    # torch (in, out/groups, *k) and Keras (*k, out, in): the same permutation as Conv, so Keras' fan_in is out * k.
    return _KERNEL, _BIAS


def _recurrent(m: Any, options: Options, suffixes: Iterable[str] = ("",)) -> Sequence[Variable]:
    gru = isinstance(m, (nn.GRU, nn.GRUCell))
    lstm = isinstance(m, (nn.LSTM, nn.LSTMCell))
    variables = []
    for suffix in suffixes:
        variables += [
            Variable("kernel", "weight_ih" + suffix, swapped=gru),
            Variable("recurrent_kernel", "weight_hh" + suffix, swapped=gru),
        ]
        if m.bias and gru:  # Keras has one bias, (2, 3 * units), of which these are the rows
            fans = (2, 3 * m.hidden_size)
            variables += [
                Variable("bias", f"bias_{part}{suffix}", fans=fans, swapped=True, row=(index, 2))
                for index, part in enumerate(("ih", "hh"))
            ]
        elif m.bias:  # Keras has one bias; torch adds a second one, which stays zero
            default = "unit_forget_bias" if lstm else None
            variables += [
                Variable("bias", "bias_ih" + suffix, default=default),
                Variable("second_bias", "bias_hh" + suffix),
            ]
        if getattr(m, "proj_size", 0):
            variables.append(Variable("projection_kernel", "weight_hr" + suffix))
    return variables


def _recurrent_layers(m: nn.RNNBase, options: Options) -> Sequence[Variable]:
    directions = ("", "_reverse") if m.bidirectional else ("",)
    return _recurrent(m, options, [f"_l{layer}{way}" for layer in range(m.num_layers) for way in directions])


def _attention(m: nn.MultiheadAttention, options: Options) -> Sequence[Variable]:
    width, heads = m.embed_dim, (m.num_heads, m.head_dim)
    # Keras' kernels have three axes: (in, heads, head_dim) and, for the output, (heads, head_dim, out). From 3.15
    # on their fans are those of the matrices they stand for; up to 3.14 those of the shape, as for convolutions.
    by_shape = options.convention == "keras-3.14"

    def kernel(name: str, inputs: int, blocks: int = 1) -> Variable:
        fans = None if by_shape else (inputs, width)
        return Variable("kernel", name, lambda w: _split(w.t(), 1, heads), fans, blocks)

    if m.kdim == m.vdim == width:  # packed (looking at the parameter itself would run its parametrization)
        kernels = [kernel("in_proj_weight", width, blocks=3)]
    else:
        kernels = [
            kernel("q_proj_weight", width),
            kernel("k_proj_weight", m.kdim),
            kernel("v_proj_weight", m.vdim),
        ]
    output = Variable(
        "kernel", "out_proj.weight", lambda w: _split(w.t(), 0, heads), None if by_shape else (width, width)
    )
    return [
        *kernels,
        Variable("bias", "in_proj_bias", lambda b: _split(b, 0, heads), blocks=3),
        output,
        Variable("bias", "out_proj.bias"),
        # Learned extra key and value, torch's own; (1, 1, width), which torch reads as a width-to-width matrix.
        *(Variable(name, name, "keras", (width, width), default="glorot_normal") for name in ("bias_k", "bias_v")),
    ]


def _embedding(m: nn.Embedding, options: Options) -> Sequence[Variable]:
    return (Variable("embeddings", "weight", "keras", zero_row=m.padding_idx),)


def _normalization(m: nn.Module, options: Options) -> Sequence[Variable]:
    return Variable("gamma", "weight", "keras"), Variable("beta", "bias", "keras")


def _rms_normalization(m: nn.RMSNorm, options: Options) -> Sequence[Variable]:
    return (Variable("gamma", "weight", "keras"),)


def _normalization_with_statistics(m: nn.Module, options: Options) -> Sequence[Variable]:
    # num_batches_tracked is torch's own counter; it restarts with the statistics it counts for.
    return (
        *_normalization(m, options),
        Variable("moving_mean", "running_mean"),
        Variable("moving_variance", "running_var"),
        Variable("num_batches_tracked", "num_batches_tracked"),
    )


def _prelu(m: nn.PReLU, options: Options) -> Sequence[Variable]:
    return (Variable("alpha", "weight"),)


_BUILT_IN: dict[type[nn.Module], Layout] = {
    nn.Linear: _linear,
    nn.Bilinear: _bilinear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose),
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _recurrent_layers),
    **dict.fromkeys((nn.RNNCell, nn.LSTMCell, nn.GRUCell), _recurrent),
    nn.MultiheadAttention: _attention,
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), _embedding),
    **dict.fromkeys((nn.LayerNorm, nn.GroupNorm), _normalization),
    nn.RMSNorm: _rms_normalization,
    **dict.fromkeys(
        (
            *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
            *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        ),
        _normalization_with_statistics,
    ),
    nn.PReLU: _prelu,
}
_LAYOUTS.update(_BUILT_IN)
