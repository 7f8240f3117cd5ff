"""A model's weights as Keras' `get_weights()` gives them, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit import checks
from torch_kinit.keras.port import fits
from torch_kinit.keras.slots import Holdings, Slot, holdings, slots_in
from torch_kinit.layers.layouts import Options
from torch_kinit.model.execute import writing
from torch_kinit.model.steps import NOT_SETTABLE
from torch_kinit.model.targets import unsettable


def to_keras(model: nn.Module, *, order: Sequence[str] | None = None, depthwise: bool = True) -> list[Any]:
    """The weights of `model` as NumPy arrays in Keras' layout, for `keras_model.set_weights`.

    Layer by layer as the modules are registered, and within a layer in the order of Keras' `get_weights()`: kernel,
    recurrent_kernel, bias; gamma, beta, moving_mean, moving_variance; attention's query kernel, query bias, and so on.
    torch's two biases of an LSTM are one in Keras, their sum; those of a GRU are the rows of one.

    Args:
        model: the torch port.
        order: the paths of the modules in the order of the Keras model's layers, if they are registered in another; a
            container stands for all that is in it.
        depthwise: as in `plan`.

    Returns:
        A list of arrays of the parameters' dtypes, bfloat16 as float32, which no longer share memory with `model`.

    Raises:
        ValueError: a parameter that no Keras layer has, such as a raw nn.Parameter; an `order` that leaves weights out.

    Example:
        >>> [array.shape for array in to_keras(nn.Sequential(nn.Conv2d(3, 8, 5), nn.GRU(8, 4)))]
        [(5, 5, 3, 8), (8,), (8, 12), (4, 12), (2, 12)]
    """
    held = _holdings(model, depthwise)
    return [_numpy(_read(slot, held)) for slot in _ordered(held, order)]


def from_keras(
    model: nn.Module, arrays: Iterable[Any], *, order: Sequence[str] | None = None, depthwise: bool = True
) -> None:
    """Give `model` the weights of its Keras twin, `keras_model.get_weights()`; the inverse of `to_keras`.

    Args:
        model: the torch port.
        arrays: as many arrays or tensors as `to_keras` gives, of the same shapes, but that axes of size one and
            neighbouring axes that Keras keeps apart (those of a MultiHeadAttention's heads) may be merged or not.
        order, depthwise: as in `to_keras`.

    Raises:
        ValueError: too many or too few arrays, or one of another shape than its place has, naming the layer.
            Nothing is changed.

    The second bias that torch adds in an LSTM or RNN is set to zero.

    Example:
        >>> a, b = nn.LSTM(3, 4), nn.LSTM(3, 4)
        >>> from_keras(b, to_keras(a))
        >>> x = torch.randn(5, 2, 3)
        >>> torch.allclose(a(x)[0], b(x)[0], atol=1e-6)
        True
    """
    held = _holdings(model, depthwise)
    slots = _ordered(held, order)
    values = [_array(i, array) for i, array in enumerate(arrays)]
    for i, (slot, value) in enumerate(zip(slots, values, strict=False)):
        if not fits(tuple(value.shape), slot.shape):
            raise ValueError(f"Array {i} of {len(values)} has shape {tuple(value.shape)}; its place is {slot}.")
    if len(values) != len(slots):
        short = len(values) < len(slots)
        place = slots[len(values)] if short else slots[-1] if slots else "nothing"
        raise ValueError(
            f"There are {len(values)} arrays for {len(slots)} weights of the model; "
            f"{'the first without one' if short else 'its last weight'} is {place}."
        )
    _refuse_unsettable(held, model)
    by_name: dict[str, list[Tensor]] = {}
    for slot, value in zip(slots, values, strict=True):
        rows = value.reshape(slot.shape) if len(slot.names) > 1 else [value.reshape(slot.shape)]
        for name, row in zip(slot.names, rows, strict=True):
            by_name.setdefault(name, []).append(row)
        if slot.added:
            by_name[slot.added] = [torch.zeros((), dtype=value.dtype)]
    for name, parts in by_name.items():
        _write(name, parts, held, model)


def _holdings(model: nn.Module, depthwise: bool) -> Holdings:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {model!r} of type {type(model).__name__}.")
    checks.boolean("depthwise", depthwise)
    held = holdings(model, Options(depthwise=depthwise))
    if meta := [name for name, target in held.targets.items() if target.tensor.is_meta]:
        raise ValueError(f"{meta[0]} is on the meta device and holds no numbers; give the model storage first.")
    if held.strangers:
        names = ", ".join(f"{target.name} of {target.claims[0].layer}" for target in held.strangers)
        raise ValueError(f"Keras has no weight for {names}; register_layout tells what a class of your own holds.")
    return held


def _ordered(held: Holdings, order: Sequence[str] | None) -> list[Slot]:
    """The model's slots, in the order of the modules that are listed."""
    if order is None:
        return held.slots
    if isinstance(order, str):
        raise TypeError(f"`order` must be a list of paths, got {order!r}.")
    known = {slot.module for slot in held.slots}
    slots: list[Slot] = []
    for path in order:
        inside = slots_in(held, path)
        if not inside:
            raise ValueError(f"`order` has {path!r}, which holds no weights.{checks.near(path, known)}")
        slots += inside
    if len({id(slot) for slot in slots}) < len(slots):
        raise ValueError("`order` lists a module twice.")
    left = [slot for slot in held.slots if slot not in slots]
    if left:
        raise ValueError(f"`order` leaves out {left[0]}.")
    return slots


def _array(i: int, array: Any) -> Tensor:
    """An array as a tensor that holds real numbers."""
    try:
        value = checks.array(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"Array {i} is none of numbers that torch can take: {error}") from None
    if value.is_complex() or value.is_meta or value.layout != torch.strided:
        kind = "complex" if value.is_complex() else "on the meta device" if value.is_meta else str(value.layout)
        raise ValueError(f"Array {i} is {kind}; it must be dense and hold real numbers.")
    return value


def _refuse_unsettable(held: Holdings, model: nn.Module) -> None:
    """Raise if a parametrization keeps a tensor from being set."""
    for name, target in held.targets.items():
        if target.parametrized and (blocking := unsettable(target, model)):
            raise ValueError(f"{name}: {NOT_SETTABLE.format(blocking)}")


def _read(slot: Slot, held: Holdings) -> Tensor:
    """A copy of a weight, in Keras' layout."""
    rows = [_view(name, slot, held) for name in slot.names]
    value = torch.stack(rows) if len(rows) > 1 else rows[0].clone()
    if slot.added:
        value += held.targets[slot.added].tensor.detach().to(value)
    return value


def _view(name: str, slot: Slot, held: Holdings) -> Tensor:
    target = held.targets[name]
    variable = target.claims[0].variable
    assert variable is not None
    return variable.blocks_of(target.tensor.detach())[slot.block]


def _write(name: str, parts: list[Tensor], held: Holdings, model: nn.Module) -> None:
    """Fill a tensor of the model, block by block, from values in Keras' layout."""
    target, remaining = held.targets[name], iter(parts)
    variable = target.claims[0].variable
    assert variable is not None
    with writing(target, name, model, None) as tensor:
        variable.fill(tensor, lambda view: view.copy_(next(remaining)))


def _numpy(value: Tensor) -> Any:
    value = value.contiguous().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
