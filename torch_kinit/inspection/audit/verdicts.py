"""The verdict on one tensor, by what its plan asks for: drawn from a law, orthogonal, or given values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_kinit.initializers.plain import unit_forget_bias_
from torch_kinit.initializers.structured import orthogonal_
from torch_kinit.inspection.audit import structure
from torch_kinit.inspection.audit.bounds import (
    SHARES,
    Misfit,
    distance_bound,
    distance_from,
    edges_for,
    fits,
    misfits,
    moments_of,
)
from torch_kinit.inspection.audit.causes import Candidate, others, scaled, usual_mistakes
from torch_kinit.inspection.audit.evidence import Evidence, measure, nonzero
from torch_kinit.inspection.audit.report import OFF, OK, SMALL, TRAINED, Finding
from torch_kinit.layers.variable import Options
from torch_kinit.model.execute import Task
from torch_kinit.model.steps import Step
from torch_kinit.streams.laws import Constant, Law, Normal

_LARGE = 1 << 16  # as many values tell each usual mistake from its plan
_STATISTICS = ("moving_mean", "moving_variance", "num_batches_tracked")
_GATES = {3: "GRU", 4: "LSTM"}
_LAST_BITS = 16  # by how many the effective weight of weight_norm may be off
_MOST = 1 << 22  # values of a matrix that is tried for being orthogonal where it should not be


def said(step: Step, verdict: str, cause: str = "", **more: Any) -> Finding:
    """A finding of a step."""
    return Finding(step.name, step.layer, step.role, step.becomes, verdict, cause, tied=step.tied, **more)


def changed(found: Finding, verdict: str, cause: str) -> Finding:
    """A finding with another verdict."""
    return dataclasses.replace(found, verdict=verdict, cause=cause)


def explained(found: Finding) -> Finding:
    """A finding that says of what is off without a cause that none is known."""
    return changed(found, OFF, "no usual law fits") if found.verdict == OFF and not found.cause else found


class Judge:
    """Judges tensors, each test with the same probability of a false alarm."""

    def __init__(self, options: Options, chance: float) -> None:
        self.options, self.chance = options, chance
        self._mistakes: dict[Any, list[Candidate]] = {}

    # Values drawn from a law.

    def drawn(self, task: Task) -> Finding:
        """Whether each packed variable of a tensor has its law."""
        law, tensor, row = task.law, task.target.tensor, _padding(task)
        assert law is not None
        edges = edges_for(law, tensor.dtype)
        seen = measure(tensor, edges, blocks=task.step.blocks, without=row, center=_center(law))
        failed = [misfits(law, each, tensor.dtype, self.chance) for each in seen]
        worst = max(range(len(seen)), key=lambda i: max((misfit.excess for misfit in failed[i]), default=0.0))
        facts = self._facts(law, seen[worst], tensor.dtype, failed[worst])
        if row is not None and (wrong := nonzero(tensor, row)):
            return said(task.step, OFF, f"padding_idx's row {row} has {wrong} values that are not zero", **facts)
        if any(failed):
            blocks = [i for i, each in enumerate(failed) if each]
            return said(task.step, OFF, self._cause(task, seen, blocks), **facts)
        if rival := self._rival(task, seen):
            return said(task.step, SMALL, f"{rival.text}, as well as planned", **facts)
        return said(task.step, OK, **facts)

    def _facts(self, law: Law, seen: Evidence, dtype: torch.dtype, failed: Sequence[Misfit]) -> dict[str, Any]:
        moments = moments_of(law, dtype)
        measured = {"mean": seen.mean, "std": seen.std, "min": seen.low, "max": seen.high}
        expected = {"mean": moments.mean, "std": moments.std, "min": moments.low, "max": moments.high}
        if moments.std and not seen.broken:
            measured["law"] = distance_from(law, seen, dtype)
            expected["law"] = distance_bound(seen.sample, self.chance * SHARES["law"])
        tests = {misfit.test for misfit in failed}
        told = tuple(test for test in ("values", "std", "mean", "support", "law", "range") if test in tests)
        return {"measured": measured, "expected": expected, "failed": told}

    def _rival(self, task: Task, seen: Sequence[Evidence]) -> Candidate | None:
        """One of the usual mistakes that the values fit as well."""
        if min(each.count for each in seen) >= _LARGE or not task.step.std:
            return None
        step = task.step
        alike = step.layer, step.name.rpartition(".")[2], step.role, step.shape, step.dtype, step.initializer, step.fans
        if alike not in self._mistakes:
            self._mistakes[alike] = usual_mistakes(task, self.options)
        return next((each for each in self._mistakes[alike] if self._fits(each.law, seen, task)), None)

    def _fits(self, law: Law, seen: Sequence[Evidence], task: Task) -> bool:
        dtype = task.target.tensor.dtype
        try:
            return all(fits(law, each, dtype, self.chance) for each in seen)
        except ValueError:  # a law that the dtype cannot hold
            return False

    def _cause(self, task: Task, seen: Sequence[Evidence], blocks: Sequence[int]) -> str:
        """The laws that fit those of the variables that are off."""
        if any(each.broken for each in seen):
            return "NaN or infinite values"
        where = f"variables {', '.join(str(i + 1) for i in blocks)} of {len(seen)}: " if len(blocks) < len(seen) else ""
        again = self._closer(task, seen)
        off = [again[i] for i in blocks]
        for group in (usual_mistakes, others):
            if fitting := [each.text for each in group(task, self.options) if self._fits(each.law, off, task)]:
                return where + ", or ".join(fitting[:2])
        factor = _factor(task.law, off)
        if factor and task.law and (law := scaled(task.law, factor)) and self._fits(law, off, task):
            return f"{where}std is {factor:.2f} of the law's, whose shape it has"
        if all(each.low == each.high for each in off):
            return f"{where}all values are {off[0].low:.4g}"
        cause = "" if task.recipe.function is orthogonal_ else self._orthogonal_cause(task)
        return cause and where + cause

    def _closer(self, task: Task, seen: Sequence[Evidence]) -> list[Evidence]:
        """The same measured again, with edges where the values are."""
        mean = sum(each.mean for each in seen) / len(seen)
        std = max(each.std for each in seen)
        law, tensor = Normal(mean, std) if std else Normal(mean, 1.0), task.target.tensor
        row = _padding(task)
        return measure(tensor, edges_for(law, tensor.dtype), blocks=len(seen), without=row, center=_center(law))

    def _orthogonal_cause(self, task: Task) -> str:
        tensor = task.target.tensor
        if tensor.ndim < 2 or min(tensor.shape) < 2 or tensor.numel() > _MOST:
            return ""
        found = [structure.directions(matrix) for matrix in structure.matrices(task)]
        gains = {f"{each.gain:.3g}" for each in found if each.near(each.gain)}
        return f"looks orthogonal, gain {gains.pop()}" if len(gains) == 1 and len(found) else ""

    # Orthogonal matrices.

    def orthogonal(self, task: Task) -> Finding:
        """Whether each matrix has the planned singular values, and is no identity."""
        gain = abs(float(task.recipe.settled["gain"]))
        matrices = structure.matrices(task)
        found = [structure.directions(matrix) for matrix in matrices]
        wrong = [i for i, each in enumerate(found) if not each.near(gain) or structure.is_sparse(matrices[i])]
        each = found[wrong[0] if wrong else 0]
        worst = each.least if gain - each.least > each.greatest - gain else each.greatest
        facts: dict[str, Any] = {
            "measured": {"singular values": each.gain if not wrong else worst, "gain": each.gain},
            "expected": {"singular values": gain, "gain": gain},
        }
        if not wrong:
            return said(task.step, OK, **facts)
        cause = self._cause_of_matrices(task, matrices, found)
        return said(task.step, OFF, cause, failed=("singular values",), **facts)

    def _cause_of_matrices(self, task: Task, matrices: Sequence[Tensor], found: Sequence[structure.Directions]) -> str:
        if not all(math.isfinite(each.gain) for each in found):
            return "NaN or infinite values"
        if any(map(structure.is_sparse, matrices)):
            return "looks like an identity" if all(each.near(each.gain) for each in found) else "mostly zeros"
        for parts, kind in sorted(_GATES.items(), reverse=True):
            gates = [gate for matrix in matrices for gate in structure.gates(matrix, parts)]
            if kind in task.step.layer.upper() and gates and _orthogonal(gates):
                return "each gate is orthogonal by itself, not the packed kernel"  # which has then sqrt(gates) as gain
        if all(each.near(each.gain) for each in found):
            return f"orthogonal with gain {found[0].gain:.4g}"
        if len(matrices) > 1 and _orthogonal([torch.cat(list(matrices), 1)]):
            return "orthogonal as one packed matrix, not each variable by itself"
        whole = structure.gathered(task.target.tensor)
        if _orthogonal([whole.reshape(len(whole), -1)]):
            return "orthogonal as torch flattens it, not in Keras' layout"
        seen = measure(task.target.tensor, edges_for(task.law or Normal(0.0, 1.0), whole.dtype))
        return self._cause(task, seen, [0])

    # Given values.

    def exact(self, task: Task) -> Finding:
        """Whether values without chance are what they should be."""
        tensor, law = task.target.tensor, task.law
        slack = _LAST_BITS * torch.finfo(tensor.dtype).eps if task.target.parametrized else 0.0
        if isinstance(law, Constant) and tensor.is_floating_point() and not slack:
            return self._constant(task, law)
        wrong = structure.differing(tensor, structure.expected_of(task), slack)
        facts: dict[str, Any] = {"measured": {"values that differ": wrong}, "expected": {"values that differ": 0}}
        facts["failed"] = ("values that differ",) if wrong else ()
        if not wrong:
            return said(task.step, OK, **facts)
        if task.step.role in _STATISTICS:
            return said(task.step, TRAINED, f"{int(tensor.sum())} batches tracked", **facts)
        return self._unlike(task, facts)

    def _constant(self, task: Task, law: Constant) -> Finding:
        value, _ = law.support(task.target.tensor.dtype)
        seen = measure(task.target.tensor, edges_for(law, task.target.tensor.dtype))[0]
        facts: dict[str, Any] = {
            "measured": {"mean": seen.mean, "std": seen.std, "min": seen.low, "max": seen.high},
            "expected": {"mean": value, "std": 0.0, "min": value, "max": value},
        }
        if seen.low == seen.high == value:
            facts = {name: {"value": value, **each} for name, each in facts.items()}
            return said(task.step, OK, **facts)
        key = "std" if seen.low != seen.high else "mean"
        facts["failed"] = (key,)
        if task.step.role in _STATISTICS:
            return said(task.step, TRAINED, "running statistics have moved", **facts)
        return self._unlike(task, facts)

    def _unlike(self, task: Task, facts: dict[str, Any]) -> Finding:
        """A tensor that differs from values without chance: a known mistake, or training."""
        tensor = task.target.tensor
        if not tensor.is_floating_point():
            return said(task.step, OFF, "other values than planned", **facts)
        seen = measure(tensor, edges_for(Normal(0.0, 1.0), tensor.dtype))
        cause = self._cause_of_gates(task) or self._cause(task, seen, [0])
        moved = not cause and tensor.ndim == 1 and seen[0].count > 1
        return said(task.step, TRAINED if moved else OFF, "no longer constant" if moved else cause, **facts)

    def _cause_of_gates(self, task: Task) -> str:
        """What is wrong with the biases of an LSTM, whose gates are i, f, g, o in torch and in Keras."""
        tensor, second = task.target.tensor, task.step.role == "second_bias"
        forget = task.recipe.function is unit_forget_bias_
        if "LSTM" not in task.step.layer or not (forget or second) or len(tensor) % 4:
            return ""
        edges = edges_for(Normal(0.0, 1.0), tensor.dtype)
        seen = measure(tensor, edges, blocks=4)
        if any(each.low != each.high for each in seen):
            return ""
        values = [each.low for each in seen]
        if forget and values == [0.0] * 4:
            return "forget bias is missing: all zeros"
        if second and values == [0.0, 1.0, 0.0, 0.0]:
            return "a second forget bias of 1: the two add up to 2"
        if forget and sorted(values) == [0.0, 0.0, 0.0, 1.0]:
            return f"the 1 stands in block {values.index(1.0) + 1}, the forget gate is block 2 of i, f, g, o"
        return f"each gate has one value: {', '.join(f'{value:.4g}' for value in values)}"


def _padding(task: Task) -> int | None:
    """The row that stays zero."""
    return None if task.variable is None else task.variable.zero_row


def _center(law: Law) -> float:
    """Where to measure squares from: zero, but for laws that are far from it, of which float32 would lose digits."""
    return law.mean if abs(law.mean) > law.std else 0.0


def _factor(law: Law | None, seen: Sequence[Evidence]) -> float | None:
    """By what the values of all are larger than the law's: by their std, but for the last percent by their bounds."""
    if law is None or not law.std or not law.drawn:
        return None
    by_std = math.sqrt(sum(each.std**2 for each in seen) / len(seen)) / law.std
    low, high = law.bounds
    ends = [(each.low, low) for each in seen] + [(each.high, high) for each in seen]
    by_bounds = max((value / bound for value, bound in ends if bound and math.isfinite(bound)), default=0.0)
    return (by_bounds if abs(by_bounds - by_std) <= 0.02 * by_std else by_std) or None


def _orthogonal(matrices: Sequence[Tensor]) -> bool:
    found = [structure.directions(matrix) for matrix in matrices]
    return all(each.near(each.gain) and each.gain for each in found)
