"""Carrying a plan out: one object, made ready from plan, model and source, for `Plan.apply` and for FSDP1."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torch_kinit import checks
from torch_kinit.initializers.axes import in_layout
from torch_kinit.initializers.recipe import Recipe
from torch_kinit.initializers.structured import orthogonal_, refuse_large
from torch_kinit.layers.variable import Variable
from torch_kinit.model import pending
from torch_kinit.model.others import fill_by_other, refuse_leftover_nan
from torch_kinit.model.parametrized import (
    POWER_ITERATION,
    PRUNING,
    chain_path,
    refuse_nan_behind,
    settle,
    start_of,
    vectors_of,
)
from torch_kinit.model.progress import progress_bar
from torch_kinit.model.pruned import mask_again
from torch_kinit.model.rehearse import exact_values, first_view, rehearse, wants_parameter
from torch_kinit.model.steps import UNCOVERED, Step, flattened_of, make_step
from torch_kinit.model.targets import Target, dtype_name, everything, refuse_unsettable
from torch_kinit.model.undo import SMALL, Undo
from torch_kinit.model.writing import writing
from torch_kinit.shards import by_the_whole, is_distributed, put, reshard, zero_row
from torch_kinit.streams.generator import AnyGenerator, TorchSource, as_source
from torch_kinit.streams.joint import draw_together, joins
from torch_kinit.streams.key import Key
from torch_kinit.streams.laws import Constant, Law
from torch_kinit.streams.source import Source
from torch_kinit.torch_internals import WRAPPERS

if TYPE_CHECKING:
    from torch_kinit.model.plan import Plan


class Task:
    """What to do with one tensor of a model, all decided: `fill` does it."""

    def __init__(self, step: Step, recipe: Recipe, law: Law | None, target: Target, source: Source) -> None:
        self.step, self.recipe, self.law, self.target, self._source = step, recipe, law, target, source
        self.variable = next(claim.variable for claim in target.claims if claim.name == step.name)
        own = recipe.arguments.get("generator") if recipe.ours else None
        self.own = None if own is None else as_source(own, target.tensor.device)
        self.given = self.own or source

    @functools.cached_property
    def by_name(self) -> Source:
        """The plan's source for the target's name; of a tied tensor it is the first in the alphabet."""
        return self._source.for_name(min([claim.canonical for claim in self.target.claims]))

    @property
    def source(self) -> Source:
        """What draws: a rule's own generator, as it is, or the plan's source by name, of the same type."""
        return self.own or self.by_name

    @property
    def starts_power_iteration(self) -> bool:
        """Whether the target is a vector of spectral_norm that is made to fit the weight, once that is set."""
        return POWER_ITERATION in self.step.parametrizations

    @property
    def can_fail(self) -> bool:
        """Whether something that is not under this package's control runs: another's code, or LAPACK."""
        passes = self.target.parametrized or self.starts_power_iteration
        return self._runs_others or passes or self.recipe.function is orthogonal_

    @property
    def _runs_others(self) -> bool:
        return not self.recipe.ours or self.recipe.arguments.get("others") is not None

    @property
    def _place(self) -> str:
        return f"{checks.cut(self.step.name)} (rule {checks.cut(self.step.rule)})"

    def carry_out(self, model: nn.Module, before: Tensor | None = None) -> None:
        """Set the target, which `model` holds under the name of the step; `before` has a copy of its values, if any."""
        try:
            with writing(self.target, self.step.name, model, self.by_name) as tensor:
                self.fill(tensor, before)
                parameter = self.target.kind == "parameter"
                if self._runs_others and (parameter or pending.is_noted(self.target, model)):
                    refuse_leftover_nan(self.recipe, tensor, self._place)
        except Exception as error:
            error.add_note(f"This was raised while {self.step.name} was filled (rule {self.step.rule}).")
            raise

    def fill(self, tensor: Tensor, before: Tensor | None = None) -> None:
        """Fill a tensor like the target's, of whose values `before` may be a copy."""
        variable, drawn = self.variable, self.law is not None and self.law.drawn
        if not tensor.dtype.is_floating_point and self.recipe.ours:
            put(tensor, exact_values(self.recipe, tensor))
        elif isinstance(self.law, Constant):
            tensor.fill_(self.law.value)
        elif not self.recipe.ours:
            source = self.step.seeds[0] if self.step.seeds else self.source
            fill_by_other(self.recipe, tensor, source, self._place, before)
        elif variable is None or wants_parameter(self.recipe):
            source = self.step.seeds[0] if self.step.seeds else self.source
            self._fill_view(tensor, self.recipe.arguments.get("layout", "torch"), source)
        elif drawn and isinstance(self.source, Key) and not self.step.seeds:
            self._fill_view(tensor, "torch", self.source)  # by the index in the whole tensor
        else:
            by_the_whole(self._fill_blocks)(tensor, variable)
        self.finish(tensor)

    def finish(self, tensor: Tensor) -> None:
        """Zero the row that stays zero, if there is one."""
        if self.variable is not None and self.variable.zero_row is not None:
            zero_row(tensor, self.variable.zero_row)

    def joining(self) -> tuple[Tensor, Key, Law] | None:
        """What `draw_together` takes to fill the target; None if it is to be filled by itself."""
        tensor, law = self.target.tensor, self.law
        if law is None or not isinstance(self.given, Key) or self.step.seeds:
            return None
        if self.target.parametrized or self.starts_power_iteration:  # which must have its values before the others
            return None
        if not joins(tensor, law) or not isinstance(key := self.own or self.by_name, Key):
            return None
        return in_layout(tensor.detach(), self.recipe.arguments.get("layout", "torch"), key.layout), key, law

    def _fill_blocks(self, tensor: Tensor, variable: Variable) -> Tensor:
        """Fill each variable of Keras' that a tensor packs, or is a row of, from a source of its own."""
        sources: Iterator[Source] = iter(self.step.seeds or map(self.source.for_block, itertools.count()))

        def fill_view(view: Tensor) -> None:
            source = next(sources)
            if variable.row is not None:
                index, rows = variable.row
                source = source.for_row(index * view.numel(), rows * view.numel())
            # A law is drawn value by value into the view; other initializers need the variable's own shape.
            whole = view if self.law is not None and self.law.drawn else variable.as_in_keras(view)
            self._fill_view(whole, "keras", source, variable.fans)
            if whole is not view:
                view.copy_(whole.view(view.shape))

        variable.fill(tensor, fill_view)
        return tensor

    def _fill_view(self, view: Tensor, layout: str, source: Source, fans: tuple[int, int] | None = None) -> None:
        if self.law is not None and self.law.drawn:
            source.draw(in_layout(view, layout, source.layout), self.law)
        else:
            self.recipe.without_generator()(view, layout=layout, fans=fans, generator=source.argument)


