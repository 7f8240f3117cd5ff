"""Put a model and the random states back if what is done to them fails halfway."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit._targets import Target, holder_of


class Undo:
    """A context in which tensors are remembered before they change, and restored if an exception leaves it.

    It is enabled only for plans that run functions of somebody else's, since a copy of each tensor is kept meanwhile;
    this package's own raise before they change anything.
    """

    def __init__(self, generator: torch.Generator | None, *, enabled: bool) -> None:
        self._enabled = enabled
        self._generator = generator
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._states: dict[torch.device, Tensor] = {}

    def __enter__(self) -> Undo:
        if self._enabled:
            self._state = self._generator.get_state() if self._generator else None
            self._cpu_state = torch.get_rng_state()
        return self

    def remember(self, target: Target, model: nn.Module) -> None:
        """Keep what `target` is now."""
        if not self._enabled:
            return
        tensors = [target.tensor]
        if target.parametrized:
            holder, attribute = holder_of(model, target.name)
            chain: Any = holder.parametrizations[attribute]  # type: ignore[index]
            tensors = [*chain.parameters(), *chain.buffers()]
        self._tensors += [(tensor, tensor.detach().clone()) for tensor in tensors]
        device = target.tensor.device
        if device.type not in ("cpu", "meta") and device not in self._states:
            self._states[device] = torch.get_device_module(device).get_rng_state(device)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not self._enabled:
            return
        with torch.no_grad():
            for tensor, kept in reversed(self._tensors):
                tensor.copy_(kept)
        torch.set_rng_state(self._cpu_state)
        for device, state in self._states.items():
            torch.get_device_module(device).set_rng_state(state, device)
        if self._generator and self._state is not None:
            self._generator.set_state(self._state)
