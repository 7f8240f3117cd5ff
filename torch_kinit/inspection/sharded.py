"""Models that several processes share: what torch's fully_shard and parallelize_module have made of their modules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import nn

from torch_kinit.shards import is_distributed


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module was made of, where fully_shard has given it one of its own: Linear for FSDPLinear."""
    own = (cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.distributed."))
    return next(own, type(module))


def fully_sharded(model: nn.Module) -> Iterator[Any]:
    """The modules that fully_shard was called on; asked without importing torch.distributed."""
    return (module for module in model.modules() if hasattr(module, "reshard") and hasattr(module, "unshard"))


def is_shared(model: nn.Module) -> bool:
    """Whether other processes hold a part of it, also where this one has gathered the whole for a while."""
    held = itertools.chain(model.parameters(), model.buffers())
    return any(map(is_distributed, held)) or any(True for _ in fully_sharded(model))