Waiting = list[tuple[Task, tuple[Tensor, Key, Law]]]  # small draws of a Key, which take longer one by one


def _draw_waiting(waiting: Waiting) -> None:
    """Carry out what waits, together."""
    if not waiting:
        return
    draw_together([draw for _, draw in waiting])
    for task, _ in waiting:
        task.finish(task.target.tensor.detach())
    waiting.clear()


class Execution:
    """A plan about to be carried out: making it refuses what can be refused; `run` then sets every tensor, or none."""

    def __init__(self, plan: Plan, model: nn.Module, source: Source, found: list[Target] | None = None) -> None:
        """`found` is all that the model has to initialize; None to look, since it may have changed since planned."""
        if found is None:
            reshard(model)
            found = everything(model, plan.options)
        self.model, self.source = model, source
        self.parametrized = [target for target in found if target.parametrized]
        if self.parametrized:
            plan = _with_vectors(plan, found, model)
        self.tasks = list(_tasks(plan, model, found, source))
        _refuse_unkeyed(self.tasks)
        named = plan.names
        silent = [target for target in found if named.isdisjoint([claim.name for claim in target.claims])]
        # Buffers of which the plan says nothing; setting a parametrized tensor may set those inside.
        self.set_inside, self.untouched = list[Target](), silent
        if self.parametrized:
            holders = [task.step.name.rpartition(".") for task in self.tasks if task.target.parametrized]
            inside = tuple(f"{path}{dot}parametrizations.{name}." for path, dot, name in holders)
            self.set_inside = [target for target in silent if target.name.startswith(inside)]
            self.untouched = [target for target in silent if not target.name.startswith(inside)]
        left = {step.name: step.rule for step in plan.steps if step.initializer is None}
        bare = {name for name, rule in left.items() if rule == UNCOVERED}
        self.uncovered = [t for t in found if not bare.isdisjoint([c.name for c in t.claims])] if bare else []
        self._left = tuple(left)
        self.vectors: dict[str, list[Task]] = {}  # of spectral_norm, by the path of a parametrization
        for task in self.tasks if self.parametrized else ():
            if task.starts_power_iteration:
                self.vectors.setdefault(chain_path(task.step.name), []).append(task)

    def run(self, progress: bool) -> None:
        """Set every tensor, behind a bar if `progress` asks for one."""
        checks.boolean("progress", progress)
        involved = [*[task.target for task in self.tasks], *self.set_inside, *self.untouched]
        pending.refuse_meta(involved)
        pending.refuse_unset([*self.untouched, *(t for t in self.uncovered if not t.tensor.is_meta)], self.model)
        tasks, last_that_can_fail = self._in_safe_order()
        waiting: Waiting = []
        with Undo([task.given.argument for task in tasks] + [self.source.argument]) as undo:
            for i, task in enumerate(progress_bar(tasks) if progress else tasks):
                before = undo.remember(task.target, self.model) if i <= last_that_can_fail else None
                if draw := task.joining():
                    waiting.append((task, draw))
                else:
                    if task.can_fail:  # another's code may read what is drawn before it
                        _draw_waiting(waiting)
                    task.carry_out(self.model, before)
                if i == last_that_can_fail and self.parametrized:
                    self._complete_parametrized()
            _draw_waiting(waiting)
            if [task for task in tasks if PRUNING in task.step.parametrizations]:
                for module in self.model.modules():
                    mask_again(module)
        for target in involved if pending.has_notes(self.model) else ():
            pending.forget(target, self.model)

    def _complete_parametrized(self) -> None:
        """Make spectral_norm's vectors fit the new weights, and refuse parametrized weights that are no numbers."""
        for path, tasks in self.vectors.items():
            settle(path, [task.step.name for task in tasks], self.model)
        pending.refuse_unset(self.set_inside, self.model)
        for task in self.tasks:
            path, dot, name = task.step.name.rpartition(".")
            inside = f"{path}{dot}parametrizations.{name}."
            if task.target.parametrized and not any(left.startswith(inside) for left in self._left):
                refuse_nan_behind(task.step.name, task.step.parametrizations, self.model)

    def _in_safe_order(self) -> tuple[list[Task], int]:
        """The tasks, and the place of the last that can fail: up to there what is overwritten must be kept.

        Those that can fail go first where the order does not matter: to sources without state, and to nobody's code.
        Small models are kept whole.
        """
        tasks = list(self.tasks)
        if sum([task.target.tensor.numel() for task in tasks]) <= SMALL:
            return tasks, len(tasks) - 1
        if all(task.recipe.ours and not isinstance(task.given, TorchSource) for task in tasks):
            tasks.sort(key=lambda task: not task.can_fail)
        return tasks, max((i for i, task in enumerate(tasks) if task.can_fail), default=-1)


