"""Doing what a recipe says to one tensor of a model: first on a copy without storage, then for real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit import checks
from torch_kinit.initializers.axes import fans_of
from torch_kinit.initializers.moments import Moments, moments
from torch_kinit.initializers.names import recipe
from torch_kinit.initializers.plain import constant_, ones_
from torch_kinit.initializers.recipe import ELEMENTWISE, UNIFORM, Recipe, array_
from torch_kinit.initializers.scaled import resolve_fans
from torch_kinit.layers.layouts import Variable
from torch_kinit.model.targets import Target, holder_of
from torch_kinit.shards import is_distributed, put, whole_like, zero_row
from torch_kinit.streams.keras_seed import KerasSeed
from torch_kinit.streams.key import Key
from torch_kinit.streams.stream import AnyGenerator, Stream


def whole(value: Recipe | None, variable: Variable | None) -> bool:
    """Whether an initializer gets the torch parameter itself instead of Keras' views of it."""
    return variable is None or value is None or not value.ours or "layout" in value.arguments


def rehearse(
    value: Recipe, variable: Variable | None, target: Target, generator: AnyGenerator = None
) -> tuple[tuple[int, int] | None, Moments | None]:
    """Run `value` on a meta copy of the tensor, so that wrong arguments raise now; the fans and law it will have."""
    tensor = target.tensor
    if not tensor.dtype.is_floating_point and target.kind == "buffer":
        return None, _rehearse_exact(value, variable, tensor)
    checks.tensor(tensor, "parameter")
    if not value.ours:
        if isinstance(generator, Stream) and not isinstance(generator, Key) and value.accepts("generator"):
            raise ValueError(f"{value} is none of Keras' initializers and cannot draw from {generator}.")
        return None, None
    with torch.inference_mode(False):  # in which views would not know what they are views of
        return _on_meta(value, variable, tensor, generator)


def _rehearse_exact(value: Recipe, variable: Variable | None, tensor: Tensor) -> Moments | None:
    """Raise if `value` cannot fill a buffer of a dtype without fractions, or a complex one; its law if it is zero."""
    if value == recipe("zeros"):
        return Moments(0.0, 0.0, 0.0, 0.0)
    if variable is not None:
        raise ValueError(f"a counter of dtype {tensor.dtype} can only be 'zeros' or kinit.skip, not {value}.")
    if value.ours:
        _exact(value, tensor)
    return None


def _exact(value: Recipe, tensor: Tensor) -> Tensor:
    """The number or array that `value` gives to each element, in the dtype of `tensor`."""
    if value.function not in (*UNIFORM, constant_, array_):
        raise ValueError(f"a buffer of dtype {tensor.dtype} takes a number, an array or your function, not {value}.")
    given = checks.array(value.arguments.get("value", float(value.function is ones_)))
    if given.shape not in (tensor.shape, ()):
        raise ValueError(f"the array has shape {tuple(given.shape)}, the buffer's is {tuple(tensor.shape)}.")
    if given.is_complex() > tensor.is_complex() or (
        not tensor.is_complex() and not torch.equal(given.to(tensor.dtype).to(given.dtype), given)
    ):
        raise ValueError(f"a buffer of dtype {tensor.dtype} cannot hold {value} exactly.")
    return given.to(tensor.dtype).expand(tensor.shape)


def _on_meta(
    value: Recipe, variable: Variable | None, tensor: Tensor, generator: AnyGenerator
) -> tuple[tuple[int, int] | None, Moments | None]:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if whole(value, variable):
        value(copy, generator=generator)
        shape, layout, given = tuple(copy.shape), value.arguments.get("layout", "torch"), None
        if layout == "torch" and len(shape) > 1:
            shape = (*shape[2:], shape[1], shape[0])
    else:
        assert variable is not None
        views = variable.views(copy)
        if any(view is not copy and view._base is not copy for view in views) or (
            sum(view.numel() for view in views) != copy.numel()
        ):
            raise ValueError("its layout must give views that hold each element of the tensor once")
        shape, given = tuple(views[0].shape), variable.fans
        for view in views:
            value(view, layout="keras", fans=given, generator=generator)
    fans = None
    if value.accepts("fans"):
        used = value.arguments.get("fans")
        fans = resolve_fans(used, shape) if used is not None else given or fans_of(shape, "keras")
    return fans, moments(value, shape, fans)


def carry_out(
    value: Recipe, name: str, target: Target, model: nn.Module, generator: AnyGenerator, seeds: Sequence[KerasSeed] = ()
) -> None:
    """Fill a target, which `model` holds under `name`; from `generator`, or each block from its own of `seeds`."""
    variable = target.claim(name).variable
    if not target.tensor.dtype.is_floating_point and value.ours:
        put(target.tensor, _exact(value, target.tensor))
        return
    if target.parametrized:
        with writing(target, name, model, generator) as tensor:
            _fill(value, variable, tensor, generator, seeds)
    else:
        with torch.no_grad():
            _fill(value, variable, target.tensor, generator, seeds)


