"""The decision for each tensor of a model: which initializer, in which of Keras' terms, and why."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from torch_kinit import checks, torch_internals
from torch_kinit.initializers.names import recipe
from torch_kinit.initializers.recipe import Recipe
from torch_kinit.model.matching import answers
from torch_kinit.model.rehearse import Rehearsals, rehearse_once, wants_parameter
from torch_kinit.model.rules import (
    KERAS_DEFAULTS,
    Rule,
    Skip,
    TiedParameterError,
    UncoveredParameterError,
    Value,
    skip,
)
from torch_kinit.model.targets import Claim, Target, dtype_name, refuse_unsettable
from torch_kinit.streams.keras_seed import KerasSeed
from torch_kinit.streams.laws import Law, law_from_dict

_DEFAULT = "Keras default"


@dataclass(frozen=True)
class Step:
    """What a plan does to one parameter or buffer.

    Attributes:
        name: its qualified name; `tied` has the other names of the same tensor, `layer` its owner's class.
        role: what Keras calls it, or None.
        shape, dtype: those of the torch tensor, as a tuple of ints and a name such as "float32".
        initializer: a recipe that prints as its call, or None for a tensor that is left alone.
        fans: the (fan_in, fan_out) a scaled initializer uses; None for the others.
        blocks: how many variables of Keras' are packed in it, each drawn by itself.
        law: the law of its values, such as a `TruncatedNormal`, with `mean`, `std`, `pdf`, `cdf` and `support(dtype)`;
            None where it is not known.
        rule: where the decision comes from.
        kind: "parameter" or "buffer".
        seeds: for the very numbers of a Keras model, the `KerasSeed` of each block; empty otherwise.

    Example:
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> step = kinit.plan(nn.Linear(3, 8))["weight"]
        >>> step.role, str(step.initializer), step.fans, step.law
        ('kernel', 'glorot_uniform', (3, 8), Uniform(low=-0.7385489458759964, high=0.7385489458759964))
    """

    name: str
    layer: str
    role: str | None
    shape: tuple[int, ...]
    dtype: str
    initializer: Recipe | None
    fans: tuple[int, int] | None
    blocks: int
    law: Law | None
    rule: str
    tied: tuple[str, ...] = ()
    kind: str = "parameter"
    seeds: tuple[KerasSeed, ...] = ()

    @property
    def std(self) -> float | None:
        """The standard deviation of the values by the law; None where it is not known."""
        return self.law.std if self.law else None

    def to_dict(self) -> dict[str, Any]:
        """The step as plain data that JSON can hold; see `Plan.to_dict`."""
        with checks.context(self.name):
            initializer = self.initializer and self.initializer.to_dict()
        return {
            **{name: _listed(getattr(self, name)) for name in self.__dataclass_fields__},
            "initializer": initializer,
            "law": self.law and self.law.to_dict(),
            "seeds": [[seed.seed, seed.backend] for seed in self.seeds],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Step:
        """The step that `to_dict` wrote, in 0.2 too, which had moments for the law."""
        plain: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in data.items() if name != "moments"
        }
        initializer = data["initializer"] and Recipe.from_dict(data["initializer"])
        law = data.get("law") and law_from_dict(data["law"])
        seeds = tuple(KerasSeed(seed, backend) for seed, backend in data.get("seeds", ()))
        return cls(**plain | {"initializer": initializer, "law": law, "seeds": seeds})

    def __reduce__(self) -> tuple[Any, ...]:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        function = self.initializer and functools.partial(self.initializer.function, **self.initializer.arguments)
        return Step._restored, ({**values, "initializer": function, "law": self.law and self.law.to_dict()},)

    @classmethod
    def _restored(cls, values: dict[str, Any]) -> Step:
        initializer = values["initializer"] and Recipe(values["initializer"].func, values["initializer"].keywords)
        return cls(**{**values, "initializer": initializer, "law": values["law"] and law_from_dict(values["law"])})


@dataclass(frozen=True)
class Decision:
    """What is to be done with a claim, and which rule says so; None for a claim of which nothing is said."""

    value: Value | None
    rule: str

    @property
    def explicit(self) -> bool:
        return self.value is not None and self.rule != _DEFAULT


def decide(
    rules: Sequence[Rule], found: Sequence[Target], buffers: Sequence[Target], model: nn.Module
) -> list[tuple[Target, list[Decision]]]:
    """For each claim to a target Keras' default, or what the last rule that speaks of it says.

    Raises:
        UnusedRuleError: a rule that says nothing.
    """
    claims = [claim for target in found for claim in target.claims]
    of_buffers = [claim for target in buffers for claim in target.claims]
    said = answers(rules, claims, of_buffers, model)
    made = [_keras_default(claim) for claim in claims] + [Decision(None, "")] * len(of_buffers)
    for i, each in enumerate((*said.of_claims, *said.of_buffers)):
        for rule, words in each:
            if words.value is not None:
                made[i] = Decision(words.value, rule.label)
    remaining = iter(made)
    return [(target, [next(remaining) for _ in target.claims]) for target in (*found, *buffers)]


def is_spoken_of(target: Target, made: list[Decision]) -> bool:
    """Whether a plan has a step for a target."""
    return not target.optional or any(decision.value is not None for decision in made)


def left_alone(target: Target, chosen: Iterable[bool]) -> Decision:
    """The decision for a tensor whose names `only` has not, or not all."""
    lacking = [claim.canonical for claim, has in zip(target.claims, chosen, strict=True) if not has]
    some = len(lacking) < len(target.claims)
    return Decision(skip, f"left alone (only= lacks {', '.join(lacking)})" if some else "left alone (only=)")


def _keras_default(claim: Claim) -> Decision:
    if claim.variable is None:
        return Decision(None, "")
    name = claim.variable.default or KERAS_DEFAULTS.get(claim.variable.role)
    return _default_named(name) if name else Decision(None, "")


@functools.lru_cache(256)
def _default_named(name: str) -> Decision:
    return Decision(recipe(name), _DEFAULT)


def refuse_uncovered(decided: list[tuple[Target, list[Decision]]]) -> None:
    """Raise UncoveredParameterError, listing every parameter of which nothing is said."""
    bare = [target for target, made in decided if all(decision.value is None for decision in made)]
    if not bare:
        return
    lines = [f"  {t.name} {tuple(t.tensor.shape)} of {t.claims[0].layer}{_old_norm_hint(t)}" for t in bare]
    example = repr(bare[0].name)
    raise UncoveredParameterError(
        "\n".join(
            [
                "Neither Keras nor a rule says how to initialize:",
                *lines,
                f"Add a rule for each, such as {{{example}: 'zeros'}} or {{{example}: kinit.skip}}; register_layout "
                "teaches a whole class; on_uncovered='keep' leaves them all as they are.",
            ]
        )
    )


def _old_norm_hint(target: Target) -> str:
    if target.name.endswith(("_g", "_v", "_orig")) and (
        torch_internals.forward_pre_hooks(target.claims[0].modules[0].module)
    ):
        return (
            " (made by the old torch.nn.utils.weight_norm or spectral_norm; torch.nn.utils.parametrizations has others)"
        )
    return ""


def make_step(target: Target, decisions: list[Decision], model: nn.Module, rehearsals: Rehearsals) -> Step:
    """The step for a target, once the claims to it agree. `rehearsals` keeps what was found out of alike tensors."""
    index, decision = _agreed(target, decisions)
    if index:  # the first owner has said skip, or has nothing to say
        target.claims.insert(0, target.claims.pop(index))
    claim, tensor = target.claims[0], target.tensor
    value = None if isinstance(decision.value, Skip) else decision.value
    fans, law = None, None
    if value is not None:
        with checks.context(f"{claim.name} (rule {decision.rule})"):
            fans, law = rehearse_once(value, claim.variable, target, rehearsals)
            refuse_unsettable(target, model)
    return Step(
        name=claim.name,
        layer=claim.layer,
        role=claim.role,
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor),
        initializer=value,
        fans=fans,
        blocks=claim.variable.blocks if claim.variable and value and not wants_parameter(value, claim.variable) else 1,
        law=law,
        rule=decision.rule or "left alone (uncovered)",
        tied=tuple(other.name for other in target.claims[1:]),
        kind=target.kind,
    )


def _agreed(target: Target, decisions: list[Decision]) -> tuple[int, Decision]:
    """What the owners agree on, and whose it is; owners that skip yield, and rules that differ are an error."""
    if len(decisions) == 1:
        return 0, decisions[0]
    decisions = [_decision_of_owner(target, decisions, i) for i in range(len(decisions))]
    speaking = [i for i, d in enumerate(decisions) if d.value is not None]
    active = [i for i in speaking if not isinstance(decisions[i].value, Skip)]
    if not active:
        index = speaking[0] if speaking else 0
        return index, decisions[index]
    index = _deciding(target.claims, decisions, active)
    first = decisions[index]
    for claim, other in zip(target.claims, decisions, strict=True):
        if other is not first and other.explicit and not isinstance(other.value, Skip) and other.value != first.value:
            owner = target.claims[index].name
            raise TiedParameterError(
                f"{owner} and {claim.name} are one tensor, but {owner} gets {first.value} ({first.rule}) and "
                f"{claim.name} gets {other.value} ({other.rule}). Give both the same, or let one yield with "
                f"{{{claim.name!r}: kinit.skip}} as the last rule."
            )
    return index, first


def _deciding(claims: list[Claim], decisions: list[Decision], active: list[int]) -> int:
    """Whose law a tensor gets: an embedding's, or else that of an owner of whom a rule speaks, or else of the first in
    the alphabet, so that it does not matter in which order they are registered; of equal laws the first one's.
    """
    if len(active) == 1:
        return active[0]

    def law(i: int) -> Any:
        variable = claims[i].variable
        return decisions[i].value, variable and dataclasses.replace(variable, tensor="")

    def rank(i: int) -> Any:
        return claims[i].role != "embeddings", not decisions[i].explicit, claims[i].canonical

    chosen = law(min(active, key=rank))
    return next(i for i in active if law(i) == chosen)


def _decision_of_owner(target: Target, decisions: list[Decision], index: int) -> Decision:
    """A claim's decision; where it is none of a rule's, that of the same owner under another of its paths."""
    owner = target.claims[index].modules[0].module
    if not decisions[index].explicit:
        for claim, decision in zip(target.claims, decisions, strict=True):
            if decision.explicit and claim.modules[0].module is owner:
                return decision
    return decisions[index]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
