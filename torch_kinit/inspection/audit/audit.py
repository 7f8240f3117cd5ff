"""Audit: whether each tensor of a model holds what its plan says, and if not, what it looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.plain import unit_forget_bias_
from torch_kinit.initializers.structured import orthogonal_
from torch_kinit.initializers.table import BY_FUNCTION
from torch_kinit.inspection.audit import verdicts
from torch_kinit.inspection.audit.bounds import TESTS
from torch_kinit.inspection.audit.report import BEYOND, EMPTY, LEFT, OFF, TRAINED, Audit, Finding
from torch_kinit.inspection.audit.structure import as_set, passes_through
from torch_kinit.model.apply import plan
from torch_kinit.model.execute import Execution, Task
from torch_kinit.model.plan import Plan
from torch_kinit.model.steps import Only, Step
from torch_kinit.model.targets import chain_of
from torch_kinit.streams.key import Key


def audit(
    model: nn.Module,
    rules: Mapping[Any, Any] | None = None,
    *,
    only: Only = None,
    convention: str = "keras-3.15",
    depthwise: bool = True,
    alpha: float = 1e-3,
) -> Audit:
    """Compare the values that a model holds now with what `plan(model, rules, ...)` says of them. Changes nothing.

    Random values are tested five times: none may be outside the support of the law in the tensor's dtype, and mean,
    std, extremes and distribution (Kolmogorov and Smirnov's distance) must be the law's. The bounds hold for any number
    of values (see Source), and together they let a rightly initialized model fail with a probability of at most
    `alpha`, whatever the number of its tensors. Values in half precision are compared with the law as the dtype rounds
    it.
    Constants, arrays and identities must be equal; orthogonal matrices have the planned singular values, each Keras
    variable for itself. Each of packed kernels is tested for itself too, a tied tensor once, and the row of a
    padding_idx must be zero and does not count. Weights behind weight_norm are tested as they take effect, those behind
    spectral_norm as they are before it divides them; what passes through another parametrization is "beyond", and so is
    what a function of somebody else's draws.

    What does not fit is compared with the usual mistakes: torch's default of the layer, swapped or packed fans and
    those of another convention of Keras', a truncation that is not corrected, gates that are orthogonal one by one, a
    forget bias that is missing or there twice, a factor, and each of Keras' initializers. The cause is the one that
    fits; at most two are named where several do. A tensor that fits its plan and one of these mistakes is "too small
    to tell". Statistics that have moved, or biases that no law explains, are told as "looks trained".

    Mean, std and extremes are those of all values, the distribution that of up to 65,536 evenly spaced ones of each
    variable. Nothing is copied to another device but a few hundred numbers a tensor. Of a DTensor each process tests
    its part, and all get the same report; orthogonal ones are gathered.

    Args:
        model: a module with values; not on meta.
        rules, only, convention, depthwise: as in `plan`.
        alpha: the probability, at most, of a false alarm in the whole audit.

    Returns:
        An `Audit`: `ok`; a `Finding` a tensor, by iteration and by name; text, HTML and `to_dict()`.

    Raises:
        ValueError, TypeError: as `plan`; the model is on meta; `alpha` is not between 0 and 1.

    Example:
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> model = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 64))
        >>> print(kinit.audit(model).to_text(78).splitlines()[-1])
        4 tensors: 4 off; a false alarm in one of 1,000 audits at most
        >>> kinit.apply(model, seed=0).audit().ok
        True

    Source: Massart, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality", 1990; Arbel, Marchal, Nguyen,
    "On strict sub-Gaussianity, optimal proxy variance and symmetry for bounded random variables", 2020; Chernoff's and
    Bernstein's inequalities; Wilks, "Determination of sample sizes for setting tolerance limits", 1941, for the range.
    """
    checks.module(model)
    return audit_plan(plan(model, rules, only=only, convention=convention, depthwise=depthwise), alpha=alpha)


def audit_plan(made: Plan, model: nn.Module | None = None, *, alpha: float = 1e-3) -> Audit:
    """The audit of a model by a plan; of the plan's own model if none is given."""
    chance = checks.number("alpha", alpha)
    if not 0 < chance < 1:
        raise ValueError(f"`alpha` must be more than 0 and less than 1, got {alpha!r}.")
    model = made.model if model is None else model
    if model is None:
        raise ValueError("This plan was read from data and has no model: pass one to `audit`.")
    checks.module(model)
    tasks = {task.step.name: task for task in Execution(made, model, Key(0)).tasks}
    for name, task in tasks.items():
        if task.target.tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values to audit; see `kinit.materialize`.")
    tasks = {name: as_set(task, model) for name, task in tasks.items()}
    drawn = [task for task in tasks.values() if task.law and task.law.drawn and not task.starts_power_iteration]
    tests = TESTS * sum(task.step.blocks for task in drawn)
    judge = verdicts.Judge(made.options, chance / max(1, tests))
    with torch.no_grad():
        findings = [_finding(step, tasks.get(step.name), judge, model) for step in made.steps]
    return Audit(tuple(_with_training(findings)), chance)


def _finding(step: Step, task: Task | None, judge: verdicts.Judge, model: nn.Module) -> Finding:
    """What there is to say of one step."""
    if task is None:
        return verdicts.said(step, LEFT, step.rule)
    if not task.target.tensor.numel():
        return verdicts.said(step, EMPTY)
    if task.starts_power_iteration:
        return verdicts.said(step, BEYOND, "spectral_norm's estimate, which follows the weight")
    changed = passes_through(chain_of(model, step.name)) if task.target.parametrized else ()
    if changed:
        return verdicts.said(step, BEYOND, f"passes through {', '.join(changed)}")
    if not task.recipe.ours:
        return verdicts.said(step, BEYOND, f"the law of {task.recipe} is not known")
    if task.recipe.function is orthogonal_:
        return judge.orthogonal(task)
    if not BY_FUNCTION[task.recipe.function].random or _is_forget_bias(task):
        return judge.exact(task)
    if task.law is None or not task.law.drawn:
        return verdicts.said(step, BEYOND, f"the law of {task.recipe} is not known")
    return judge.drawn(task)


def _is_forget_bias(task: Task) -> bool:
    """Whether it is an LSTM's bias without chance."""
    return task.recipe.function is unit_forget_bias_ and task.recipe.settled["others"] is None


def _with_training(findings: list[Finding]) -> list[Finding]:
    """Weights that nothing explains are trained ones where something else tells of training."""
    trained = next((found.name for found in findings if found.verdict == TRAINED), None)
    if trained is None:
        return [verdicts.explained(found) for found in findings]
    said = f"no usual law fits, and {trained} tells of training"
    return [
        verdicts.changed(found, TRAINED, said) if found.verdict == OFF and not found.cause else found
        for found in findings
    ]
