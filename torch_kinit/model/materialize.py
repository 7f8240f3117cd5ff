"""From the meta device to a real one: storage for what has none, ties and the identity of parameters kept."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from torch_kinit import checks, torch_internals
from torch_kinit.model import pending
from torch_kinit.model.targets import refuse_unready
from torch_kinit.shards import is_fsdp2
from torch_kinit.torch_internals import buffers_of, parameters_of

Device = torch.device | str | int
Model = TypeVar("Model", bound=nn.Module)


def materialize(model: Model, device: Device) -> Model:
    """Give storage on `device` to all parameters and buffers of `model` that are on the meta device, in place.

    What is real stays as it is, unlike in `model.to_empty(device=...)`, and so do the parameters themselves, as the
    objects that optimizers and other modules hold: with their requires_grad, attributes, strides, ties and, for
    DTensors (FSDP2's and those of tensor parallelism), placements. (One to which a weak reference exists is replaced,
    wherever the model holds it, by a new one.) New floating and complex tensors hold NaN, others zero, until they are
    set: by `apply`, by a checkpoint, or by hand. `apply` restarts running statistics, sets other buffers by rules on
    their names, and refuses to leave any tensor that was made here and is still all NaN, or all zero if it is of
    integers or bools, unless a rule says `kinit.skip` or `only` leaves it out.

    Args:
        model: a model some of whose tensors may be on the meta device; distributed or wrapped by DDP, but not by FSDP1,
            for which there is `param_init_fn`.
        device: where to, such as "cpu" or "cuda".

    Raises:
        TypeError: `model` is not a module, or `device` not a device.
        ValueError: `device` is meta, a parameter is lazy, or the model is wrapped by FSDP1.

    Returns:
        The model.

    Example: a buffer that only `__init__` computes, as rotary position embeddings have, is set by a rule.
        >>> import torch
        >>> from torch import nn
        >>> from torch_kinit import apply
        >>> class Rotary(nn.Module):
        ...     def __init__(self, width):
        ...         super().__init__()
        ...         self.register_buffer("inv_freq", frequencies(width), persistent=False)
        >>> def frequencies(width):
        ...     return 100.0 ** (-torch.arange(0, width, 2) / width)
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Linear(4, 4), Rotary(4))
        >>> done = apply(materialize(model, "cpu"), {"*.inv_freq": frequencies(4)}, seed=0)
        >>> model[1].inv_freq
        tensor([1.0000, 0.1000])
    """
    checks.module(model)
    where = target_device(device)
    refuse_unready(list(model.named_modules(remove_duplicate=False)))
    allocate(list(model.modules()), where)
    return model


def target_device(device: Device) -> torch.device:
    """`device` as a torch.device that has memory."""
    if isinstance(device, bool) or not isinstance(device, (torch.device, str, int)):
        raise TypeError(f"`device` must be a device such as 'cpu' or 'cuda', got {checks.short(device)}.")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"`device` must be a device such as 'cpu' or 'cuda', got {checks.short(device)}: "
            f"{checks.cut(str(error), 600)}"
        ) from None
    if found.type == "meta":
        raise ValueError("`device` must have memory, such as 'cpu' or 'cuda', got 'meta'.")
    return found


def allocate(modules: list[nn.Module], device: torch.device) -> None:
    """Give storage to the meta tensors that these modules hold themselves, and note which they were."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # by identity; the first of the two keeps it from being used anew
    for module in modules:
        own = {**parameters_of(module), **buffers_of(module)}
        waiting = {name: t for name, t in own.items() if t is not None and (t.is_meta or id(t) in made)}
        if not waiting:
            continue
        with torch_internals.flat_weights_renewed(module):
            for name, tensor in waiting.items():
                if id(tensor) not in made:
                    made[id(tensor)] = tensor, _with_storage(tensor, device)
                setattr(module, name, made[id(tensor)][1])
                pending.note(module, name)
    for module in filter(is_fsdp2, modules if made else ()):
        torch_internals.tell_fsdp2(module)


def _with_storage(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` itself, with poisoned storage on `device`; or a new one where torch cannot exchange the insides."""
    with torch.inference_mode(False), torch.no_grad():
        new = torch.empty_like(tensor, device=device)  # with the same strides
        pending.poison(new)
        if isinstance(tensor, nn.Parameter):
            new = nn.Parameter(new, tensor.requires_grad)
        else:
            new.requires_grad_(tensor.requires_grad)
        if type(new) is not type(tensor):  # a subclass of Parameter
            new.__class__ = type(tensor)
        vars(new).update(vars(tensor) | vars(new))
        tensor.grad = None
        return tensor if torch_internals.swap(tensor, new) else new
