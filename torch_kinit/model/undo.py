"""Put a model and the random states back if what is done to them fails halfway."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit.model.targets import Target, holder_of
from torch_kinit.torch_internals import buffers_of, parameters_of


class Undo:
    """A context that restores what it was told to remember, and random states, if an exception leaves it."""

    def __init__(self, generators: Iterable[object]) -> None:
        """Remember the state of those that are torch.Generators, and of torch's global one of the CPU."""
        given = {id(g): g for g in generators if isinstance(g, torch.Generator)}
        self._generators = [(generator, generator.get_state()) for generator in given.values()]
        self._values: list[tuple[Tensor, Tensor, Tensor]] = []
        self._holders: list[tuple[nn.Module, dict[str, Any]]] = []
        self._states: dict[torch.device, Tensor] = {}

    def __enter__(self) -> Undo:
        self._cpu_state = torch.get_rng_state()
        return self

    def remember(self, target: Target, model: nn.Module) -> None:
        """Keep what `target` is now."""
        if target.parametrized:
            holder, attribute = holder_of(model, target.name)
            chain: Any = holder.parametrizations[attribute]  # type: ignore[index]
            for module in chain.modules():  # some right_inverse put other tensors in the place of these
                self._holders.append((module, {**parameters_of(module), **buffers_of(module)}))
            tensors = [*chain.parameters(), *chain.buffers()]
        else:
            tensors = [target.tensor]
        self._values += [(tensor, tensor.detach(), tensor.detach().clone()) for tensor in tensors]
        device = target.tensor.device
        if device.type not in ("cpu", "meta") and device not in self._states:
            self._states[device] = torch.get_device_module(device).get_rng_state(device)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        for module, kept in reversed(self._holders):
            for name in {**parameters_of(module), **buffers_of(module)}.keys() - kept.keys():
                delattr(module, name)
            for name, tensor in kept.items():
                setattr(module, name, tensor)
        with torch.no_grad():
            for tensor, data, values in reversed(self._values):
                tensor.data = data  # some put another tensor there
                data.copy_(values)
        torch.set_rng_state(self._cpu_state)
        for device, state in self._states.items():
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self._generators:
            generator.set_state(state)
