"""Put a model and the random states back if what is done to them fails halfway."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit.model.targets import Target, chain_of
from torch_kinit.torch_internals import buffers_of, parameters_of

SMALL = 1 << 20  # as many values are always remembered, whatever can fail


class Undo:
    """A context that restores what it was told to remember, and random states, if an exception leaves it."""

    def __init__(self, generators: Iterable[object]) -> None:
        """Remember the state of those that are torch.Generators, and of torch's global one of the CPU."""
        given = {id(g): g for g in (*generators, torch.default_generator) if isinstance(g, torch.Generator)}
        self._generators = [(generator, generator.get_state()) for generator in given.values()]
        self._values: list[tuple[Tensor, Tensor, Tensor]] = []
        self._holders: list[tuple[nn.Module, dict[str, Any]]] = []
        self._states: dict[torch.device, Tensor] = {}

    def __enter__(self) -> Undo:
        return self

    def remember(self, target: Target, model: nn.Module) -> Tensor:
        """Keep what `target` is now, and return its values."""
        tensors: list[Tensor] = [target.tensor]
        if target.parametrized:
            chain = chain_of(model, target.name)
            for module in chain.modules():  # some right_inverse put other tensors in the place of these
                self._holders.append((module, {**parameters_of(module), **buffers_of(module)}))
            tensors = [*chain.parameters(), *chain.buffers()]
        self._values += [(tensor, tensor.detach(), tensor.detach().clone()) for tensor in tensors]
        device = target.tensor.device
        if device.type not in ("cpu", "meta") and device not in self._states:
            self._states[device] = torch.get_device_module(device).get_rng_state(device)
        return target.tensor if target.parametrized else self._values[-1][2]

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
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
        for device, state in self._states.items():
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self._generators:
            generator.set_state(state)
