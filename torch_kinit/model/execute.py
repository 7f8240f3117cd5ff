"""Carrying a plan out: one object, made ready from plan, model and source, for `Plan.apply` and for FSDP1."""

from __future__ import annotations

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
from torch_kinit.model.rehearse import exact_values, first_view, rehearse, wants_parameter
from torch_kinit.model.report import progress_bar
from torch_kinit.model.steps import Step, flattened_of
from torch_kinit.model.targets import Target, dtype_name, everything, refuse_unsettable
from torch_kinit.model.undo import SMALL, Undo
from torch_kinit.model.writing import global_generators_from, writing
from torch_kinit.shards import by_the_whole, is_distributed, put, reshard, zero_row
from torch_kinit.streams.generator import AnyGenerator, TorchSource, as_source
from torch_kinit.streams.key import Key
from torch_kinit.streams.laws import Constant, Law
from torch_kinit.streams.source import Source
from torch_kinit.torch_internals import WRAPPERS

if TYPE_CHECKING:
    from torch_kinit.model.plan import Plan


class Task:
    """What to do with one tensor of a model, all decided: `fill` does it."""

    def __init__(self, step: Step, recipe: Recipe, law: Law | None, target: Target, source: Source) -> None:
        self.step, self.recipe, self.law, self.target = step, recipe, law, target
        self.variable = next(claim.variable for claim in target.claims if claim.name == step.name)
        # A rule's own generator is used as it is; others by name, of a tied tensor the first in the alphabet.
        self.by_name = source.for_name(min(claim.canonical for claim in target.claims))
        own = recipe.arguments.get("generator") if recipe.ours else None
        self.source = self.by_name if own is None else as_source(own, target.tensor.device)

    @property
    def can_fail(self) -> bool:
        """Whether something that is not under this package's control runs: another's code, or LAPACK."""
        ours = self.recipe.ours and self.recipe.arguments.get("others") is None
        return not ours or self.target.parametrized or self.recipe.function is orthogonal_

    def carry_out(self, model: nn.Module) -> None:
        """Set the target, which `model` holds under the name of the step."""
        try:
            with writing(self.target, self.step.name, model, self.by_name) as tensor:
                self.fill(tensor)
        except Exception as error:
            error.add_note(f"This was raised while {self.step.name} was filled (rule {self.step.rule}).")
            raise

    def fill(self, tensor: Tensor) -> None:
        """Fill a tensor like the target's."""
        variable, drawn = self.variable, self.law is not None and self.law.drawn
        if not tensor.dtype.is_floating_point and self.recipe.ours:
            put(tensor, exact_values(self.recipe, tensor))
        elif isinstance(self.law, Constant):
            tensor.fill_(self.law.value)
        elif not self.recipe.ours and isinstance(self.source, Key):
            self._fill_natively(tensor, self.source)
        elif variable is None or wants_parameter(self.recipe):
            source = self.step.seeds[0] if self.step.seeds else self.source
            self._fill_view(tensor, self.recipe.arguments.get("layout", "torch"), source)
        elif drawn and isinstance(self.source, Key) and not self.step.seeds:
            self._fill_view(tensor, "torch", self.source)  # by the index in the whole tensor
        else:
            by_the_whole(self._fill_blocks)(tensor, variable)
        if variable is not None and variable.zero_row is not None:
            zero_row(tensor, variable.zero_row)

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
        elif self.recipe.ours:
            self.recipe.without_generator()(view, layout=layout, fans=fans, generator=source.argument)
        else:
            self.recipe(view, generator=source.argument)

    def _fill_natively(self, tensor: Tensor, key: Key) -> None:
        """Let another's initializer draw from torch's generators, seeded by `key`, in row-major order."""
        made = tensor.contiguous()  # torch's draws depend on strides
        given = self.recipe.accepts("generator")
        generator = torch.Generator("cpu" if tensor.is_meta else tensor.device).manual_seed(key.native_seed)
        with global_generators_from(key.for_block(0) if given else key, tensor.device):  # some draw from both
            self.recipe(made, generator=generator)
        if made is not tensor:
            tensor.copy_(made)


class Execution:
    """A plan about to be carried out: making it refuses what can be refused; `run` then sets every tensor, or none."""

    def __init__(self, plan: Plan, model: nn.Module, source: Source, found: list[Target] | None = None) -> None:
        """`found` is all that the model has to initialize; None to look, since it may have changed since planned."""
        if found is None:
            reshard(model)
            found = everything(model, plan.options)
        self.model, self.source = model, source
        self.tasks = list(_tasks(plan, model, found, source))
        _refuse_unkeyed(self.tasks)
        silent = [target for target in found if all(claim.name not in plan for claim in target.claims)]
        # Buffers of which the plan says nothing; setting a parametrized tensor may set those inside.
        holders = [task.step.name.rpartition(".") for task in self.tasks if task.target.parametrized]
        inside = tuple(f"{path}{dot}parametrizations.{name}." for path, dot, name in holders)
        self.set_inside = [target for target in silent if target.name.startswith(inside)]
        self.untouched = [target for target in silent if not target.name.startswith(inside)]

    def run(self, progress: bool) -> None:
        """Set every tensor, behind a bar if `progress` asks for one."""
        checks.boolean("progress", progress)
        involved = [*(task.target for task in self.tasks), *self.set_inside, *self.untouched]
        pending.refuse_meta(involved)
        pending.refuse_unset(self.untouched, self.model)
        tasks, last_that_can_fail = self._in_safe_order()
        with Undo([task.source.argument for task in tasks] + [self.source.argument]) as undo:
            for i, task in enumerate(progress_bar(tasks) if progress else tasks):
                if i <= last_that_can_fail:
                    undo.remember(task.target, self.model)
                task.carry_out(self.model)
                if i == last_that_can_fail:
                    pending.refuse_unset(self.set_inside, self.model)
        for target in involved:
            if target.kind == "buffer":
                pending.forget(target, self.model)

    def _in_safe_order(self) -> tuple[list[Task], int]:
        """The tasks, and the place of the last that can fail: up to there what is overwritten must be kept.

        Those that can fail go first where the order does not matter: to sources without state, and to nobody's code.
        Small models are kept whole.
        """
        tasks = list(self.tasks)
        if sum(task.target.tensor.numel() for task in tasks) <= SMALL:
            return tasks, len(tasks) - 1
        if all(task.recipe.ours and not isinstance(task.source, TorchSource) for task in tasks):
            tasks.sort(key=lambda task: not task.can_fail)
        return tasks, max((i for i, task in enumerate(tasks) if task.can_fail), default=-1)


def _tasks(plan: Plan, model: nn.Module, present: list[Target], source: Source) -> Iterator[Task]:
    """A task for each step that does something with its target, found anew: a model may have changed since."""
    by_name = {claim.name: target for target in present for claim in target.claims}
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
            task = Task(step, step.initializer, step.law, target, source)
            refuse_unsettable(target, model)
            if model is not plan.model:
                _, task.law = rehearse(step.initializer, task.variable, target)
            _refuse_source(task)
        yield task
    if left := [name for name, target in by_name.items() if name not in plan and target.kind == "parameter"]:
        raise ValueError(f"The model has parameters that the plan does not know: {checks.listed(left)}.")


def _refuse_source(task: Task) -> None:
    """Raise if the source of a task cannot do what is asked of it; a Key can all."""
    recipe, tensor = task.recipe, task.target.tensor
    source = task.step.seeds[0] if task.step.seeds else task.source
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
        agreed = isinstance(task.source, Key) or (recipe.ours and not isinstance(task.source, TorchSource))
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
