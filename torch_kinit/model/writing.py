"""Where a target's values are written: into its tensor, or through its parametrization."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from torch_kinit.model.targets import Target, chain_of, holder_of
from torch_kinit.shards import is_distributed
from torch_kinit.streams.source import Source


@contextmanager
def writing(target: Target, name: str, model: nn.Module, source: Source | None = None) -> Iterator[Tensor]:
    """The tensor to write a target's values to; a parametrized one is set from it afterwards.

    What a right_inverse draws from torch's global generators comes from `source`, if there is one.
    """
    with torch.no_grad():
        if not target.parametrized:
            yield target.tensor
            return
        tensor = target.tensor.clone()
        yield tensor
        globally = nullcontext() if source is None else global_generators_from(source, tensor.device)
        kept = [(p, p.detach()) for p in chain_of(model, name).parameters() if not is_distributed(p)]
        with globally:
            holder, attribute = holder_of(model, name)
            setattr(holder, attribute, tensor)
        for parameter, before in kept:  # torch gives the originals other storage, unseen by FSDP1
            if parameter.shape == before.shape and parameter.data_ptr() != before.data_ptr():
                before.copy_(parameter)
                parameter.data = before


@contextmanager
def global_generators_from(source: Source, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators from `source`, and put them back afterwards; None leaves them as they are."""
    if source.argument is None:
        yield
        return
    devices = [] if device.type in ("cpu", "meta") else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        seed = source.native_seed
        torch.default_generator.manual_seed(seed)
        for there in devices:
            module = torch.get_device_module(there)
            with module.device(there) if hasattr(module, "device") else nullcontext():  # or it seeds the current one
                module.manual_seed(seed)
        yield
