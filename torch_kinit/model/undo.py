"""Put a model and the random states back if what is done to them fails halfway."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit.model.targets import Target, holder_of


class Undo:
    """A context in which tensors are remembered before they change, and restored if an exception leaves it.

    It is enabled only for plans that run functions of somebody else's, since a copy of each tensor is kept meanwhile;
    this package's own raise before they change anything.
    """

    def __init__(self, generators: Iterable[torch.Generator], *, enabled: bool) -> None:
        self._enabled = enabled
        self._generators = [(generator, generator.get_state()) for generator in generators] if enabled else []
        self._values: list[tuple[Tensor, Tensor, Tensor]] = []
        self._holders: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._states: dict[torch.device, Tensor] = {}

    def __enter__(self) -> Undo:
        if self._enabled:
            self._cpu_state = torch.get_rng_state()
        return self

    def remember(self, target: Target, model: nn.Module) -> None:
        """Keep what `target` is now."""
        if not self._enabled:
            return
        if target.parametrized:
            holder, attribute = holder_of(model, target.name)
            chain: Any = holder.parametrizations[attribute]  # type: ignore[index]
            for module in chain.modules():  # some right_inverse put other tensors in the place of these
                self._holders += [(own, dict(own)) for own in (module._parameters, module._buffers)]
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
        if error is None or not self._enabled:
            return
        for own, kept in reversed(self._holders):
            own.clear()
            own.update(kept)
        with torch.no_grad():
            for tensor, data, values in reversed(self._values):
                tensor.data = data  # some put another tensor there
                data.copy_(values)
        torch.set_rng_state(self._cpu_state)
        for device, state in self._states.items():
            torch.get_device_module(device).set_rng_state(state, device)
        for generator, state in self._generators:
            generator.set_state(state)
