"""A model's weights as Keras' `get_weights()` gives them, and back."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit import checks
from torch_kinit.keras.configs import load_config
from torch_kinit.keras.flatten import warn_of_flatten
from torch_kinit.keras.matching import Modules, Place, in_order_of, places
from torch_kinit.keras.saved_model import Model
from torch_kinit.keras.slots import WITHOUT_TWIN, Holdings, Slot, fits, holdings
from torch_kinit.keras.weight_files import config_in, named_arrays
from torch_kinit.layers.variable import Options
from torch_kinit.model.pruned import is_pruned
from torch_kinit.model.targets import Target, holder_of, refuse_unsettable
from torch_kinit.model.undo import SMALL, Undo
from torch_kinit.model.writing import writing
from torch_kinit.shards import is_distributed


def to_keras(
    model: nn.Module,
    *,
    keras_config: Any = None,
    order: Sequence[str] | None = None,
    modules: Modules | None = None,
    depthwise: bool = True,
) -> list[Any]:
    """The weights of `model` as NumPy arrays in Keras' layout, for `keras_model.set_weights`.

    Layer by layer as the modules are registered, and within a layer in the order of Keras' `get_weights()`: kernel,
    recurrent_kernel, bias; gamma, beta, moving_mean, moving_variance; attention's query kernel, query bias, and so on.
    torch's two biases of an LSTM are one in Keras, their sum; those of a GRU are the rows of one.

    Args:
        model: the torch port.
        keras_config: the Keras model, as `rules_from_keras` takes it: the arrays then come in the order and the shapes
            of its `get_weights()`, whatever the order of the modules.
        order: in which order the arrays come. Without `keras_config`, the paths of the modules in the order of the
            Keras model's layers, if they are registered in another; a container stands for all that is in it. With
            `keras_config`, the names of its layers, if the arrays do not come in the order of the config.
        modules: with `keras_config`, which torch module is which Keras layer; as in `rules_from_keras`.
        depthwise: as in `plan`.

    Returns:
        A list of arrays of the parameters' dtypes, bfloat16 as float32, which no longer share memory with `model`.
        Without `keras_config` nothing is known of the Keras model: neither of names nor of a Flatten, see `flattened`.

    Raises:
        ModuleNotFoundError: NumPy is not installed.
        ValueError: a parameter that no Keras layer has, such as a raw nn.Parameter; a DTensor, or a parameter on the
            meta device; an `order` that leaves weights out; a config of other layers than the model's.

    Example:
        >>> from torch import nn
        >>> [array.shape for array in to_keras(nn.Sequential(nn.Conv2d(3, 8, 5), nn.GRU(8, 4)))]
        [(5, 5, 3, 8), (8,), (8, 12), (4, 12), (2, 12)]
    """
    try:
        import numpy  # noqa: F401
    except ImportError:
        raise ModuleNotFoundError(
            "`to_keras` gives NumPy arrays, and NumPy is not installed: pip install numpy."
        ) from None
    held = _holdings(model, order if keras_config is None else None, depthwise)
    found = _places(held, keras_config, order, modules)
    return (
        [value_of(slot, held).numpy() for slot in held.slots] if found is None else [_read_for(p, held) for p in found]
    )


def from_keras(
    model: nn.Module,
    source: Any,
    *,
    keras_config: Any = None,
    order: Sequence[str] | None = None,
    modules: Modules | None = None,
    depthwise: bool = True,
) -> None:
    """Give `model` the weights of its Keras twin, `keras_model.get_weights()`; the inverse of `to_keras`.

    Args:
        model: the torch port.
        source: as many arrays or tensors as `to_keras` gives, of the same shapes, but that axes of size one and
            neighbouring axes that Keras keeps apart (those of a MultiHeadAttention's heads) may be merged or not. Or a
            live Keras model; or the path of a file that one was saved to: .keras, .weights.h5, or the .h5 of Keras 2
            and 3 (read with h5py: `pip install torch_kinit[files]`).
        keras_config: the Keras model, as `rules_from_keras` takes it; None for the config in `source`, if that has one.
            Each array is then checked against the Keras layer and the torch module that it belongs to, which are
            matched as in `rules_from_keras`. A .weights.h5 keeps layers by class (dense, dense_1, embedding), so that
            without a config the order of classes is the one that fits the shapes, and an error if several do.
        order, modules, depthwise: as in `to_keras`.

    Raises:
        ValueError, TypeError: too many or too few arrays, or one of another shape than its place has, naming the layer;
            a config of other layers than the model's; a file that is damaged, holds what are no numbers, links
            elsewhere, or does not tell the order; LoRA weights; a parameter that cannot be set, such as a DTensor.
        ModuleNotFoundError: a file is read, and h5py is not installed.

    After an error, also one of a parametrization's own, the model is as it was. The second bias that torch adds in an
    LSTM or RNN is set to zero. A file is read as data: no code in it is run, no link in it followed, and no config of
    more than 64 MiB or 200 levels read; but HDF5's own library parses it, which an .h5 made to harm may crash or hang.
    The kernel of a layer with LoRA weights is read from a .keras or .weights.h5 with the update that these make. Where
    a config shows that Keras flattens channels-last data before a layer, and the port does not say how it does, a
    UserWarning asks for `flattened`; without a config nothing is known of that.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> a, b = nn.LSTM(3, 4), nn.LSTM(3, 4)
        >>> from_keras(b, to_keras(a))
        >>> x = torch.randn(5, 2, 3)
        >>> torch.allclose(a(x)[0], b(x)[0], atol=1e-6)
        True
    """
    config = keras_config
    if order is None:  # which means something else where a config is given
        config = config_in(source, keras_config) or (keras_config if modules else None)
    held = _holdings(model, order if config is None else None, depthwise)
    arrays = named_arrays(source, keras_config, held.slots)
    values = {name: _array(name, array) for name, array in arrays}
    listed = not isinstance(source, (str, os.PathLike)) and not hasattr(source, "get_weights")
    if (found := _places(held, config, order, modules, listed=listed)) is None:
        _refuse_misfits(values, held.slots)
        filled = list(zip(held.slots, values.values(), strict=True))
    else:
        _refuse_others(values, found)
        filled = [(p.slot, value) for p, value in zip(found, values.values(), strict=True) if p.slot]
    by_name: dict[str, list[Tensor]] = {}
    for slot, value in filled:
        rows = value.reshape(slot.shape) if len(slot.names) > 1 else [value.reshape(slot.shape)]
        for name, row in zip(slot.names, rows, strict=True):
            by_name.setdefault(name, []).append(row)
        if slot.added:
            by_name[slot.added] = [torch.zeros((), dtype=value.dtype)]
    changed = [held.targets[name] for name in by_name]
    for target in changed:
        with checks.context(target.name):
            refuse_unsettable(target, model)
        if _cannot_fail(target):
            checks.tensor(target.tensor, target.name)
    small = sum(target.tensor.numel() for target in changed) <= SMALL
    with Undo([]) as undo:
        for target in sorted(changed, key=_cannot_fail):  # False first
            if small or not _cannot_fail(target):
                undo.remember(target, model)
            _write(by_name[target.name], target, held, model)


def _places(
    held: Holdings, config: Any, order: Sequence[str] | None, modules: Modules | None, *, listed: bool = True
) -> list[Place] | None:
    """The place of each weight of a config's layers, in the order of the arrays; None without a config.

    What is `listed` is in the order of `get_weights()`; what is read from files and live models is layer by layer.
    """
    if config is None:
        if modules is not None:
            raise ValueError("`modules` maps the layers of a `keras_config`, and none is given.")
        return None
    keras = load_config(config, seeds=False)
    model = Model(keras)
    for layer in model.layers:  # a file has them in the kernel, and others are refused
        layer.weights = [weight for weight in layer.weights if "lora_" not in weight.name]
    found = places(model.layers, held, modules)
    warn_of_flatten(keras, found, held)
    if order is not None:
        return in_order_of(order, found)
    by_weight = {id(place.weight): place for place in found}
    weights = [place.weight for place in found]
    return [by_weight[id(weight)] for weight in (model.as_in_get_weights(weights) if listed else weights)]


def _refuse_misfits(values: Mapping[str, Tensor], slots: Sequence[Slot]) -> None:
    """Raise if the arrays do not fit the model."""
    for (name, value), slot in zip(values.items(), slots, strict=False):
        if not fits(tuple(value.shape), slot.shape):
            raise ValueError(f"{name} of {len(values)} has shape {tuple(value.shape)}; its place is {slot}.")
    if len(values) != len(slots):
        short = len(values) < len(slots)
        place = slots[len(values)] if short else slots[-1] if slots else "nothing"
        raise ValueError(
            f"There are {len(values)} arrays for {len(slots)} weights of the model; "
            f"{'the first without one' if short else 'its last weight'} is {place}."
        )


def _refuse_others(values: Mapping[str, Tensor], found: Sequence[Place]) -> None:
    """Raise if the arrays are not those of the Keras layers."""
    hint = "Are the arrays those of the model of the config?"
    for (name, value), (layer, weight, slot) in zip(values.items(), found, strict=False):
        shape = tuple(value.shape)
        if not (weight.shape is None or fits(weight.shape, shape)) or not (slot is None or fits(shape, slot.shape)):
            place = "" if slot is None else f"{slot}, "
            raise ValueError(
                f"{name} of {len(values)} has shape {shape}; its place is {place}the {weight.name} {weight.shape} of "
                f"Keras' layer {layer.name!r} ({layer.class_name}). {hint}"
            )
    if len(values) != len(found):
        short = len(values) < len(found)
        last = found[len(values)] if short else found[-1] if found else None
        which = "the first without one" if short else "its last weight"
        end = f"; {which} is the {last.weight.name} of Keras' layer {last.layer.name!r}" if last else ""
        raise ValueError(f"There are {len(values)} arrays for {len(found)} weights of the config{end}. {hint}")


def _holdings(model: nn.Module, order: Sequence[str] | None, depthwise: bool) -> Holdings:
    """What the model holds, in this `order`, if all of it is numbers in this process that Keras has weights for."""
    held = holdings(model, Options(depthwise=depthwise))
    for name, target in held.targets.items():
        if is_distributed(target.tensor):
            raise ValueError(
                f"{name} is a DTensor, of which each process holds a part. Exchange the weights of an undistributed "
                "copy of the model: get_model_state_dict of torch.distributed.checkpoint.state_dict with "
                "full_state_dict=True gathers them, set_model_state_dict with broadcast_from_rank0=True shards them."
            )
        if is_pruned(*holder_of(model, name)):
            raise ValueError(
                f"{name} is pruned, and Keras has no masks; torch.nn.utils.prune.remove makes pruning permanent before."
            )
        if target.tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and holds no numbers; give the model storage first.")
    if strangers := [target for target in held.targets.values() if target.claims[0].role in WITHOUT_TWIN]:
        names = checks.listed(f"{target.name} of {target.claims[0].layer}" for target in strangers)
        raise ValueError(f"Keras has no weight for {names}; register_layout tells what a class of your own holds.")
    if order is None:
        return held
    if isinstance(order, str) or not all(isinstance(path, str) for path in order):
        raise TypeError(f"`order` must be a list of paths, got {checks.short(order)}.")
    slots = [slot for path in order for slot in held.inside(path, "`order` has")]
    listed = {id(slot) for slot in slots}
    if len(listed) < len(slots):
        raise ValueError("`order` lists a module twice.")
    if left := [slot for slot in held.slots if id(slot) not in listed]:
        raise ValueError(f"`order` leaves out {left[0]}.")
    return dataclasses.replace(held, slots=slots)


def _array(name: str, array: Any) -> Tensor:
    """An array as a tensor that holds real numbers."""
    try:
        value = checks.array(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} is none of numbers that torch can take: {error}") from error
    kinds = {"complex": value.is_complex(), "quantized": value.is_quantized, "on the meta device": value.is_meta}
    kinds |= {"a DTensor": is_distributed(value), str(value.layout): value.layout != torch.strided}
    if wrong := [kind for kind, is_so in kinds.items() if is_so]:
        raise ValueError(f"{name} is {wrong[0]}; it must be dense and hold real numbers in this process.")
    return value


def _cannot_fail(target: Target) -> bool:
    """Whether a target that was checked can be written to without an error, and without the code of others."""
    return not target.parametrized and target.tensor.dtype.is_floating_point


def value_of(slot: Slot, held: Holdings) -> Tensor:
    """A copy of a weight in Keras' layout, on the CPU, bfloat16 as float32."""
    rows = [held.variables[name].blocks_of(held.targets[name].tensor.detach())[slot.block] for name in slot.names]
    value = torch.stack(rows) if len(rows) > 1 else rows[0].clone()
    if slot.added:
        value += held.targets[slot.added].tensor.detach().to(value)
    value = value.reshape(slot.shape).contiguous().cpu()
    return value.float() if value.dtype == torch.bfloat16 else value


def _read_for(place: Place, held: Holdings) -> Any:
    """The same in the shape that the Keras layer has it."""
    if place.slot is None:
        raise ValueError(f"{place}, of which the torch model holds nothing; Keras' `set_weights` wants all.")
    value, shape = value_of(place.slot, held).numpy(), place.weight.shape
    return value if shape is None or None in shape else value.reshape(shape)


def _write(parts: Iterable[Tensor], target: Target, held: Holdings, model: nn.Module) -> None:
    """Fill a tensor of the model, block by block, from values in Keras' layout."""
    remaining = iter(parts)

    def put(view: Tensor) -> None:
        value = next(remaining)
        view.copy_(value.reshape(view.shape) if value.ndim else value)

    with writing(target, target.name, model) as tensor:
        held.variables[target.name].fill(tensor, put)
