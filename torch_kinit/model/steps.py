"""The decision for each tensor of a model: which initializer, in which of Keras' terms, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torch_kinit import checks
from torch_kinit.initializers.recipe import OURS, Recipe
from torch_kinit.model.matching import answers
from torch_kinit.model.parametrized import law_behind, names_of, vectors_of
from torch_kinit.model.pending import awaits
from torch_kinit.model.rehearse import Rehearsals, rehearse_once, wants_parameter
from torch_kinit.model.rules import UNDECIDED, Decision, Rule, TiedParameterError, keras_default, skip
from torch_kinit.model.targets import Claim, Target, dtype_name, extra_states, refuse_unsettable, stored_names
from torch_kinit.streams.keras_seed import KerasSeed
from torch_kinit.streams.laws import Law, law_from_dict

Only = Iterable[str] | Callable[[str], bool] | None
UNCOVERED = "left alone (uncovered)"


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
        flattened: the (channels, *spatial) that the layer's inputs are flattened from, as `flattened` said; or None.
        parametrizations: what the values pass through before the layer uses them, by the names of torch's functions
            or of a user's classes: ("weight_norm",). "pruning" stands for torch.nn.utils.prune, and "power_iteration"
            for what makes spectral_norm's vectors fit the weight. Where they change the values, `law` is None.

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
    flattened: tuple[int, ...] | None = None
    parametrizations: tuple[str, ...] = ()

    @property
    def std(self) -> float | None:
        """The standard deviation of the values by the law; None where it is not known."""
        return self.law.std if self.law else None

    @property
    def becomes(self) -> str:
        """What the tensor ends as, in words: "he_normal", "he_normal, then spectral_norm" or "(left alone)"."""
        if self.initializer is None:
            return "(left alone)"
        return ", then ".join((str(self.initializer), *self.parametrizations))

    @property
    def told_fans(self) -> str:
        """The fans with the number of blocks, as "3 x (12, 12)"; "-" for an initializer without."""
        packed = f"{self.blocks} x " if self.blocks > 1 else ""
        return "-" if self.fans is None else f"{packed}({self.fans[0]}, {self.fans[1]})"

    def __str__(self) -> str:
        """What it does in one line, as "weight, the kernel of Linear: glorot_uniform, fans (3, 8), std 0.4264"."""
        names = " = ".join((self.name, *self.tied))
        what = f"the {self.role} of {self.layer}" if self.role else f"of {self.layer}"
        facts = [self.becomes]
        if self.fans:
            facts.append(f"fans {self.told_fans}")
        if self.std is not None:
            facts.append(f"std {self.std:.4g}")
        if self.seeds:
            facts.append(f"Keras seed {', '.join(str(seed.seed) for seed in self.seeds)}")
        return f"{names}, {what}, {self.shape} {self.dtype}: {', '.join(facts)}; rule: {self.rule}"

    def to_dict(self) -> dict[str, Any]:
        """The step as plain data that JSON can hold; see `Plan.to_dict`."""
        with checks.context(self.name):
            initializer = self.initializer and self.initializer.to_dict()
        newer = ("flattened", "parametrizations")  # which 0.3.0 and 0.4.0 cannot read
        values = {name: v for name, v in vars(self).items() if name not in newer or v}
        return {
            **{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()},
            "initializer": initializer,
            "law": self.law and self.law.to_dict(),
            "seeds": [[seed.seed, seed.backend] for seed in self.seeds],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Step:
        """The step that `to_dict` wrote, in 0.2 too, which had moments for the law."""
        plain = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items() if name != "moments"}
        initializer = data["initializer"] and Recipe.from_dict(data["initializer"])
        law = data.get("law") and law_from_dict(data["law"])
        seeds = tuple(KerasSeed(seed, backend) for seed, backend in data.get("seeds", ()))
        return cls(**plain | {"initializer": initializer, "law": law, "seeds": seeds})

    def __reduce__(self) -> tuple[Any, ...]:
        made = self.initializer  # ours by name, since they may move to another file
        named = made and (made.function.__name__ if made.ours else made.function, dict(made.arguments))
        return Step._restored, ({**vars(self), "initializer": named, "law": self.law and self.law.to_dict()},)

    @classmethod
    def _restored(cls, values: dict[str, Any]) -> Step:
        function, arguments = values["initializer"] or (None, {})
        made = function and Recipe(OURS.get(function, function), arguments)
        return cls(**{**values, "initializer": made, "law": values["law"] and law_from_dict(values["law"])})


def decide(rules: Sequence[Rule], found: Sequence[Target], model: nn.Module) -> None:
    """Give each claim Keras' default, or what the last rule that speaks of it says; each rule must say something."""
    claims = [claim for target in found for claim in target.claims]
    said = answers(rules, claims, model)
    for i, claim in enumerate(claims):
        own = claim.variable
        claim.decision = said.get(i) or (keras_default(own.role, own.default, own.origin) if own else UNDECIDED)


def restrict(found: list[Target], only: Any, model: nn.Module) -> None:
    """Leave alone each tensor that has a name outside `only`, which is a list of names or a function of a name."""
    if callable(only) and not isinstance(only, (type, nn.Module)):
        chosen = [[bool(only(claim.canonical)) for claim in target.claims] for target in found]
        if not any(map(any, chosen)):
            chosen = [[bool(only(claim.name)) for claim in target.claims] for target in found]
    else:
        chosen = _chosen_from(_names(only), found, model)
    _choose_vectors(chosen, found, model)
    for target, each in zip(found, chosen, strict=True):
        if not all(each) and (target.has_step() or awaits(target, model)):
            lacking = [claim.canonical for claim, has in zip(target.claims, each, strict=True) if not has]
            rule = f"left alone (only= lacks {', '.join(lacking)})" if any(each) else "left alone (only=)"
            for claim in target.claims:
                claim.decision = Decision(skip, rule)


