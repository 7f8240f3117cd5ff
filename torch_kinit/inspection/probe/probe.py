"""Probe: how a signal and its gradient pass through the layers of a model, and which law would hold their scale."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.parameter import is_lazy

from torch_kinit import checks, torch_internals
from torch_kinit.initializers.names import law
from torch_kinit.initializers.plain import random_normal_
from torch_kinit.inspection.probe.following import LAWS, RECTIFIERS, class_of, function_from, looks_rectified
from torch_kinit.inspection.probe.report import ProbeReport, ProbeRow
from torch_kinit.inspection.sharded import own_class
from torch_kinit.inspection.untouched import copied, tensors_in, untouched
from torch_kinit.layers.table import layout_of
from torch_kinit.layers.variable import Options, Variable, holds
from torch_kinit.model.targets import holder_of
from torch_kinit.shards import is_distributed
from torch_kinit.streams.key import Key
from torch_kinit.torch_internals import tensors_of

_KERNELS = ("kernel", "depthwise_kernel", "recurrent_kernel")
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def probe(model: nn.Module, *inputs: Any, backward: bool = True, **named_inputs: Any) -> ProbeReport:
    """How a signal and its gradient pass through the layers of a model, in one forward and one backward pass.

    It answers which law fits the depth and the activations of a model at initialization. The signal of a layer with
    weights is the std of its outputs; its growth is the factor by which that changes from one such layer to the next,
    as the geometric mean through the depth (the median of all slopes of its logarithm, which a layer or two of another
    scale do not move). The gradient is that of the sum of the model's outputs, each times a fixed standard normal
    number (a scalar output counts once), so that it starts with a std of 1 at the outputs.

    Args:
        model: a model on any device, run in the mode (training or evaluation) in which it is.
        *inputs: what its forward takes; `**named_inputs` likewise, by keyword. Tensors are copied first.
        backward: whether to look at the gradients too. A model without a parameter that requires one has none.

    Returns:
        A `ProbeReport`. `rows` has a row for each call of each layer: `mean`, `std` and share of `zeros` of the outputs
        (the first tensor of several), the share of `dead` ReLU units, which are zero for every example and position,
        and the std of the `gradient` with respect to the outputs. `signal` and `gradient` say "steady", "vanishing" or
        "exploding" (beyond a factor of 10 through this depth), or "too shallow" (less than four layers with weights).
        `growth` and `gradient_growth` are the factors a layer, of the std forwards and of the gradient's norm
        backwards. `law` is the Keras initializer that would hold the scale, if another one would; `verdict` says all
        that in sentences. The report prints as a table; `to_dict()` gives plain data, `plot()` a picture.

    A function of torch between the layers, such as `torch.relu`, is seen only through the layers around it: it gets no
    row, and is known by what the next layer with weights receives. The model, its buffers (as BatchNorm's statistics),
    `.grad`, modes, hooks and random states are left as they were, also after an error; for that, a copy of its
    parameters and buffers is held during the call. A model that was compiled runs without. One that `fully_shard` was
    called on is probed in all its processes at once, which with the same inputs find the same; it has its shards then.

    Raises:
        TypeError, ValueError: `model` is no module, is of TorchScript, has lazy parameters, is on the meta device, or
            is tensor parallel.
        Exception: what the model raises for the inputs, with a note.

    Example:
        >>> import torch
        >>> import torch_kinit as kinit
        >>> from torch import nn
        >>> model = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.ReLU()) for _ in range(20)])
        >>> _ = kinit.apply(model, seed=0)                     # Keras' default is glorot_uniform
        >>> report = kinit.probe(model, torch.randn(64, 256, generator=torch.Generator().manual_seed(0)))
        >>> report.signal, round(report.growth, 2), report.law
        ('vanishing', 0.7, 'he_normal')
        >>> _ = kinit.apply(model, {nn.Linear: report.law}, seed=0)
        >>> kinit.probe(model, torch.randn(64, 256, generator=torch.Generator().manual_seed(0))).signal
        'steady'

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010, and
    He et al., "Delving deep into rectifiers", 2015.
    """
    checks.module(model)
    checks.boolean("backward", backward)
    _refuse_unfit(model)
    backward = backward and any(parameter.requires_grad for parameter in model.parameters())
    watch = _Watch()
    with untouched(model, inputs, named_inputs), torch.inference_mode(False), torch.set_grad_enabled(backward):
        with torch_internals.uncompiled(), _hooks(model, watch), _noted(inputs, named_inputs):
            outputs = model(*copied(inputs), **copied(named_inputs))
        if backward:
            watch.gradients(outputs)
        watch.compare_with_laws()
    return ProbeReport(tuple(ProbeRow(**found) for found in watch.rows))


def _refuse_unfit(model: nn.Module) -> None:
    """Raise if a model cannot be run, or not with hooks."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"`model` is or holds a TorchScript module ({name or 'itself'}), which takes no hooks: "
                "probe the module that it was made from."
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"`model` has the lazy parameter {name}: run one forward pass of the model first.")
        if tensor.is_meta:
            raise ValueError(
                f"`model` has {name} on the meta device, without values: give it some with "
                "kinit.materialize(model, device) and kinit.apply(model, rules) first."
            )


