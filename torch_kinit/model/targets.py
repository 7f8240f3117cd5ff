"""What there is to initialize in a model: its parameters and buffers, who owns them, and what Keras calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from torch_kinit import checks, torch_internals
from torch_kinit.layers.table import layout_of
from torch_kinit.layers.variable import Options, Variable
from torch_kinit.model.pruned import as_stored
from torch_kinit.model.rules import UNDECIDED, Decision
from torch_kinit.shards import gathered, is_distributed
from torch_kinit.torch_internals import buffers_of, parameters_of, tensors_of

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class Owner(NamedTuple):
    """A module by which a rule may match a tensor, with its path, and the path without the names of wrappers."""

    path: str
    module: nn.Module
    canonical: str


@dataclass
class Claim:
    """One name under which a model holds a tensor.

    `canonical` is the name without those of wrappers. `modules` has the owner of its layout first, then the module
    that holds it, where a layer has handed a child's tensor to its parent. `main` says whether it is its layer's main
    weight, and `extra` whether it is a buffer of which no layout speaks.
    """

    name: str
    canonical: str
    variable: Variable | None
    modules: list[Owner]
    main: bool = False
    buffer: bool = False
    extra: bool = False
    decision: Decision = UNDECIDED

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

    @property
    def name(self) -> str:
        """The name under which its first owner holds it."""
        return self.claims[0].name

    def has_step(self) -> bool:
        """Whether a plan speaks of it: of all but buffers of which neither a layout nor a rule does."""
        return bool([claim for claim in self.claims if not claim.extra or claim.decision.value is not None])


def everything(model: nn.Module, options: Options) -> list[Target]:
    """The targets of a model, and then its buffers of which no layout speaks, such as a rotary cache."""
    known = targets(model, options)
    taken, found = {id(target.tensor) for target in known}, dict[int, Target]()
    modules = list(model.named_modules(remove_duplicate=False))  # FSDP1's named_buffers leaves its wrappers out
    held = [(path, m, name, b) for path, m in modules for name, b in buffers_of(m).items() if b is not None]
    others = [each for each in held if id(each[-1]) not in taken]
    paths = canonical_paths(modules) if others else {}
    for path, module, last, buffer in others:
        owner = Owner(path, module, paths[path])
        claim = Claim(_join(path, last), _join(owner.canonical, last), None, [owner], buffer=True, extra=True)
        found.setdefault(id(buffer), Target(buffer, kind="buffer")).claims.append(claim)
    return [*known, *found.values()]


def targets(model: nn.Module, options: Options) -> list[Target]:
    """All parameters of `model`, and the buffers Keras has a name for, in the order of its modules."""
    modules = list(model.named_modules(remove_duplicate=False))
    refuse_unready(modules)
    paths = canonical_paths(modules)
    found: dict[int, Target] = {}
    by_name: dict[str, Claim] = {}
    for path, module in modules:
        owner = Owner(path, module, paths[path])
        variables = [as_stored(variable, module) for variable in layout_of(module, options)]
        own = [name for name, parameter in parameters_of(module).items() if parameter is not None]
        alone = len(own) == 1  # no doubt which one is meant
        if isinstance(module, parametrize.ParametrizationList):
            own = [name for name in own if not name.startswith("original") or _join(path, name) in by_name]
        parametrized = [name for name in getattr(module, "parametrizations", ()) if _join(path, name) not in by_name]
        named: list[tuple[str, Variable | None, bool]] = [
            *((variable.tensor, variable, variable.role == variables[0].role) for variable in variables),
            *((name, None, False) for name in parametrized),
            *((name, None, alone) for name in own),
        ]
        for name, variable, main in named:
            full = _join(path, name)
            if full in by_name:  # a parent has entered it
                if all(known.module is not module for known in by_name[full].modules):
                    by_name[full].modules.append(owner)
                continue
            key, target = _resolve(owner, name)
            if target is not None:
                holder, _, last = full.rpartition(".")
                canonical = _join(paths[holder], last) if holder in paths else _join(owner.canonical, name)
                by_name[full] = claim = Claim(full, canonical, variable, [owner], main, target.kind == "buffer")
                found.setdefault(key, target).claims.append(claim)
    for target in found.values():
        if len(target.claims) > 1:  # as in Keras, where an embedding lends its table to the layer that reverses it
            target.claims.sort(key=lambda claim: claim.role != "embeddings")
    return list(found.values())


def _resolve(owner: Owner, name: str) -> tuple[int, Target | None]:
    """A tensor of a module, with the identity of the thing that is set; None if the module goes without it."""
    try:
        holder, attribute = holder_of(owner.module, name)
        parameter, buffer = parameters_of(holder).get(attribute), buffers_of(holder).get(attribute)
        if parameter is not None:
            return id(parameter), Target(parameter)
        if buffer is not None:
            return id(buffer), Target(buffer, kind="buffer")
        if not parametrize.is_parametrized(holder, attribute):
            getattr(holder, attribute)  # None, or a plain tensor, such as the old torch.nn.utils.weight_norm keeps
            return 0, None
    except AttributeError:
        kind, place = type(owner.module).__name__, owner.path or "the model"
        raise ValueError(f"The layout registered for {kind} names {name!r}, which {place} lacks.") from None
    chain = chain_of(owner.module, name)
    return id(chain), Target(parametrized_value(chain), parametrized=True)


def holder_of(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds the tensor of this name, and its attribute there."""
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path) if path else module, attribute


