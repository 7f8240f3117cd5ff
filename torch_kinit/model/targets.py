"""What there is to initialize in a model: its parameters and buffers, who owns them, and what Keras calls them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from torch_kinit import torch_internals
from torch_kinit.layers.table import layout_of
from torch_kinit.layers.variable import Options, Variable
from torch_kinit.torch_internals import buffers_of, tensors_of


class Owner(NamedTuple):
    """A module by which a rule may match a tensor, with its path, and the path without the names of wrappers."""

    path: str
    module: nn.Module
    canonical: str


@dataclass
class Claim:
    """One name under which a model holds a tensor.

    `canonical` is the name without those of wrappers. `modules` has the owner of its layout first, then the module
    that holds it, where a layer has handed a child's tensor to its parent.
    """

    name: str
    canonical: str
    variable: Variable | None
    modules: list[Owner]
    main: bool
    buffer: bool = False

    @property
    def layer(self) -> str:
        """The owner's class name."""
        return type(self.modules[0].module).__name__

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
    optional: bool = False  # whether a plan may have no step for it

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
    _refuse_unready(modules)
    paths = canonical_paths(modules)
    found: dict[int, Target] = {}
    by_name: dict[str, Claim] = {}
    for path, module in modules:
        owner = Owner(path, module, paths[path])
        variables = layout_of(module, options)
        for variable in variables:
            _claim(found, by_name, owner, variable, paths, main=variable.role == variables[0].role)
        for name in getattr(module, "parametrizations", ()):  # of a parameter that no layout speaks of
            if _join(path, name) not in by_name:
                _claim(found, by_name, owner, Variable("", name), paths, main=False)
                by_name[_join(path, name)].variable = None
        own = list(module.named_parameters(recurse=False, remove_duplicate=False))
        for name, parameter in own:
            full = _join(path, name)
            if full in by_name:
                _add_owner(by_name[full], owner)
            elif not (isinstance(module, parametrize.ParametrizationList) and name.startswith("original")):
                alone = len(own) == 1  # no doubt which one is meant
                by_name[full] = claim = Claim(full, _join(owner.canonical, name), None, [owner], main=alone)
                found.setdefault(id(parameter), Target(parameter)).claims.append(claim)
    for target in found.values():
        if len(target.claims) > 1:  # as in Keras, where an embedding lends its table to the layer that reverses it
            target.claims.sort(key=lambda claim: claim.role != "embeddings")
    return list(found.values())


def other_buffers(model: nn.Module, known: list[Target]) -> list[Target]:
    """The buffers that are not among the `known` targets: of which no layout speaks, such as a rotary cache."""
    taken, found = {id(target.tensor) for target in known}, dict[int, Target]()
    others = [(name, b) for name, b in model.named_buffers(remove_duplicate=False) if id(b) not in taken]
    modules = dict(model.named_modules(remove_duplicate=False)) if others else {}
    paths = canonical_paths(modules.items())
    for name, buffer in others:
        path, _, last = name.rpartition(".")
        owner = Owner(path, modules[path], paths[path])
        claim = Claim(name, _join(owner.canonical, last), None, [owner], main=False, buffer=True)
        found.setdefault(id(buffer), Target(buffer, kind="buffer", optional=True)).claims.append(claim)
    return list(found.values())


def _claim(
    found: dict[int, Target],
    by_name: dict[str, Claim],
    owner: Owner,
    variable: Variable,
    paths: Mapping[str, str],
    main: bool,
) -> None:
    """Enter one variable of a module's layout, unless the module goes without it or a parent has entered it."""
    name = _join(owner.path, variable.tensor)
    if name in by_name:
        _add_owner(by_name[name], owner)
        return
    key, target = _resolve(owner.path, owner.module, variable)
    if target is not None:
        inside = "." in variable.tensor
        canonical = _canonical(name, paths) if inside else _join(owner.canonical, variable.tensor)
        by_name[name] = claim = Claim(name, canonical, variable, [owner], main, buffer=target.kind == "buffer")
        found.setdefault(key, target).claims.append(claim)


def _add_owner(claim: Claim, owner: Owner) -> None:
    if all(known.module is not owner.module for known in claim.modules):
        claim.modules.append(owner)


def _resolve(path: str, module: nn.Module, variable: Variable) -> tuple[int, Target | None]:
    """What a variable's tensor is, with the identity of the thing that is set; None if the module goes without it."""
    try:
        holder, attribute = holder_of(module, variable.tensor)
    except AttributeError:
        raise _lacking(path, module, variable) from None
    own = tensors_of(holder).get(attribute)
    if own is not None:
        return id(own), Target(own, kind="buffer" if attribute in buffers_of(holder) else "parameter")
    if parametrize.is_parametrized(holder, attribute):
        chain: Any = holder.parametrizations[attribute]  # type: ignore[index]
        return id(chain), Target(parametrized_value(chain), parametrized=True)
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


