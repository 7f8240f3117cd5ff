"""What there is to initialize in a model: its parameters and buffers, who owns them, and what Keras calls them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.nn.utils import parametrize

from torch_kinit._layouts import Options, Variable, layout_of


@dataclass
class Claim:
    """One name under which a model holds a tensor.

    `modules` are those a rule may match it by, with their paths: the owner of its layout first, then the module
    that holds it, where a layer has handed a child's tensor to its parent.
    """

    name: str
    variable: Variable | None
    modules: list[tuple[str, nn.Module]]
    main: bool
    buffer: bool = False

    @property
    def layer(self) -> str:
        """The owner's class name."""
        return type(self.modules[0][1]).__name__

    @property
    def role(self) -> str | None:
        """What Keras calls it; None for a parameter of no known layout."""
        return self.variable.role if self.variable else None


@dataclass
class Target:
    """A tensor to initialize and all the claims to it; the first one decides how it is drawn."""

    tensor: Tensor
    claims: list[Claim] = field(default_factory=list)
    kind: str = "parameter"
    parametrized: bool = False

    @property
    def name(self) -> str:
        """The name under which its first owner holds it."""
        return self.claims[0].name

    def claim(self, name: str) -> Claim:
        """The claim under this name."""
        return next(claim for claim in self.claims if claim.name == name)


def targets(model: nn.Module, options: Options) -> list[Target]:
    """All parameters of `model`, and the buffers Keras has a name for, in the order of its modules."""
    modules = list(model.named_modules(remove_duplicate=False))
    _refuse_flat(modules)
    _refuse_lazy(modules)
    found: dict[int, Target] = {}
    by_name: dict[str, Claim] = {}
    for path, module in modules:
        variables = layout_of(module, options)
        for variable in variables:
            _claim(found, by_name, path, module, variable, main=variable.role == variables[0].role)
        for name in getattr(module, "parametrizations", ()):  # of a parameter that no layout speaks of
            if _join(path, name) not in by_name:
                _claim(found, by_name, path, module, Variable("", name), main=False)
                by_name[_join(path, name)].variable = None
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full = _join(path, name)
            alone = sum(p is not None for p in module._parameters.values()) == 1  # no doubt which one is meant
            if full in by_name:
                if all(m is not module for _, m in by_name[full].modules):
                    by_name[full].modules.append((path, module))
            elif not (isinstance(module, parametrize.ParametrizationList) and name.startswith("original")):
                by_name[full] = claim = Claim(full, None, [(path, module)], main=alone)
                found.setdefault(id(parameter), Target(parameter)).claims.append(claim)
    return list(found.values())


def _claim(
    found: dict[int, Target], by_name: dict[str, Claim], path: str, module: nn.Module, variable: Variable, main: bool
) -> None:
    """Enter one variable of a module's layout, unless the module goes without it or a parent has entered it."""
    name = _join(path, variable.tensor)
    if name in by_name:
        if all(m is not module for _, m in by_name[name].modules):
            by_name[name].modules.append((path, module))
        return
    key, target = _resolve(path, module, variable)
    if target is not None:
        by_name[name] = claim = Claim(name, variable, [(path, module)], main, target.kind == "buffer")
        found.setdefault(key, target).claims.append(claim)


def _resolve(path: str, module: nn.Module, variable: Variable) -> tuple[int, Target | None]:
    """What a variable's tensor is, with the identity of the thing that is set; None if the module goes without it."""
    try:
        holder, attribute = holder_of(module, variable.tensor)
    except AttributeError:
        raise _lacking(path, module, variable) from None
    if (parameter := holder._parameters.get(attribute)) is not None:
        return id(parameter), Target(parameter)
    if (buffer := holder._buffers.get(attribute)) is not None:
        return id(buffer), Target(buffer, kind="buffer")
    if parametrize.is_parametrized(holder, attribute):
        chain: Any = holder.parametrizations[attribute]  # type: ignore[index]
        return id(chain), Target(_parametrized_value(chain), parametrized=True)
    if not hasattr(holder, attribute):
        raise _lacking(path, module, variable)
    return 0, None  # None, or a plain tensor, such as the old torch.nn.utils.weight_norm keeps


def _lacking(path: str, module: nn.Module, variable: Variable) -> ValueError:
    return ValueError(
        f"The layout registered for {type(module).__name__} names {variable.tensor!r}, which "
        f"{path or 'the model'} lacks."
    )


def holder_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds the tensor of this name, and its attribute there."""
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path) if path else module, attribute


def _parametrized_value(chain: nn.Module) -> Tensor:
    """The value a parametrization gives, computed in eval mode so that none (spectral_norm's) changes its state."""
    modes = [(m, m.training) for m in chain.modules()]
    try:
        chain.eval()
        with torch.no_grad():
            value: Tensor = chain()
    finally:
        for module, training in modes:
            module.training = training
    return value


# What torch.compile, activation checkpointing and FSDP1 put into names.
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def canonical(name: str, model: nn.Module) -> str:
    """A parameter's name as if no module of `model` was compiled, checkpointed or wrapped for data parallelism."""
    parts: list[str] = []
    module: Any = model
    for part in name.split("."):
        parallel = isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) and part == "module"
        if part not in _WRAPPERS and not parallel:
            parts.append(part)
        module = getattr(module, "_modules", {}).get(part)
    return ".".join(parts)


def unsettable(target: Target, model: nn.Module) -> str | None:
    """The class name of the parametrization that keeps the target from being set, if one does."""
    holder, attribute = holder_of(model, target.name)
    for step in holder.parametrizations[attribute]:  # type: ignore[index]
        if not hasattr(step, "right_inverse"):
            return type(step).__name__
    return None


def _refuse_lazy(modules: list[tuple[str, nn.Module]]) -> None:
    lazy = [
        _join(path, name)
        for path, module in modules
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if isinstance(tensor, UninitializedTensorMixin)
    ]
    if lazy:
        raise ValueError(
            f"{', '.join(lazy)} {'is' if len(lazy) == 1 else 'are'} lazy and without a shape: "
            "run one forward pass first."
        )


def _refuse_flat(modules: list[tuple[str, nn.Module]]) -> None:
    for path, module in modules:
        if any(type(p).__name__ == "FlatParameter" for p in module._parameters.values()):
            raise ValueError(
                f"{path or 'The model'} is wrapped by FSDP1, which has flattened its parameters; initialize before, or "
                "inside FullyShardedDataParallel.summon_full_params(model, writeback=True, rank0_only=False)."
            )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
