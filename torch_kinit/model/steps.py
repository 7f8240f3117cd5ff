"""The decision for each tensor of a model: which initializer, in which of Keras' terms, and why."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torch_kinit.initializers.moments import Moments
from torch_kinit.initializers.names import recipe
from torch_kinit.initializers.recipe import Recipe
from torch_kinit.model.execute import rehearse, whole
from torch_kinit.model.rules import KERAS_DEFAULTS, Rule, Skip, TiedParameterError, UncoveredParameterError, Value, skip
from torch_kinit.model.targets import Claim, Target, unsettable
from torch_kinit.streams.keras_seed import KerasSeed
from torch_kinit.streams.stream import AnyGenerator

_DEFAULT = "Keras default"
NOT_SETTABLE = (
    "its parametrization {} has no right_inverse, so its value cannot be set; "
    "skip it, or initialize what it is made from."
)


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
        moments: the mean, std, least and greatest that its values have by the law; None where not known.
        rule: where the decision comes from.
        kind: "parameter" or "buffer".
        seeds: for the very numbers of a Keras model, the `KerasSeed` of each block; empty otherwise.
    """

    name: str
    layer: str
    role: str | None
    shape: tuple[int, ...]
    dtype: str
    initializer: Recipe | None
    fans: tuple[int, int] | None
    blocks: int
    moments: Moments | None
    rule: str
    tied: tuple[str, ...] = ()
    kind: str = "parameter"
    seeds: tuple[KerasSeed, ...] = ()

    @property
    def std(self) -> float | None:
        """The standard deviation of the values by the law; None where it is not known."""
        return self.moments.std if self.moments else None

    def to_dict(self) -> dict[str, Any]:
        """The step as plain data that JSON can hold; see `Plan.to_dict`."""
        try:
            initializer = self.initializer and self.initializer.to_dict()
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        law = self.moments and [None if math.isinf(x) else x for x in self.moments]  # JSON has no infinity
        return {
            **{name: _listed(getattr(self, name)) for name in self.__dataclass_fields__},
            **{"initializer": initializer, "moments": law, "seeds": [[s.seed, s.backend] for s in self.seeds]},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Step:
        """The step that `to_dict` wrote."""
        law = data["moments"]
        if law is not None:
            mean, std, low, high = law
            law = Moments(mean, std, -math.inf if low is None else low, math.inf if high is None else high)
        initializer = data["initializer"] and Recipe.from_dict(data["initializer"])
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        seeds = tuple(KerasSeed(seed, backend) for seed, backend in data.get("seeds", ()))
        return cls(**{**plain, "initializer": initializer, "moments": law, "seeds": seeds})


@dataclass(frozen=True)
class Decision:
    """What is to be done with a claim, and which rule says so; None for a claim of which nothing is said."""

    value: Value | None
    rule: str

    @property
    def explicit(self) -> bool:
        return self.value is not None and self.rule != _DEFAULT


def left_alone(target: Target, chosen: Iterable[bool]) -> Decision:
    """The decision for a tensor whose names `only` has not, or not all."""
    lacking = [claim.canonical for claim, has in zip(target.claims, chosen, strict=True) if not has]
    some = len(lacking) < len(target.claims)
    return Decision(skip, f"left alone (only= lacks {', '.join(lacking)})" if some else "left alone (only=)")


def decide(claim: Claim, rules: Iterable[Rule]) -> Decision:
    """Keras' default for a claim, or what the last rule that speaks of it says."""
    decision = Decision(None, "")
    if claim.variable:
        name = claim.variable.default or KERAS_DEFAULTS.get(claim.variable.role)
        if name:
            decision = _keras_default(name)
    for rule in rules:
        value = rule.value_for(claim)
        if value is not None:
            decision = Decision(value, rule.label)
    return decision


def decide_buffers(found: list[Target], rules: list[Rule]) -> list[list[Decision]]:
    """What rules say of buffers that no layout speaks of, once `decide` has been through all other claims."""
    unused = [not rule.matched for rule in rules]
    decisions = []
    for target in found:
        made = [Decision(None, "")] * len(target.claims)
        for rule, free in zip(rules, unused, strict=True):
            values = [rule.value_for_buffer(claim, free) for claim in target.claims]
            made = [d if v is None else Decision(v, rule.label) for d, v in zip(made, values, strict=True)]
        decisions.append(made)
    return decisions


@functools.cache
def _keras_default(name: str) -> Decision:
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
    if target.name.endswith(("_g", "_v", "_orig")) and target.claims[0].modules[0].module._forward_pre_hooks:
        return (
            " (made by the old torch.nn.utils.weight_norm or spectral_norm; torch.nn.utils.parametrizations has others)"
        )
    return ""


def rehearse_step(step: Step, target: Target, generator: AnyGenerator) -> None:
    """Raise what carrying the step out would."""
    if step.initializer is None:
        return
    try:
        rehearse(step.initializer, target.claim(step.name).variable, target, generator)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{step.name} (rule {step.rule}): {error}") from None


Rehearsed = dict[Any, tuple[tuple[int, int] | None, Moments | None]]


def make_step(target: Target, decisions: list[Decision], model: nn.Module, rehearsed: Rehearsed) -> Step:
    """The step for a target, once the claims to it agree. `rehearsed` keeps what was found out of alike tensors."""
    index, decision = _agreed(target, decisions)
    if index:  # the first owner has said skip, or has nothing to say
        target.claims.insert(0, target.claims.pop(index))
    claim, tensor = target.claims[0], target.tensor
    value = None if isinstance(decision.value, Skip) else decision.value
    fans, law = None, None
    if value is not None:
        try:
            alike = (
                value,
                claim.variable,
                tensor.shape,
                tensor.stride(),
                tensor.dtype,
                type(tensor),
                tensor.device,
                tensor.is_inference(),
            )
            if alike not in rehearsed:
                rehearsed[alike] = rehearse(value, claim.variable, target)
            fans, law = rehearsed[alike]
            if target.parametrized and (blocking := unsettable(target, model)):
                raise ValueError(NOT_SETTABLE.format(blocking))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{claim.name} (rule {decision.rule}): {error}") from None
    return Step(
        name=claim.name,
        layer=claim.layer,
        role=claim.role,
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor),
        initializer=value,
        fans=fans,
        blocks=claim.variable.blocks if claim.variable and not whole(value, claim.variable) else 1,
        moments=law,
        rule=decision.rule or "left alone (uncovered)",
        tied=tuple(other.name for other in target.claims[1:]),
        kind=target.kind,
    )


def _agreed(target: Target, decisions: list[Decision]) -> tuple[int, Decision]:
    """What the owners agree on, and whose it is; owners that skip yield, and rules that differ are an error."""
    if len(decisions) == 1:
        return 0, decisions[0]
    decisions = [_voice(target, decisions, i) for i in range(len(decisions))]
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


def _voice(target: Target, decisions: list[Decision], index: int) -> Decision:
    """A claim's decision; where it is none of a rule's, that of the same owner under another of its paths."""
    owner = target.claims[index].modules[0].module
    if not decisions[index].explicit:
        for claim, decision in zip(target.claims, decisions, strict=True):
            if decision.explicit and claim.modules[0].module is owner:
                return decision
    return decisions[index]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def dtype_name(tensor: Tensor) -> str:
    """A dtype's name as JSON has it, "float32"."""
    return str(tensor.dtype).removeprefix("torch.")