def _tasks(plan: Plan, model: nn.Module, present: list[Target], source: Source) -> Iterator[Task]:
    """A task for each step that does something with its target, found anew: a model may have changed since."""
    by_name = {claim.name: target for target in present for claim in target.claims}
    for_vectors = source if isinstance(source, Key) else _source_of_vectors(plan, source)
    for step in plan.steps:
        target = by_name.get(step.name)
        if target is None:
            raise ValueError(f"The model has no parameter {checks.short(step.name)}, which the plan speaks of.")
        shape, dtype = tuple(target.tensor.shape), dtype_name(target.tensor)
        if (shape, dtype) != (step.shape, step.dtype):
            raise ValueError(f"{step.name} was planned as {step.shape} {step.dtype} and is {shape} {dtype}.")
        names = {claim.name for claim in target.claims}
        if names != {step.name, *step.tied}:
            tied = [checks.listed(each) or "none other" for each in (step.tied, sorted(names - {step.name}))]
            raise ValueError(f"{step.name} was planned as one tensor with {tied[0]} and is one with {tied[1]}.")
        if (sizes := flattened_of(target, step.name)) != step.flattened:
            raise ValueError(f"{step.name} was planned with flattened={step.flattened}, and the model has {sizes}.")
        if step.initializer is None:
            continue
        with checks.context(f"{step.name} (rule {step.rule})"):
            start = POWER_ITERATION in step.parametrizations
            task = Task(step, step.initializer, step.law, target, for_vectors if start else source)
            refuse_unsettable(target, model)
            if model is not plan.model or step.parametrizations:  # whose law is that of what they end as
                _, task.law = rehearse(step.initializer, task.variable, target)
            _refuse_source(task)
        yield task
    if left := [name for name, target in by_name.items() if name not in plan.names and target.kind == "parameter"]:
        raise ValueError(f"The model has parameters that the plan does not know: {checks.listed(left)}.")


