"""What a weight passes through before its layer uses it: its parametrizations, and pruning.

torch's spectral_norm divides a weight by an estimate of its largest singular value. It keeps the estimate's vectors u
and v as buffers, which it made for the weight that was there before. They get start vectors with the weight, in steps
of their own, and once all weights are set, the power method brings them near the new weight's singular vectors.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from torch_kinit.initializers.plain import random_normal_
from torch_kinit.initializers.recipe import Recipe
from torch_kinit.initializers.structured import orthogonal_
from torch_kinit.model.pruned import ORIGINAL, is_pruned
from torch_kinit.model.rules import Decision
from torch_kinit.model.targets import Target, chain_of, holder_of, parametrized_value
from torch_kinit.shards import gathered, local_of, put
from torch_kinit.streams.laws import Law
from torch_kinit.torch_internals import is_intercepted, spectral_vectors

PRUNING, POWER_ITERATION = "pruning", "power_iteration"
_START = Recipe(random_normal_, {"std": 1.0})
# Of 100,000 random matrices of 2 x 2 to 64 x 64, the estimate is 0.945 of the largest singular value or more.
_ITERATIONS = 50


def names_of(target: Target, model: nn.Module) -> tuple[str, ...]:
    """What the values of a target pass through, in the order in which they do."""
    if target.parametrized:
        return tuple(map(_name, chain_of(model, target.name)))
    if target.kind == "buffer":
        drawn_by_default = any(claim.decision.value is _START for claim in target.claims)
        return (POWER_ITERATION,) if drawn_by_default else ()
    pruned = target.name.endswith(ORIGINAL) and is_pruned(*holder_of(model, target.name))
    return (PRUNING,) if pruned else ()


def _name(step: nn.Module) -> str:
    """The name of a parametrization's class; of one of torch's, that of the function which registers it."""
    name = type(step).__name__
    if type(step).__module__ != "torch.nn.utils.parametrizations":
        return name
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.lstrip("_")).lower()


def law_behind(law: Law | None, names: Iterable[str], value: Recipe, ndim: int) -> Law | None:
    """The law of values that were drawn from `law` and pass through `names`; None where these change them."""
    keeping = {PRUNING, "weight_norm"}  # of pruning, the law is that of the parameter which is pruned
    if value.function is orthogonal_ and ndim == 2 and value.settled["gain"] == 1:
        keeping.add("orthogonal")
    return law if keeping.issuperset(names) else None


def decide_vectors(found: list[Target], model: nn.Module) -> None:
    """Let spectral_norm's vectors be drawn, or left alone, with their weight, unless a rule speaks of them."""
    weights = [target for target in found if target.parametrized]
    buffers = {id(target.tensor): target for target in found if target.kind == "buffer"} if weights else {}
    for weight in weights:
        for vector in vectors_of(weight, model):
            decided = [claim.decision for claim in weight.claims if claim.decision.value is not None]
            drawn = any(isinstance(decision.value, Recipe) for decision in decided)
            for claim in buffers[id(vector)].claims if decided else ():
                if claim.decision.value is None:
                    claim.decision = start_of(weight) if drawn else decided[0]


def start_of(weight: Target) -> Decision:
    """How the vectors that spectral_norm keeps beside a weight begin."""
    return Decision(_START, f"spectral_norm of {weight.name.rpartition('.')[2]}")


def vectors_of(target: Target, model: nn.Module) -> list[Tensor]:
    """The vectors that spectral_norm keeps beside a weight."""
    chain = chain_of(model, target.name) if target.parametrized else ()
    return [vector for step in chain for vector in spectral_vectors(step).values()]


def settle(path: str, vectors: Iterable[str], model: nn.Module) -> None:
    """Bring the vectors of these names near the first singular vectors of the weight that the chain at `path` makes."""
    chosen = {id(getattr(*holder_of(model, name))) for name in vectors}
    parametrized_value(model.get_submodule(path), functools.partial(_iterate, chosen))


def _iterate(chosen: set[int], step: Any, weight: Tensor) -> None:
    """Run the power method, in float32 or what is wider; each process of a group does so on the whole weight."""
    kept = spectral_vectors(step)
    if not kept or weight.is_meta or weight.numel() == 0:
        return
    dtype = weight.dtype if weight.dtype.itemsize >= 4 else torch.float32
    matrix = gathered(weight).movedim(step.dim, 0).flatten(1).to(dtype).contiguous()  # whatever its memory format
    found = {"v": normalize(gathered(kept["v"]).to(dtype), dim=0, eps=step.eps)}
    with torch.autocast(matrix.device.type, enabled=False):
        for _ in range(_ITERATIONS):
            found["u"] = normalize(matrix @ found["v"], dim=0, eps=step.eps)
            found["v"] = normalize(matrix.mT @ found["u"], dim=0, eps=step.eps)
    for name, vector in kept.items():
        if id(vector) in chosen:
            put(vector, found[name])


def chain_path(vector: str) -> str:
    """The path of the parametrizations among which is the one that holds a buffer of this name."""
    return vector.rpartition(".")[0].rpartition(".")[0]


def weight_path(chain: str) -> str:
    """The name of the weight that the parametrizations at this path make."""
    holder, _, name = chain.rpartition(".")
    return holder.removesuffix("parametrizations") + name


def refuse_nan_behind(name: str, names: Sequence[str], model: nn.Module) -> None:
    """Raise if a weight holds NaN once it has passed through its parametrizations, of these names."""
    value = local_of(parametrized_value(chain_of(model, name)))
    if not (value.is_meta or is_intercepted()) and bool(value.isnan().any()):
        raise ValueError(
            f"{name} holds NaN once it has passed through {', then '.join(names)}. weight_norm and spectral_norm "
            "divide by a norm, which must not be zero: give it another initializer, or kinit.skip."
        )
