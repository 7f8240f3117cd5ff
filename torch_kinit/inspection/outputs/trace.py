"""What goes into and comes out of each module of a model in one forward pass, the model left as it was: `traced`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit.inspection.untouched import untouched

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_WITH_DROPOUT = (nn.MultiheadAttention, nn.RNNBase, *_DROPOUT)


@dataclass(frozen=True, eq=False)
class Event:
    """One call of a module."""

    path: str
    module: nn.Module
    arguments: tuple[Any, ...]  # tensors are copies
    keywords: Mapping[str, Any]
    outputs: list[Tensor]

    @property
    def inputs(self) -> list[Tensor]:
        return tensors((self.arguments, self.keywords))


def traced(model: nn.Module, arguments: tuple[Any, ...], keywords: Mapping[str, Any], mode: str) -> list[Event]:
    """All calls of modules, in the order in which they end; the last is the model's own.

    In mode "train" all modules are in training mode but those that drop values.
    """
    events: list[Event] = []
    begun: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        begun.append((copied(args), copied(kwargs)))

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, named = begun.pop()
        events.append(Event(paths[id(module)], module, given, named, [t.clone() for t in tensors(output)]))

    paths = {id(module): path for path, module in model.named_modules()}
    with untouched(model, arguments, keywords), torch.no_grad():
        set_mode(model, mode)
        handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in model.modules()]
        handles += [module.register_forward_hook(after, with_kwargs=True) for module in model.modules()]
        try:
            model(*arguments, **keywords)
        finally:
            for handle in handles:
                handle.remove()
    return events


def set_mode(model: nn.Module, mode: str) -> None:
    """Training mode for all modules but those that drop values, or for none."""
    for module in model.modules():
        module.training = mode == "train" and not isinstance(module, _WITH_DROPOUT)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a nest of tuples, lists, dicts and packed sequences."""
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return [nn.utils.rnn.pad_packed_sequence(value, batch_first=True)[0]]
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


def copied(value: Any) -> Any:
    """The same nest with copies of its tensors, which later layers may write to in place."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return value
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return type(value)(map(copied, value)) if type(value) in (list, tuple) else value