def _fill(
    value: Recipe, variable: Variable | None, tensor: Tensor, generator: AnyGenerator, seeds: Sequence[KerasSeed]
) -> None:
    own = value.arguments.get("generator") if value.ours else None
    if not value.ours and isinstance(generator, Key):
        _fill_natively(value, tensor, generator)
    elif variable is None or whole(value, variable) or value.function in UNIFORM:
        value(tensor, generator=seeds[0] if seeds else generator)
    elif isinstance(own or generator, Key) and not seeds and value.function in ELEMENTWISE:
        _with_fans(value, variable, tensor)(tensor, layout="torch", generator=generator)
    elif is_distributed(tensor):
        made = whole_like(tensor)
        _fill_blocks(value, variable, made, generator, seeds)
        put(tensor, made)
    else:
        _fill_blocks(value, variable, tensor, generator, seeds)
    if variable is not None and variable.zero_row is not None:
        zero_row(tensor, variable.zero_row)


def _fill_natively(value: Recipe, tensor: Tensor, key: Key) -> None:
    """Let an initializer of somebody else's draw from torch's generators, seeded by `key`, in row-major order."""
    made = tensor.contiguous()  # torch's draws depend on strides
    given = value.accepts("generator")
    generator = torch.Generator("cpu" if tensor.is_meta else tensor.device).manual_seed(key.native_seed)
    with _drawing_from(key.child(0) if given else key, tensor.device):  # some draw from both
        value(made, generator=generator)
    if made is not tensor:
        tensor.copy_(made)


def _fill_blocks(
    value: Recipe, variable: Variable, tensor: Tensor, generator: AnyGenerator, seeds: Sequence[KerasSeed]
) -> None:
    """Fill each variable of Keras' that `tensor` packs, or is a row of, from a source of its own."""
    if isinstance(own := value.arguments.get("generator"), Stream):  # the rule's, of which a row has its part, too
        value = Recipe(value.function, {k: v for k, v in value.arguments.items() if k != "generator"})
        generator = own
    fans, sources = variable.fans, iter(seeds or _each_block(generator, variable.blocks))
    if not isinstance(generator, Stream) and not seeds:
        variable.fill(tensor, lambda view: value(view, layout="keras", fans=fans, generator=generator))
        return
    variable.fill(
        tensor, lambda view: value(view, layout="keras", fans=fans, generator=_row(next(sources), variable, view))
    )


@contextmanager
def writing(target: Target, name: str, model: nn.Module, generator: AnyGenerator) -> Iterator[Tensor]:
    """The tensor to write a target's values to; a parametrized one is set from it afterwards."""
    with torch.no_grad():
        tensor = target.tensor.clone() if target.parametrized else target.tensor
        yield tensor
        if target.parametrized:
            holder, attribute = holder_of(model, name)
            with _drawing_from(generator, tensor.device), _in_their_storage(holder, attribute):
                setattr(holder, attribute, tensor)


@contextmanager
def _in_their_storage(holder: nn.Module, attribute: str) -> Iterator[None]:
    """Keep what a parametrized tensor is made of where it is: torch gives it other storage, unseen by FSDP1."""
    chain: Any = holder.parametrizations[attribute]  # type: ignore[index]
    kept = [(parameter, parameter.detach()) for parameter in chain.parameters() if not is_distributed(parameter)]
    yield
    for parameter, before in kept:
        if parameter.shape == before.shape and parameter.data_ptr() != before.data_ptr():
            before.copy_(parameter)
            parameter.data = before


def _each_block(generator: AnyGenerator, blocks: int) -> Iterator[AnyGenerator]:
    """The generator of each block; a Stream's may be different ones."""
    for i in range(blocks):
        yield generator.child(i) if isinstance(generator, Stream) else generator


def _row(generator: AnyGenerator, variable: Variable, view: Tensor) -> AnyGenerator:
    """A Stream's numbers for one row of a Keras variable that has several."""
    if variable.row is None or not isinstance(generator, Stream):
        return generator
    index, rows = variable.row
    return generator.part(index * view.numel(), rows * view.numel())


def _with_fans(value: Recipe, variable: Variable, tensor: Tensor) -> Recipe:
    """An initializer that knows the fans of the variables that `tensor` packs, so that it can draw them as one."""
    if not value.accepts("fans"):
        return value
    shape = variable.views(torch.empty(tensor.shape, device="meta"))[0].shape
    fans = resolve_fans(value.arguments.get("fans") or variable.fans, shape)
    return Recipe(value.function, {**value.arguments, "fans": fans})


@contextmanager
def _drawing_from(generator: AnyGenerator, device: torch.device) -> Iterator[None]:
    """Let draws from torch's global generators (orthogonal's right_inverse makes some) come from `generator`."""
    if generator is None:
        yield
        return
    devices = [] if device.type in ("cpu", "meta") else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        if isinstance(generator, Stream):
            seed = generator.native_seed
        else:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        torch.default_generator.manual_seed(seed)
        for there in devices:
            module = torch.get_device_module(there)
            with module.device(there) if hasattr(module, "device") else nullcontext():  # or it seeds the current one
                module.manual_seed(seed)
        yield
