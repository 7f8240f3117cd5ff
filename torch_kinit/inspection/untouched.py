"""Run a model and leave it as it was found: its tensors, modes, hooks, attributes and the random states."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit.inspection.sharded import fully_sharded
from torch_kinit.shards import is_distributed, local_of
from torch_kinit.torch_internals import parameters_of

Contents = dict[Any, Any] | list[Any] | set[Any]


@contextlib.contextmanager
def untouched(model: nn.Module, *inputs: Any) -> Iterator[None]:
    """Put the model and the random states back when the context ends, also after an error.

    Kept are the values of its parameters and buffers, in copies, and what the attributes of its modules are: modes,
    hooks, gradients, plain tensors, and the contents of lists, dicts and sets. The random states are torch's, of the
    CPU and of each device that the model or `inputs` are on, and Python's. Of a DTensor, what this process holds is
    kept, and nothing is sent. A model that fully_shard was called on has its shards before and after: whole
    parameters that an earlier pass has left gathered are given up.
    """
    _reshard(model)
    modules = list(model.modules())
    containers = [_containers(vars(module)) for module in modules]
    tensors = _tensors(container for held in containers for container, _ in held)
    devices = {tensor.device for tensor in [*tensors, *tensors_in(inputs)]}
    tensors = [tensor for tensor in tensors if not tensor.is_meta]
    values = [(tensor, local_of(tensor).data, local_of(tensor).detach().clone(), tensor.grad) for tensor in tensors]
    switched = {id(held): held for own in fully_sharded(model) for held in map(parameters_of, own.modules())}
    gathered = {id(tensor) for own in switched.values() for tensor in own.values()}
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    states = [(device, _rng(device).get_rng_state(*_index(device))) for device in accelerators]
    cpu_state, python_state = torch.get_rng_state(), random.getstate()
    try:
        yield
    except BaseException:
        _begin_anew(model)
        raise
    finally:
        _reshard(model)
        for held in containers:
            for container, contents in held:
                if id(container) not in switched:
                    _put_back(container, contents)
        for tensor, data, value, gradient in values:
            if not (id(tensor) in gathered and _is_freed(data)):
                _put_values_back(tensor, data, value)
            tensor.grad = gradient
        for device, state in states:
            _rng(device).set_rng_state(state, *_index(device))
        torch.set_rng_state(cpu_state)
        random.setstate(python_state)


def _reshard(model: nn.Module) -> None:
    """Give up the whole parameters that a forward pass has gathered."""
    for module in fully_sharded(model):
        module.reshard()


def _begin_anew(model: nn.Module) -> None:
    """Tell fully_shard that a pass was cut off, in the middle of which it would keep whole parameters."""
    for module in fully_sharded(model):
        if hasattr(module, "reset_iter_state"):  # of torch 2.13; with others the next pass that ends sets it right
            with contextlib.suppress(RuntimeError):  # it is for the outermost module alone
                module.reset_iter_state()


def _is_freed(data: Tensor) -> bool:
    """Whether fully_shard has given up the memory of a whole parameter, which was still there after a pass cut off."""
    return data.untyped_storage().nbytes() == 0


def _rng(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """What names a device among those of its kind; there is one of Apple's."""
    return () if device.type == "mps" else (device,)


def _containers(attributes: dict[str, Any]) -> list[tuple[Contents, Contents]]:
    """The attributes of a module, and those that are a dict, list or set, each beside a copy of what it contains."""
    inner = [value for value in attributes.values() if isinstance(value, dict | list | set)]
    return [(container, container.copy()) for container in (attributes, *inner)]


def _tensors(containers: Any) -> list[Tensor]:
    """The tensors in the containers, each once; gradients that hang on a graph are no state of the model."""
    found: dict[int, Tensor] = {}
    for container in containers:
        for value in container.values() if isinstance(container, dict) else container:
            if isinstance(value, Tensor) and value.is_leaf:
                found[id(value)] = value
    return list(found.values())


def _put_back(container: Contents, contents: Contents) -> None:
    if isinstance(container, list):
        container[:] = contents
    else:
        container.clear()
        container.update(contents)


def _put_values_back(tensor: Tensor, data: Tensor, value: Tensor) -> None:
    """Give a tensor its memory and values back; untold to autograd, whose graphs of before then stay valid."""
    if not is_distributed(tensor):  # whose parts stay where they are: torch crashes if it is given another DTensor's
        tensor.data = data
    if not torch.equal(data, value):
        data.copy_(value)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and objects with fields, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from tensors_in(inner)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors_in([getattr(value, name) for name in value.__dataclass_fields__])


def copied(value: Any) -> Any:
    """`value` with copies of the tensors in it and in its plain tuples, lists and dicts, so that none is written to."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (tuple, list):
        return type(value)(map(copied, value))
    return {key: copied(inner) for key, inner in value.items()} if type(value) is dict else value