def _with_vectors(plan: Plan, found: list[Target], model: nn.Module) -> Plan:
    """The plan with steps for the vectors of each spectral_norm whose weight it sets: 0.4 made plans without."""
    buffers = {id(target.tensor): target for target in found if target.kind == "buffer"}
    set_now = {step.name for step in plan.steps if step.initializer is not None}
    added = []
    for weight in found:
        planned = [claim.name for claim in weight.claims if claim.name in set_now]
        for vector in vectors_of(weight, model) if planned else ():
            target = buffers[id(vector)]
            if all(claim.name not in plan.names for claim in target.claims):
                for claim in target.claims:
                    claim.decision = start_of(weight)
                added.append(make_step(target, model, {}))
    return dataclasses.replace(plan, steps=(*plan.steps, *added)) if added else plan


def _source_of_vectors(plan: Plan, source: Source) -> Source:
    """Where spectral_norm's start vectors come from.

    The numbers of a KerasSeed are those of Keras' variables, of which these are none; and where Keras' seeds decide
    the weights, nothing comes from torch's global state.
    """
    seeds = [seed for step in plan.steps for seed in step.seeds]
    if isinstance(source, TorchSource):
        return Key(seeds[0].native_seed) if seeds and source.argument is None else source
    return Key(source.native_seed)


def _refuse_source(task: Task) -> None:
    """Raise if the source of a task cannot do what is asked of it; a Key can all."""
    recipe, tensor = task.recipe, task.target.tensor
    source = task.step.seeds[0] if task.step.seeds else task.given
    if isinstance(source, TorchSource):
        as_source(source.generator, tensor.device)
    elif isinstance(source, Key):
        return
    elif recipe.ours and task.law is not None and task.law.drawn:
        source.refuse(task.law, tensor.dtype)
    elif recipe.accepts("generator"):
        if not recipe.ours:
            raise ValueError(f"{recipe} is none of Keras' initializers and cannot draw from {source}.")
        view, layout = first_view(recipe, task.variable, tensor)
        recipe(view, layout=layout, generator=source)


def _refuse_unkeyed(tasks: list[Task]) -> None:
    """Raise if processes could not agree on values, or each would have to compute too large a matrix."""
    in_group = torch.distributed.is_available() and torch.distributed.is_initialized()
    for task in tasks:
        name, recipe = task.step.name, task.recipe
        distributed = is_distributed(task.target.tensor)
        if distributed and not recipe.ours:
            raise ValueError(f"{name} is a DTensor, which {recipe} would fill wrongly; use ours instead.")
        if recipe.function is orthogonal_:
            refuse_large(task.target.tensor, recipe.settled["max_elements"], name)
        if not (distributed or in_group) or task.step.seeds:
            continue
        agreed = isinstance(task.given, Key) or (recipe.ours and not isinstance(task.given, TorchSource))
        if not agreed and (recipe.accepts("generator") or not recipe.ours):  # nobody knows what another's draws
            what = "a DTensor" if distributed else "drawn in a process group"
            raise ValueError(f"{name} is {what}: give `seed`, equal on each process, so that all agree on its values.")


def source_of(generator: AnyGenerator, seed: int | None, prefix: str) -> Source:
    """The source that the arguments `generator`, `seed` and `prefix` of `apply` ask for."""
    if seed is not None and generator is not None:
        raise ValueError(
            f"`seed` and `generator` exclude each other, got {checks.short(seed)} and {checks.short(generator)}."
        )
    # Devices are looked at tensor by tensor.
    source = as_source(generator if seed is None else Key(seed), torch.device("meta"))
    if not isinstance(prefix, str):
        raise TypeError(f"`prefix` must be a name such as 'encoder', got {checks.short(prefix)}.")
    if not prefix:
        return source
    if not all(map(str.strip, prefix.split("."))):
        raise ValueError(f"`prefix` must be a name such as 'encoder' without empty parts, got {checks.short(prefix)}.")
    if not isinstance(source, Key):
        raise ValueError(
            f"`prefix`={checks.short(prefix)} is for values that depend on names, so it needs `seed` or a Key."
        )
    bare = ".".join(part for part in prefix.split(".") if part not in WRAPPERS)
    return source.fold_in(bare) if bare else source