def chain_of(module: nn.Module, name: str) -> Any:
    """The parametrizations that make the tensor of this name."""
    holder, attribute = holder_of(module, name)
    return holder.parametrizations[attribute]  # type: ignore[index]


def parametrized_value(
    chain: Any,
    prepare: Callable[[nn.Module, Tensor], object] | None = None,
    without: Callable[[nn.Module], object] | None = None,
) -> Tensor:
    """The value a parametrization gives, computed in eval mode so that none (spectral_norm's) changes its state.

    `prepare` is called before each of those in the chain, with what that is given; those that `without` holds for are
    passed over.
    """
    modes = [(m, m.training) for m in chain.modules()]
    given = [tensor for name, tensor in tensors_of(chain).items() if name.startswith("original")]
    try:
        chain.eval()
        with torch.no_grad():
            for step in chain:
                if without is not None and without(step):
                    continue
                if prepare is not None:
                    prepare(step, given[0])
                given = [_value_of(step, given)]
    finally:
        for module, training in modes:
            module.training = training
    return given[0]


def _value_of(step: Any, given: list[Tensor]) -> Tensor:
    """What one parametrization makes of its tensors; spectral_norm's own forward mixes DTensors with plain tensors."""
    weight, kept = given[0], torch_internals.spectral_vectors(step)
    value: Tensor
    if not (kept and is_distributed(weight)) or weight.is_meta:
        value = weight if kept and weight.is_meta else step(*given)
        return value
    u, v, matrix = (gathered(tensor) for tensor in (kept["u"], kept["v"], weight))
    value = weight / torch.vdot(u, matrix.movedim(step.dim, 0).flatten(1) @ v)
    return value


def canonical_paths(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """The path of each module, parents first, and what it would be without wrappers."""
    by_path = dict(modules)
    paths = {"": ""}
    for path in filter(None, by_path):
        parent, _, last = path.rpartition(".")
        parallel = last == "module" and isinstance(by_path[parent], _PARALLEL)
        wrapped = parallel or last in torch_internals.WRAPPERS
        paths[path] = paths[parent] if wrapped else _join(paths[parent], last)
    return paths


def stored_names(claim: Claim, target: Target, model: nn.Module) -> set[str]:
    """The names that a claim's tensor, or what a parametrization makes it of, has in state dicts."""
    names = {claim.name, claim.canonical}
    if target.parametrized:
        path = f"parametrizations.{claim.name.rpartition('.')[2]}"
        originals = [name for name in tensors_of(chain_of(model, claim.name)) if name.startswith("original")]
        names |= {_join(name.rpartition(".")[0], f"{path}.{part}") for name in names for part in originals}
    return names


def extra_states(model: nn.Module) -> set[str]:
    """The names under which modules keep in state dicts what is no tensor of theirs."""
    modules = list(model.named_modules(remove_duplicate=False))
    paths = canonical_paths(modules)
    holders = [path for path, m in modules if type(m).get_extra_state is not nn.Module.get_extra_state]
    return {_join(name, "_extra_state") for path in holders for name in (path, paths[path])}


def refuse_unsettable(target: Target, model: nn.Module) -> None:
    """Raise if one of the parametrizations of a target keeps it from being set."""
    for step in chain_of(model, target.name) if target.parametrized else ():
        if not hasattr(step, "right_inverse"):
            raise ValueError(
                f"its parametrization {type(step).__name__} has no right_inverse, so its value cannot be set; "
                "skip it, or initialize what it is made from."
            )


def refuse_unready(modules: list[tuple[str, nn.Module]]) -> None:
    """Raise for tensors without a shape of their own: lazy ones, and those that FSDP1 has flattened."""
    tensors = [(path, name, t) for path, module in modules for name, t in tensors_of(module).items()]
    for path, _, tensor in tensors:
        if torch_internals.is_flattened_by_fsdp1(tensor):
            _refuse_flat(path, modules)
    if lazy := [_join(path, name) for path, name, tensor in tensors if is_lazy(tensor)]:
        verb = "is" if len(lazy) == 1 else "are"
        raise ValueError(f"{checks.listed(lazy)} {verb} lazy and without a shape: run one forward pass first.")


def _refuse_flat(path: str, modules: list[tuple[str, nn.Module]]) -> None:
    """Raise if FSDP1 has flattened the parameters of the module at `path`, but inside summon_full_params."""
    wrappers = [(outer, module) for outer, module in modules if type(module).__name__ == "FullyShardedDataParallel"]
    around = [module for outer, module in wrappers if f"{path}.".startswith(f"{outer}." if outer else "")]
    if around and torch_internals.summons_full_params(around[-1]):  # the innermost
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
