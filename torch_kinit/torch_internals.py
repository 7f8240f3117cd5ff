"""The only place that uses private names of torch: each beside the public way that stands in where it is missing.

All are looked up when they are used, so that a torch without one of them imports this package, and draws, all the same.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# The private names, and what happens without them.
PRIVATE_NAMES = {
    "torch.utils._python_dispatch._get_current_dispatch_mode": "draws are eager, also inside compiled()",
    "torch._C._functorch.peek_interpreter_stack": "draws are eager, also inside compiled()",
    "torch.nn.RNNBase._init_flat_weights": "each weight is set on the module again, which tells it",
    "torch.nn.Module._apply": "FSDP2 notes new storage at the next forward",
    "torch.utils.swap_tensors": "materialize puts new tensors in the place of the old ones",
    "torch.Tensor._base": "whether a layout gives views is not checked",
    "torch.Tensor._version": "whether an initializer has filled a tensor is told by the values alone",
    "torch.nn.utils.parametrizations._SpectralNorm": "its vectors are buffers of which no layout speaks",
}


def _find(name: str) -> Any:
    """What a dotted private name stands for; None if this torch lacks it."""
    found: Any = torch
    for part in name.split(".")[1:]:
        try:
            found = getattr(found, part, None)
        except ImportError:  # of a part that is loaded when it is asked for, as torch._dynamo
            return None
    return found


def is_intercepted() -> bool:
    """Whether a mode or a transform (FakeTensorMode, vmap) may stand between operations and the memory of tensors."""
    mode = _find("torch.utils._python_dispatch._get_current_dispatch_mode")
    stack = _find("torch._C._functorch.peek_interpreter_stack")
    return mode is None or stack is None or mode() is not None or stack() is not None


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Without the graphs of torch.compile, which pass over hooks; nothing is compiled where Dynamo is not loaded."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext()


def split_factor(placement: Any) -> int | None:
    """How many pieces FSDP2's strided Shard cuts; None for any other placement, and where torch does not say."""
    # By name: that torch's _StridedShard is a Shard was so in 2.8 and is not in 2.13.
    strided = type(placement).__name__ == "_StridedShard"
    return getattr(placement, "split_factor", None) if strided else None


def is_base_of(tensor: Tensor, view: Tensor) -> bool:
    """Whether `view` is a view of `tensor`, or the tensor itself."""
    return view is tensor or getattr(view, "_base", tensor) is tensor


def version_of(tensor: Tensor) -> int | None:
    """How many operations have written to a tensor in place; None where torch does not count them."""
    with contextlib.suppress(RuntimeError):  # of inference tensors
        return getattr(tensor, "_version", None)
    return None


def spectral_vectors(module: nn.Module) -> dict[str, Tensor]:
    """The estimates u and v of singular vectors that torch's spectral_norm keeps; none of any other module."""
    kind = _find("torch.nn.utils.parametrizations._SpectralNorm")
    kept = buffers_of(module) if kind is not None and isinstance(module, kind) else {}
    u, v = kept.get("_u"), kept.get("_v")  # a vector is divided by its length, without them
    return {} if u is None or v is None else {"u": u, "v": v}


def swap(tensor: Tensor, new: Tensor) -> bool:
    """Exchange the insides of two tensors; False where torch cannot."""
    exchange = _find("torch.utils.swap_tensors")
    with contextlib.suppress(RuntimeError):  # as for a tensor to which there are weak references
        if exchange is not None:
            exchange(tensor, new)
            return True
    return False


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The parameters that a module holds itself, None for one that it goes without; not to be changed."""
    own = getattr(module, "_parameters", None)
    return dict(module.named_parameters(recurse=False, remove_duplicate=False)) if own is None else own


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The buffers that a module holds itself, None for one that it goes without; not to be changed."""
    own = getattr(module, "_buffers", None)
    return dict(module.named_buffers(recurse=False, remove_duplicate=False)) if own is None else own


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that a module holds itself."""
    held = *parameters_of(module).items(), *buffers_of(module).items()
    return {name: tensor for name, tensor in held if tensor is not None}


@contextlib.contextmanager
def flat_weights_renewed(module: nn.Module) -> Iterator[None]:
    """Let a recurrent module, which keeps weak references to its weights, make them anew afterwards."""
    recurrent = isinstance(module, nn.RNNBase)
    renew = getattr(module, "_init_flat_weights", None) if recurrent else None
    if renew is not None:
        module._flat_weight_refs = []  # type: ignore[assignment]
    yield
    if renew is not None:
        renew()
    elif recurrent:
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, parameter)


def tell_fsdp2(module: nn.Module) -> None:
    """Let FSDP2 look again at the tensors that a module shards, as after `to`: it pads them and keeps views of them."""
    attributes = [(p, dict(vars(p))) for p in parameters_of(module).values() if p is not None]
    apply = getattr(module, "_apply", None)
    if apply is not None:
        with contextlib.suppress(RuntimeError):  # of what cannot be exchanged; before a forward it looks anyway
            apply(lambda tensor: tensor, recurse=False)
    for parameter, kept in attributes:
        vars(parameter).update(kept)


def forward_pre_hooks(module: nn.Module) -> Any:
    """The hooks that the old torch.nn.utils.weight_norm and spectral_norm leave."""
    return getattr(module, "_forward_pre_hooks", {})


# What torch.compile, activation checkpointing and FSDP1 put into the names of modules.
WRAPPERS = frozenset(("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"))


def is_flattened_by_fsdp1(parameter: object) -> bool:
    """Whether FSDP1 holds a parameter as a slice of a flat one."""
    return bool(getattr(parameter, "_fsdp_flattened", False))


def summons_full_params(wrapper: nn.Module) -> bool:
    """Whether an FSDP1 wrapper is inside summon_full_params."""
    return getattr(getattr(wrapper, "training_state", None), "name", "") == "SUMMON_FULL_PARAMS"