def _refuse_part(name: str, module: nn.Module, arguments: Any) -> None:
    """Raise for a layer that gives each process a part of its outputs; fully_shard has gathered weights by now."""
    if any(map(is_distributed, module.parameters(recurse=False))):
        raise ValueError(
            f"`model` is tensor parallel: {name or 'it'} computes with a part of its weights here. Probe the model "
            "before parallelize_module; kinit.apply(model, rules, seed=n) gives both the same weights."
        )


@contextlib.contextmanager
def _noted(inputs: Sequence[Any], named: dict[str, Any]) -> Iterator[None]:
    """Add to an error what the model was given."""
    try:
        yield
    except Exception as error:
        given = [_shown(value) for value in inputs] + [f"{name}={_shown(value)}" for name, value in named.items()]
        listed = ", ".join(given[:8]) or "nothing"
        error.add_note(f"Raised by the forward pass of `probe`, which gave the model {listed}. It is as it was.")
        raise


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)} on {value.device}"


@contextlib.contextmanager
def _hooks(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(functools.partial(_refuse_part, name)))
        for layer in _layers(model):
            before, after = functools.partial(watch.before, layer), functools.partial(watch.after, layer)
            handles.append(layer.module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(layer.module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Layer:
    """A module that gets a row, and what its layout tells of it."""

    name: str
    module: nn.Module
    variables: Sequence[Variable]
    calls: int = 0

    @functools.cached_property
    def kernels(self) -> list[Variable]:
        """The variables that multiply its inputs; asked without running a parametrization."""
        return [v for v in self.variables if v.role in _KERNELS and holds(*_place(self.module, v))]

    @functools.cached_property
    def is_weighted(self) -> bool:
        """Whether it has kernels; of an unknown layer, whether its weight is a matrix or more."""
        weight = None if self.variables else tensors_of(self.module).get("weight")
        return bool(self.kernels) or (weight is not None and weight.ndim > 1)

    @property
    def is_norm(self) -> bool:
        return any(variable.role == "gamma" for variable in self.variables)

    @property
    def unit_axis(self) -> int:
        """The axis of the units in the output: a convolution's is before its positions."""
        return -1 - len(self.module.kernel_size) if isinstance(self.module, _CONVOLUTIONS) else -1


def _layers(model: nn.Module) -> Iterator[_Layer]:
    """The modules without modules in them, and those whose variables are known; parametrizations belong to a layer."""
    for name, module in model.named_modules():
        if "parametrizations" not in name.split("."):
            children = {child for child, _ in module.named_children()} - {"parametrizations"}
            variables = layout_of(module, Options())
            if not children or variables:
                yield _Layer(name, module, variables)


def _place(module: nn.Module, variable: Variable) -> tuple[nn.Module, str]:
    """The module that holds a variable of a layer, and its attribute there."""
    return holder_of(module, variable.tensor)


class _Watch:
    """What the hooks see: a row a call."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._edges: list[tuple[dict[str, Any], GradientEdge]] = []
        self._weighted: list[tuple[dict[str, Any], _Layer]] = []
        self._waiting: dict[str, Any] | None = None  # the last row with weights, until its activation is known
        self._last: Tensor | None = None  # what the last layer gave
        self._unit_axis = -1

    def before(self, layer: _Layer, module: nn.Module, arguments: Any, named: Any) -> None:
        """Find the function that stands between the last layer and this one."""
        given = _first((arguments, named))
        if self._waiting is None or self._last is None or given is None:
            return
        found = function_from(self._last, given)
        if found in (None, "linear") and looks_rectified(given) and layer.is_weighted:
            found = "relu"  # one that works in place leaves two equal tensors
        if found != "linear" or layer.is_weighted:
            self._settle(found)

    def after(self, layer: _Layer, module: nn.Module, arguments: Any, named: Any, outputs: Any) -> None:
        """Note what a layer gave."""
        tensor = _first(outputs)
        layer.calls += 1
        if tensor is None:
            return
        row = {
            "name": layer.name,
            "layer": own_class(module).__name__,
            "call": layer.calls,
            "shape": tuple(tensor.shape),
        }
        row |= {"weighted": layer.is_weighted, "norm": layer.is_norm, **_measured(tensor)}
        row |= dict.fromkeys(("dead", "gradient", "gradient_norm", "activation", "to_law"))
        self.rows.append(row)
        if layer.is_weighted:
            self._weighted.append((row, layer))
            self._waiting, self._unit_axis = row, layer.unit_axis
        elif self._waiting is not None and not layer.is_norm:
            found = class_of(module) or function_from(_first((arguments, named)), tensor)
            if found is None and not own_class(module).__module__.startswith("torch.nn."):
                self._waiting = None  # a function that nobody knows
            self._settle(None if found == "linear" else found)
        if isinstance(module, RECTIFIERS):
            row["dead"] = _dead(tensor, self._unit_axis)
        if tensor.requires_grad:
            self._edges.append((row, get_gradient_edge(tensor)))
        self._last = tensor.detach()

    def _settle(self, activation: str | None) -> None:
        if self._waiting is not None and activation is not None:
            self._waiting["activation"], self._waiting = activation, None

    def gradients(self, outputs: Any) -> None:
        """Send a fixed gradient of unit variance back from the outputs, and note what comes to each layer."""
        ends = [tensor for tensor in tensors_in(outputs) if tensor.requires_grad and tensor.is_floating_point()]
        if not ends or not self._edges:
            return
        sent = [
            random_normal_(torch.empty_like(end), 0.0, 1.0, generator=Key(0).fold_in(i))
            if end.ndim
            else end.new_ones(())
            for i, end in enumerate(ends)
        ]
        try:
            found = torch.autograd.grad(ends, [edge for _, edge in self._edges], sent, allow_unused=True)
        except Exception as error:
            error.add_note("Raised by the backward pass of `probe`; `backward=False` goes without it.")
            raise
        for (row, _), gradient in zip(self._edges, found, strict=True):
            if gradient is not None:
                seen = _measured(gradient)
                square = seen["std"] ** 2 + seen["mean"] ** 2
                row |= {"gradient": seen["std"], "gradient_norm": math.sqrt(square * gradient.numel())}

    def compare_with_laws(self) -> None:
        """Note how many times the std of its weights the law has that suits the activation after a layer."""
        for row, layer in self._weighted:
            kernels = layer.kernels
            if row["activation"] is not None and len(kernels) == 1 and kernels[0].blocks == 1:
                weight = getattr(*_place(layer.module, kernels[0])).detach()
                weight = weight.full_tensor() if is_distributed(weight) else weight
                shape = kernels[0].views(torch.empty(weight.shape, device="meta"))[0].shape
                if std := _measured(weight)["std"]:
                    suiting = law(LAWS[row["activation"]], shape, layout="keras", fans=kernels[0].fans)
                    row["to_law"] = suiting.std / std


def _first(value: Any) -> Tensor | None:
    """The first tensor of real numbers in what a layer takes or gives."""
    return next((tensor for tensor in tensors_in(value) if tensor.is_floating_point()), None)


def _measured(tensor: Tensor) -> dict[str, float]:
    """Mean, std and share of zeros; scaled by a power of two, since the square of a value may overflow or underflow."""
    values = tensor.detach()
    if values.numel() == 0:
        return dict.fromkeys(("mean", "std", "zeros"), math.nan)
    values = values.float() if values.dtype.itemsize < 4 else values
    top = float(values.abs().max())
    if not 0 < top < math.inf:
        return {"mean": float(values.mean()), "std": 0.0 if top == 0 else math.nan, "zeros": float(top == 0)}
    scale = 2.0 ** max(math.frexp(top)[1] - 1, -120)  # a divisor that float32 can hold
    scaled = values / scale
    spread = float(scaled.std(correction=0)) * scale
    return {"mean": float(scaled.mean()) * scale, "std": spread, "zeros": float((values == 0).float().mean())}


def _dead(tensor: Tensor, unit_axis: int) -> float:
    """The share of units that are zero for every example and position."""
    axis = unit_axis if tensor.ndim >= -unit_axis else -1
    units = tensor.detach().movedim(axis, 0).flatten(1) if tensor.ndim else tensor.detach().reshape(1, 1)
    return float((units == 0).all(1).float().mean())