def parametrized_value(chain: nn.Module) -> Tensor:
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


def without_wrappers(name: str) -> str:
    """A name without the parts that are a wrapper's in any model, which "module" is not."""
    return ".".join(part for part in name.split(".") if part not in torch_internals.WRAPPERS)


def _canonical(name: str, paths: Mapping[str, str]) -> str:
    """A name as if no module was compiled, checkpointed or wrapped for data parallelism."""
    if name in paths:
        return paths[name]
    path, _, last = name.rpartition(".")
    return _join(_canonical(path, paths), last)


def canonical_paths(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """The path of each module, parents first, and what it would be without wrappers."""
    by_path = dict(modules)
    paths = {"": ""}
    for path in by_path:
        parent, _, last = path.rpartition(".")
        if path:
            paths[path] = paths[parent] if _wraps(by_path[parent], last) else _join(paths[parent], last)
    return paths


def _wraps(module: nn.Module, name: str) -> bool:
    """Whether a module is around its child of this name."""
    parallel = name == "module" and isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    return parallel or name in torch_internals.WRAPPERS


def stored_names(claim: Claim, target: Target, model: nn.Module) -> Iterator[str]:
    """The names that a claim's tensor, or what a parametrization makes it of, has in state dicts."""
    parts = [""]
    if target.parametrized:
        holder, attribute = holder_of(model, claim.name)
        chain: Any = holder.parametrizations[attribute]  # type: ignore[index]
        originals = [name for name in tensors_of(chain) if name.startswith("original")]
        parts += [f"parametrizations.{attribute}.{name}" for name in originals]
    for name in (claim.name, claim.canonical):
        path = name.rpartition(".")[0]
        yield from (_join(path, part) if part else name for part in parts)


def extra_states(model: nn.Module) -> set[str]:
    """The names under which modules keep in state dicts what is no tensor of theirs."""
    modules = list(model.named_modules(remove_duplicate=False))
    paths = canonical_paths(modules)
    holders = [path for path, m in modules if type(m).get_extra_state is not nn.Module.get_extra_state]
    return {_join(name, "_extra_state") for path in holders for name in (path, paths[path])}


def refuse_unsettable(target: Target, model: nn.Module) -> None:
    """Raise if one of the parametrizations of a target keeps it from being set."""
    if not target.parametrized:
        return
    holder, attribute = holder_of(model, target.name)
    for step in holder.parametrizations[attribute]:  # type: ignore[index]
        if not hasattr(step, "right_inverse"):
            raise ValueError(
                f"its parametrization {type(step).__name__} has no right_inverse, so its value cannot be set; "
                "skip it, or initialize what it is made from."
            )


def refuse_unready(model: nn.Module) -> None:
    """Raise for tensors without a shape of their own: lazy ones, and those that FSDP1 has flattened."""
    _refuse_unready(list(model.named_modules(remove_duplicate=False)))


def _refuse_unready(modules: list[tuple[str, nn.Module]]) -> None:
    tensors = [(path, name, t) for path, module in modules for name, t in tensors_of(module).items()]
    for path, _, tensor in tensors:
        if torch_internals.is_flattened_by_fsdp1(tensor):
            _refuse_flat(path, modules)
    lazy = [_join(path, name) for path, name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"{', '.join(lazy)} {'is' if len(lazy) == 1 else 'are'} lazy and without a shape: "
            "run one forward pass first."
        )


def _refuse_flat(path: str, modules: list[tuple[str, nn.Module]]) -> None:
    """Raise if FSDP1 has flattened the parameters of the module at `path`, but inside summon_full_params."""
    wrappers = [(outer, module) for outer, module in modules if type(module).__name__ == "FullyShardedDataParallel"]
    around = [(outer, w) for outer, w in wrappers if not outer or path == outer or path.startswith(f"{outer}.")]
    if around and torch_internals.summons_full_params(max(around, key=lambda found: len(found[0]))[1]):
        return
    raise ValueError(
        f"{path or 'The model'} is wrapped by FSDP1, which has flattened its parameters; initialize it before, "
        "with FullyShardedDataParallel(model, param_init_fn=kinit.param_init_fn(model, rules, seed=...)) while "
        "it is wrapped, or the wrapped model inside FullyShardedDataParallel.summon_full_params(model, "
        "writeback=True, rank0_only=False)."
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def dtype_name(tensor: Tensor) -> str:
    """A dtype's name as JSON has it, "float32"."""
    return str(tensor.dtype).removeprefix("torch.")
