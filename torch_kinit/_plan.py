"""Which initializer each parameter of a model gets, decided first and carried out second."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torch_kinit import _checks, _report
from torch_kinit._filling import carry_out
from torch_kinit._layouts import CONVENTIONS, Options
from torch_kinit._rules import parse_rules, refuse_unused
from torch_kinit._steps import (
    NOT_SETTABLE,
    Rehearsed,
    Step,
    decide,
    dtype_name,
    make_step,
    refuse_uncovered,
    rehearse_step,
)
from torch_kinit._targets import Target, targets, unsettable
from torch_kinit._undo import Undo
from torch_kinit.streams import AnyGenerator, Stream


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
            raise KeyError(f"The plan has no parameter {name!r}.{_checks.near(name, self._by_name)}")
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
        return _report.as_text(*_report.plan_table(self.steps))

    def _repr_html_(self) -> str:
        return _report.as_html(*_report.plan_table(self.steps))

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
        _checks.choice("convention", options.convention, CONVENTIONS)
        _checks.boolean("depthwise", options.depthwise)
        return cls(steps, *options)

    def apply(self, model: nn.Module | None = None, *, generator: AnyGenerator = None, progress: bool = False) -> Plan:
        """Carry the plan out, and return it.

        Args:
            model: another model with parameters of the same names, shapes and dtypes; None for the plan's own.
            generator: a torch.Generator on the parameters' device or the CPU; a `KerasSeed`, for every parameter the
                numbers of that seed, as of Keras layers whose initializers all have it; or None for torch's global
                ones. Parameters with seeds of their own (see `replay_keras`) draw from these instead.
            progress: show a bar over the parameters, if tqdm is installed.

        Raises:
            ValueError: the model is not the one planned for, or the generator does not fit. Nothing is changed then,
                nor when an initializer of somebody else's raises: values and random states are put back.
        """
        model = self.model if model is None else model
        if model is None:
            raise ValueError("This plan was read from data and has no model: pass one to `apply`.")
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module, got {model!r} of type {type(model).__name__}.")
        work = list(self._work(model, generator))
        _checks.generator(generator, torch.device("meta"))  # its type, also where nothing is drawn
        generators = {generator}
        for step, target in work:
            generators.add(_checks.generator(_own(step) or generator, target.tensor.device))
        risky = any(not step.initializer.ours or target.parametrized for step, target in work if step.initializer)
        native = [g for g in generators if isinstance(g, torch.Generator)]
        with Undo(native, enabled=risky) as undo:
            for step, target in _report.progress_bar(work) if progress else work:
                undo.remember(target, model)
                assert step.initializer is not None
                carry_out(step.initializer, step.name, target, model, generator, step.seeds)
        return self

    def _work(self, model: nn.Module, generator: AnyGenerator) -> Iterator[tuple[Step, Target]]:
        """Each step that does something with its target, found anew: a model may have changed since."""
        by_name = {c.name: t for t in targets(model, Options(self.convention, self.depthwise)) for c in t.claims}
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


def _own(step: Step) -> AnyGenerator:
    """The generator that a step's initializer was given."""
    return step.initializer.arguments.get("generator") if step.initializer and step.initializer.ours else None


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none other"


def plan(
    model: nn.Module,
    rules: Mapping[Any, Any] | None = None,
    *,
    convention: str = "keras-3.15",
    depthwise: bool = True,
    on_uncovered: str = "error",
) -> Plan:
    """Decide how each parameter of `model` is initialized: Keras' defaults, then `rules`. Draws and changes nothing.

    Args:
        model: any module, also on the meta device.
        rules: a dict from what to match to what to do; the last entry that matches wins, role by role.
            A key is a module class (isinstance); a glob over a parameter's qualified name or its module's path; or
            a compiled regex over the same, matching in full. A value is anything `get` takes: a Keras name or config,
            a function that fills a tensor, a number, an array; or `skip`; or a dict from roles (kernel,
            recurrent_kernel, depthwise_kernel, embeddings, bias, gamma, beta, alpha, moving_mean, moving_variance)
            to such values.
            A value by itself sets the parameter that is named or, for a class or a module's path, the layer's main
            weight; `skip` leaves the whole layer alone. Functions of this package see each variable in Keras' layout
            (unless a functools.partial says `layout="torch"`), all others the torch parameter. An array has the
            parameter's shape where that is named, and the shape of Keras' variable where a role is.
        convention: "keras-3.15", or "keras-3.14" for the attention fans of Keras up to 3.14 and of tf.keras.
        depthwise: whether a convolution with as many groups as input channels is Keras' DepthwiseConv; False
            takes it for Conv(groups=...), whose fans differ. For one layer a rule does: `partial(he_normal_,
            layout="torch")`.
        on_uncovered: "error", or "keep" to leave parameters alone that neither Keras' defaults nor a rule cover.

    Raises:
        UnusedRuleError: a rule or one of its roles matches nothing.
        UncoveredParameterError: nothing is said of a parameter, such as a raw nn.Parameter.
        TiedParameterError: two layers share a parameter for which rules say different things.
        ValueError, TypeError: a rule that means nothing, a lazy parameter, a parametrization that cannot be set.

    Example:
        >>> from torch import nn
        >>> p = plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2)), {nn.Conv2d: "he_normal", "1.bias": 0.1})
        >>> [(step.name, step.role, str(step.initializer)) for step in p]
        [('0.weight', 'kernel', 'he_normal'), ('0.bias', 'bias', 'zeros'), ('1.weight', 'kernel', 'glorot_uniform'), \
('1.bias', 'bias', 'constant(0.1)')]
        >>> p["0.weight"].fans
        (27, 72)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {model!r} of type {type(model).__name__}.")
    _checks.choice("convention", convention, CONVENTIONS)
    _checks.boolean("depthwise", depthwise)
    _checks.choice("on_uncovered", on_uncovered, ("error", "keep"))
    parsed = parse_rules(rules)
    found = targets(model, Options(convention, depthwise))
    decisions = [[decide(claim, parsed) for claim in target.claims] for target in found]
    refuse_unused(parsed, [claim for target in found for claim in target.claims], model)
    if on_uncovered == "error":
        refuse_uncovered(found, decisions)
    rehearsed: Rehearsed = {}
    steps = tuple(make_step(target, made, model, rehearsed) for target, made in zip(found, decisions, strict=True))
    return Plan(steps, convention, depthwise, model)


def apply(
    model: nn.Module,
    rules: Mapping[Any, Any] | None = None,
    *,
    generator: AnyGenerator = None,
    convention: str = "keras-3.15",
    depthwise: bool = True,
    on_uncovered: str = "error",
    progress: bool = False,
) -> Plan:
    """Initialize `model`: Keras' defaults for every layer, then `rules`.

    This is `plan(model, rules, ...).apply(generator=..., progress=...)`; see both for the arguments and errors.
    LSTM's default bias is Keras' unit_forget_bias; a rule for its bias replaces it whole. The row of an embedding's
    padding_idx is zeroed again, and running statistics start anew. After an error nothing is changed.

    Returns:
        The plan that was carried out.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> g = torch.Generator().manual_seed(0)
        >>> done = apply(model, {nn.Linear: "he_normal", "2": {"bias": 0.5}}, generator=g)
        >>> model[2].bias
        Parameter containing:
        tensor([0.5000, 0.5000], requires_grad=True)
        >>> done["2.bias"].rule
        "'2'"
    """
    made = plan(model, rules, convention=convention, depthwise=depthwise, on_uncovered=on_uncovered)
    return made.apply(generator=generator, progress=progress)