def _chosen_from(names: set[str], found: list[Target], model: nn.Module) -> list[list[bool]]:
    """For each target, which of its claims have one of the names."""
    known = [[stored_names(claim, target, model) for claim in target.claims] for target in found]
    every = {name for stored in known for each in stored for name in each}
    if unknown := sorted(names - every - extra_states(model)):
        hint = checks.near(unknown[0], every)
        listed = checks.listed(map(repr, unknown))
        raise ValueError(f"`only` has {listed}, which no parameter or buffer of the model is called.{hint}")
    return [[not names.isdisjoint(each) for each in stored] for stored in known]


def _choose_vectors(chosen: list[list[bool]], found: list[Target], model: nn.Module) -> None:
    """Choose all vectors of a spectral_norm whose weight is chosen, or one of them."""
    places = {id(target.tensor): i for i, target in enumerate(found)}
    for target, each in zip(found, chosen, strict=True):
        vectors = [places[id(vector)] for vector in vectors_of(target, model)]
        if vectors and any(map(all, [each, *(chosen[i] for i in vectors)])):
            for i in vectors:
                chosen[i] = [True] * len(chosen[i])


def _names(only: Any) -> set[str]:
    if isinstance(only, (str, Tensor, nn.Module)) or not isinstance(only, Iterable):
        kind = type(only).__name__
        raise TypeError(
            f"`only` must be a list of names or a function of a name, got {checks.short(only)} of type {kind}."
        )
    names = list(only)
    if strangers := [name for name in names if not isinstance(name, str)]:
        raise TypeError(f"`only` must hold names, which are strings, got one of type {type(strangers[0]).__name__}.")
    return set(names)


def make_step(target: Target, model: nn.Module, rehearsals: Rehearsals) -> Step:
    """The step for a target, once the claims to it agree. `rehearsals` keeps what was found out of alike tensors."""
    claim, tensor = _deciding(target.claims), target.tensor
    target.claims.sort(key=lambda other: other is not claim)  # the first may have said skip, or have nothing to say
    decision, variable = claim.decision, claim.variable
    value = decision.value if isinstance(decision.value, Recipe) else None
    fans, law, passed = None, None, names_of(target, model)
    if value is not None:
        with checks.context(f"{checks.cut(claim.name)} (rule {decision.rule})"):
            fans, law = rehearse_once(value, variable, target, rehearsals)
            refuse_unsettable(target, model)
        law = law_behind(law, passed, value, tensor.ndim) if passed else law
    return Step(
        name=claim.name,
        layer=claim.layer,
        role=claim.role,
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor),
        initializer=value,
        fans=fans,
        blocks=variable.blocks if variable and value and not wants_parameter(value) else 1,
        law=law,
        rule=decision.rule or UNCOVERED,
        tied=tuple(other.name for other in target.claims[1:]),
        kind=target.kind,
        flattened=variable.flattened if variable else None,
        parametrizations=passed,
    )


def flattened_of(target: Target, name: str) -> tuple[int, ...] | None:
    """What the inputs of the layer are flattened from that holds the target under this name."""
    claim = next(claim for claim in target.claims if claim.name == name)
    return claim.variable.flattened if claim.variable else None


def _deciding(claims: list[Claim]) -> Claim:
    """The claim that all follow: those that skip yield to it, and rules that differ are an error.

    It is an embedding's, or else one of which a rule speaks, or else the first in the alphabet, so that it does not
    matter in which order they are registered; of those with equal laws the first one.
    """
    if len(claims) == 1:
        return claims[0]
    for claim in claims:  # what a rule says of an owner under one of its paths holds under the others
        if not claim.decision.explicit:
            owner = claim.modules[0].module
            explicit = (c.decision for c in claims if c.decision.explicit and c.modules[0].module is owner)
            claim.decision = next(explicit, claim.decision)
    active = [claim for claim in claims if isinstance(claim.decision.value, Recipe)]
    if not active:
        return next((claim for claim in claims if claim.decision.value is not None), claims[0])

    def rank(claim: Claim) -> Any:
        return claim.role != "embeddings", not claim.decision.explicit, claim.canonical

    def law(claim: Claim) -> Any:
        return claim.decision.value, claim.variable and dataclasses.replace(claim.variable, tensor="")

    wanted = law(min(active, key=rank))
    first = next(claim for claim in active if law(claim) == wanted)
    value = first.decision.value
    for claim in active:
        other = claim.decision
        if other is not first.decision and other.explicit and other.value != value:
            raise TiedParameterError(_tied_message(first, claim))
    return first


def _tied_message(first: Claim, other: Claim) -> str:
    """What two owners of one tensor get that do not agree, and the ways out."""
    one, two = checks.cut(first.name), checks.cut(other.name)
    given, wanted = checks.cut(str(first.decision.value)), checks.cut(str(other.decision.value))
    way_out = "Give both the same"
    if not first.decision.explicit:
        way_out = f"No rule speaks of {one}, of {first.layer}: add one, {{{checks.short(first.name)}: ...}}, to agree"
    return (
        f"{one} and {two} are one tensor, but {one} gets {given} ({first.decision.rule}) and {two} gets {wanted} "
        f"({other.decision.rule}). {way_out}, or let one yield with {{{checks.short(other.name)}: kinit.skip}} as the "
        "last rule."
    )
