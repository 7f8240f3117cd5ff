"""A plan: the steps that initialize a model, as data, and carrying them out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.recipe import PARAMETERS
from torch_kinit.initializers.structured import orthogonal_, refuse_large
from torch_kinit.layers.layouts import CONVENTIONS, Options
from torch_kinit.model import pending, report
from torch_kinit.model.execute import carry_out
from torch_kinit.model.steps import (
    NOT_SETTABLE,
    Step,
    dtype_name,
    rehearse_step,
)
from torch_kinit.model.targets import Target, other_buffers, targets, unsettable, without_wrappers
from torch_kinit.model.undo import Undo
from torch_kinit.shards import is_distributed, reshard
from torch_kinit.streams.key import Key
from torch_kinit.streams.stream import AnyGenerator, Stream, check_generator


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps that initialize a model, as data: iterate, index by parameter name, compare, print, save as JSON.

    `convention` and `depthwise` are those it was made with; `model` is the one it was made for, or None for
    a plan read from JSON. Two plans are equal when their steps and conventions are, whatever the model.
    """

    steps: tuple[Step, ...]
    convention: str = "keras-3.15"
    depthwise: bool = True
    model: nn.Module | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, name: str) -> Step:
        if not isinstance(name, str):
            raise TypeError(f"A plan is indexed by parameter name, got {name!r}; for a position take `plan.steps`.")
        if name not in self._by_name:
            raise KeyError(f"The plan has no parameter {name!r}.{checks.near(name, self._by_name)}")
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @functools.cached_property
    def _by_name(self) -> dict[str, Step]:
        return {name: step for step in self.steps for name in (step.name, *step.tied)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return (self.steps, self.convention, self.depthwise) == (other.steps, other.convention, other.depthwise)

    def __hash__(self) -> int:
        return hash((self.steps, self.convention, self.depthwise))

    def __repr__(self) -> str:
        return f"<Plan of {len(self)} steps>"

    def __str__(self) -> str:
        return report.as_text(*report.plan_table(self.steps))

    def _repr_html_(self) -> str:
        return report.as_html(*report.plan_table(self.steps))

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data that JSON can hold.

        Raises:
            ValueError: an initializer is a function of somebody else's, or has an argument JSON cannot hold.
        """
        steps = [step.to_dict() for step in self.steps]
        return {"convention": self.convention, "depthwise": self.depthwise, "steps": steps}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` wrote, without its model: give one to `apply`.

        Raises:
            ValueError: the data is not a plan's.
        """
        try:
            options = Options(data["convention"], data["depthwise"])
            steps = tuple(Step.from_dict(row) for row in data["steps"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"This is not a plan that `to_dict` wrote: {error!r}.") from None
        checks.choice("convention", options.convention, CONVENTIONS)
        checks.boolean("depthwise", options.depthwise)
        return cls(steps, *options)

    def apply(
        self,
        model: nn.Module | None = None,
        *,
        generator: AnyGenerator = None,
        seed: int | None = None,
        prefix: str = "",
        progress: bool = False,
    ) -> Plan:
        """Carry the plan out, and return it.

        Args:
            model: another model with parameters of the same names, shapes and dtypes; None for the plan's own.
            generator: a torch.Generator on the parameters' device or the CPU; a `KerasSeed`, for every parameter the
                numbers of that seed, as of Keras layers whose initializers all have it; a `Key`, from which one is
                derived for each parameter by its name; or None for torch's global ones. Parameters with seeds of
                their own (see `replay_keras`) draw from these instead.
            seed: an int n, for `generator=Key(n)`: each parameter's values then depend only on n, its name and its
                shape. Names of wrappers (torch.compile, DataParallel, checkpointing, FSDP1) do not count. A rule's
                own Key is used as it is, for each parameter. Functions of somebody else's get torch.Generators, and
                run on global ones, that are seeded by the parameter's key: equal on one device and torch version.
            prefix: the name that the model has in a larger one, whose values it then gets: "encoder".
            progress: show a bar over the parameters, if tqdm is installed.

        Raises:
            ValueError: the model is not the one planned for, the generator does not fit, `seed` and `generator`
                are both given, something is on the meta device (see `materialize`), or a buffer that was there has not
                been set since. Nothing is changed then, nor when an initializer of somebody else's raises: values
                and random states are put back.
        """
        model = self.model if model is None else model
        if model is None:
            raise ValueError("This plan was read from data and has no model: pass one to `apply`.")
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module, got {model!r} of type {type(model).__name__}.")
        generator = keyed(generator, seed, prefix)
        work, silent = prepare(self, model, generator)
        involved = [*(target for _, target in work), *silent]
        pending.refuse_meta(involved)
        own, others = within_parametrized(work, silent)
        pending.refuse_unset(others, model)
        generators = {generator}
        for step, target in work:
            generators.add(check_generator(_own(step) or generator, target.tensor.device))
        risky = any(not step.initializer.ours or target.parametrized for step, target in work if step.initializer)
        native = [g for g in generators if isinstance(g, torch.Generator)]
        with Undo(native, enabled=risky) as undo:
            for step, target in report.progress_bar(work) if progress else work:
                undo.remember(target, model)
                assert step.initializer is not None
                carry_out(step.initializer, step.name, target, model, derived(generator, target), step.seeds)
            pending.refuse_unset(own, model)  # which setting a parametrized value may have set
        for target in involved:
            if target.kind == "buffer":
                pending.forget(target, model)
        return self

    def _work(self, model: nn.Module, present: list[Target], generator: AnyGenerator) -> Iterator[tuple[Step, Target]]:
        """Each step that does something with its target, found anew: a model may have changed since."""
        by_name = {claim.name: target for target in present for claim in target.claims}
        for step in self.steps:
            target = by_name.get(step.name)
            if target is None:
                raise ValueError(f"The model has no parameter {step.name!r}, which the plan speaks of.")
            found = tuple(target.tensor.shape), dtype_name(target.tensor)
            if found != (step.shape, step.dtype):
                raise ValueError(f"{step.name} was planned as {step.shape} {step.dtype} and is {found[0]} {found[1]}.")
            names = {claim.name for claim in target.claims}
            if names != {step.name, *step.tied}:
                raise ValueError(
                    f"{step.name} was planned as one tensor with {_names(step.tied)} and is one with "
                    f"{_names(sorted(names - {step.name}))}."
                )
            if target.parametrized and step.initializer and (blocking := unsettable(target, model)):
                raise ValueError(f"{step.name}: {NOT_SETTABLE.format(blocking)}")
            if step.initializer is not None:
                source = step.seeds[0] if step.seeds else _own(step) or generator
                if model is not self.model or isinstance(source, Stream):  # which may ask for what cannot be done
                    rehearse_step(step, target, source)
                yield step, target
        left = [name for name, target in by_name.items() if name not in self and target.kind == "parameter"]
        if left:
            raise ValueError(f"The model has parameters that the plan does not know: {', '.join(left)}.")


def prepare(plan: Plan, model: nn.Module, generator: AnyGenerator) -> tuple[list[tuple[Step, Target]], list[Target]]:
    """Each step that has something to do, with its target; and the buffers of which the plan says nothing."""
    reshard(model)
    found = targets(model, Options(plan.convention, plan.depthwise))
    found += other_buffers(model, found)
    work = list(plan._work(model, found, generator))
    check_generator(generator, torch.device("meta"))  # its type, also where nothing is drawn
    _refuse_unkeyed(work, generator)
    return work, [target for target in found if all(claim.name not in plan for claim in target.claims)]


def within_parametrized(work: list[tuple[Step, Target]], silent: list[Target]) -> tuple[list[Target], list[Target]]:
    """Those of the `silent` targets that belong to parametrizations of what is about to be set, and the others."""
    holders = [step.name.rpartition(".") for step, target in work if target.parametrized]
    inside = tuple(f"{path}{dot}parametrizations.{name}." for path, dot, name in holders)
    return (
        [target for target in silent if target.name.startswith(inside)],
        [target for target in silent if not target.name.startswith(inside)],
    )


def keyed(generator: AnyGenerator, seed: int | None, prefix: str) -> AnyGenerator:
    """The generator that `generator`, `seed` and `prefix` ask for."""
    if seed is not None:
        if generator is not None:
            raise ValueError(f"`seed` and `generator` exclude each other, got {seed!r} and {generator!r}.")
        generator = Key(seed)
    if not isinstance(prefix, str):
        raise TypeError(f"`prefix` must be a name such as 'encoder', got {prefix!r}.")
    if not prefix:
        return generator
    if not all(map(str.strip, prefix.split("."))):
        raise ValueError(f"`prefix` must be a name such as 'encoder' without empty parts, got {prefix!r}.")
    if not isinstance(generator, Key):
        raise ValueError(f"`prefix`={prefix!r} is for values that depend on names, so it needs `seed` or a Key.")
    prefix = without_wrappers(prefix)
    return generator.fold_in(prefix) if prefix else generator


def _refuse_unkeyed(work: list[tuple[Step, Target]], generator: AnyGenerator) -> None:
    """Raise if processes could not agree on values, or each would have to compute too large a matrix."""
    for step, target in work:
        assert step.initializer is not None
        if is_distributed(target.tensor) and not step.initializer.ours:
            raise ValueError(
                f"{step.name} is a DTensor, which {step.initializer} would fill wrongly; use ours instead."
            )
        if step.initializer.function is orthogonal_:
            most = step.initializer.arguments.get("max_elements", PARAMETERS[orthogonal_]["max_elements"])
            refuse_large(target.tensor, most, step.name)
        ours = step.initializer.ours  # nobody knows what another's draws
        drawn = (step.initializer.accepts("generator") or not ours) and not step.seeds
        keyed = isinstance(_own(step) or generator, Stream if ours else Key)
        distributed = is_distributed(target.tensor)
        if drawn and not keyed and (distributed or _in_process_group()):
            raise ValueError(
                f"{step.name} is {'a DTensor' if distributed else 'drawn in a process group'}: give `seed`, equal on "
                "each process, so that all agree on its values."
            )


def _in_process_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def derived(generator: AnyGenerator, target: Target) -> AnyGenerator:
    """A Key for one target, by its name; of a tied one by the first in the alphabet, whoever owns it first."""
    if not isinstance(generator, Key):
        return generator
    return _folded(generator, min(claim.canonical for claim in target.claims))


@functools.lru_cache(1024)
def _folded(key: Key, name: str) -> Key:
    """What `key.fold_in(name)` gives; the keys of modules, which their parameters share, are made once."""
    path, _, last = name.rpartition(".")
    return (_folded(key, path) if path else key).fold_in(last)


def _own(step: Step) -> AnyGenerator:
    """The generator that a step's initializer was given."""
    return step.initializer.arguments.get("generator") if step.initializer and step.initializer.ours else None


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none other"
