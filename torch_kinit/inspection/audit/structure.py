"""The structure of values that depend on each other: those that are given, and orthogonal matrices."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_kinit.initializers.axes import keras_view
from torch_kinit.inspection.audit.evidence import summed
from torch_kinit.model.execute import Task
from torch_kinit.model.rehearse import rehearse, wants_parameter
from torch_kinit.model.targets import chain_of, parametrized_value
from torch_kinit.shards import is_distributed, local_of
from torch_kinit.torch_internals import spectral_vectors

_PASSED = ("_WeightNorm",)  # parametrizations whose value is, but for the last bits, what was set


class Directions(NamedTuple):
    """Of a matrix: the singular values lie between `least` and `greatest`; `gain` is their root mean square."""

    gain: float
    least: float
    greatest: float
    slack: float  # what rounding may do to one
    tight: float  # and to their root mean square

    def near(self, gain: float) -> bool:
        """Whether all singular values are `gain`."""
        slack = self.slack * max(gain, 1e-30)
        held = gain - slack <= self.least and self.greatest <= gain + slack
        return held and abs(self.gain - gain) <= self.tight * gain


def expected_of(task: Task) -> Tensor:
    """What a task without chance gives its tensor, in a tensor like it."""
    made = torch.empty_like(task.target.tensor, requires_grad=False)
    with torch.no_grad():
        task.fill(made)
    return made


def differing(tensor: Tensor, expected: Tensor, slack: float = 0.0) -> int:
    """How many values differ by more than `slack` times the greater of one and the expected size."""
    mine, wanted = local_of(tensor.detach()), local_of(expected)
    wrong = mine != wanted  # NaN too
    if slack:
        wrong &= ((mine - wanted).abs() <= slack * wanted.abs().clamp(min=1)).logical_not()
    return int(summed(wrong.sum(), tensor))


def matrices(task: Task) -> list[Tensor]:
    """The matrices, one a Keras variable, that a task's orthogonal initializer fills; a DTensor is gathered."""
    whole, variable = gathered(task.target.tensor), task.variable
    if variable is None or wants_parameter(task.recipe):
        found = [keras_view(whole, task.recipe.arguments.get("layout", "torch"))]
    else:
        found = [variable.as_in_keras(view) for view in variable.views(whole)]
    return [flat_matrix(view) for view in found]


def gathered(tensor: Any) -> Tensor:
    """The whole of a DTensor, on each process; any other tensor itself."""
    whole: Tensor = tensor.detach()
    return whole.full_tensor() if is_distributed(tensor) else whole  # type: ignore[attr-defined]


def flat_matrix(view: Tensor) -> Tensor:
    """A kernel in Keras' layout as the matrix that is orthogonal."""
    return view.reshape(-1, view.shape[-1]) if view.ndim > 1 else view.reshape(1, -1)


def directions(matrix: Tensor) -> Directions:
    """Bounds of a matrix' singular values, from its Gram matrix by Gershgorin's circles; exact if it is orthogonal."""
    wide = matrix if matrix.dtype == torch.float64 else matrix.float()
    wide = wide.t() if wide.shape[0] < wide.shape[1] else wide
    gram = wide.t() @ wide
    diagonal = gram.diagonal()
    # The norm of what is off the diagonal bounds every eigenvalue's distance from it, less widely than a row's sum.
    off = torch.linalg.matrix_norm(gram - torch.diag(diagonal))
    least, greatest, mean, spread = torch.stack([diagonal.amin(), diagonal.amax(), diagonal.mean(), off]).tolist()
    length, size = max(matrix.shape), min(matrix.shape)
    unit, last = torch.finfo(matrix.dtype).eps, 16 * torch.finfo(wide.dtype).eps
    slack, tight = unit * math.sqrt(size) + last * math.sqrt(length * size), unit + last * math.sqrt(length)
    low, high = math.sqrt(max(0.0, least - spread)), math.sqrt(max(0.0, greatest + spread))
    return Directions(math.sqrt(max(mean, 0.0)), low, high, slack, tight)


def is_sparse(matrix: Tensor) -> bool:
    """Whether most values are zero, as of an identity, which is orthogonal and not random."""
    return min(matrix.shape) > 1 and bool((matrix == 0).sum() * 2 >= matrix.numel())


def passes_through(chain: Sequence[Any]) -> tuple[str, ...]:
    """The parametrizations behind which the values that were set cannot be told."""
    changing = (step for step in chain if type(step).__name__ not in _PASSED and not spectral_vectors(step))
    return tuple(type(step).__name__.lstrip("_") for step in changing)


def as_set(task: Task, model: nn.Module) -> Task:
    """The task for the values that were set, which spectral_norm keeps, and divides at each use."""
    chain = chain_of(model, task.step.name) if task.target.parametrized else ()
    if not any(map(spectral_vectors, chain)):
        return task
    behind = copy.copy(task)
    behind.target = dataclasses.replace(task.target, tensor=parametrized_value(chain, without=spectral_vectors))
    if task.recipe.ours:
        _, behind.law = rehearse(task.recipe, task.variable, behind.target)
        behind.step = dataclasses.replace(task.step, law=behind.law)
    return behind


def gates(matrix: Tensor, parts: int) -> list[Tensor]:
    """The matrices of the equal blocks of columns in a kernel in Keras' layout, where a recurrent one has its gates."""
    return list(matrix.chunk(parts, 1)) if matrix.shape[1] % parts == 0 else []
