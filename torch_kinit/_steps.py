"""The decision for each tensor of a model: which initializer, in which of Keras' terms, and why."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torch_kinit import _checks
from torch_kinit._fans import fans_of
from torch_kinit._identifiers import recipe
from torch_kinit._initializers import resolve_fans
from torch_kinit._layouts import Variable
from torch_kinit._moments import Moments, moments
from torch_kinit._recipes import Recipe
from torch_kinit._rules import KERAS_DEFAULTS, Rule, Skip, TiedParameterError, UncoveredParameterError, Value
from torch_kinit._targets import Claim, Target, holder_of, unsettable

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
            **{"initializer": initializer, "moments": law},
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
        return cls(**{**plain, "initializer": initializer, "moments": law})


@dataclass(frozen=True)
class Decision:
    """What is to be done with a claim, and which rule says so; None for a claim of which nothing is said."""

    value: Value | None
    rule: str

    @property
    def explicit(self) -> bool:
        return self.value is not None and self.rule != _DEFAULT


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


@functools.cache
def _keras_default(name: str) -> Decision:
    return Decision(recipe(name), _DEFAULT)


def refuse_uncovered(found: list[Target], decisions: list[list[Decision]]) -> None:
    """Raise UncoveredParameterError, listing every parameter of which nothing is said."""
    bare = [t for t, made in zip(found, decisions, strict=True) if all(d.value is None for d in made)]
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
    if target.name.endswith(("_g", "_v", "_orig")) and target.claims[0].modules[0][1]._forward_pre_hooks:
        return (
            " (made by the old torch.nn.utils.weight_norm or spectral_norm; torch.nn.utils.parametrizations has others)"
        )
    return ""


def rehearse(value: Recipe, variable: Variable | None, target: Target, step: Step) -> None:
    """Raise what carrying the step out would."""
    try:
        _rehearse(value, variable, target)
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
                rehearsed[alike] = _rehearse(value, claim.variable, target)
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
        blocks=claim.variable.blocks if claim.variable and not _whole(value, claim.variable) else 1,
        moments=law,
        rule=decision.rule or "left alone (uncovered)",
        tied=tuple(other.name for other in target.claims[1:]),
        kind=target.kind,
    )


def _agreed(target: Target, decisions: list[Decision]) -> tuple[int, Decision]:
    """The first owner's decision; owners that skip yield, and one who says something else is an error."""
    decisions = [_voice(target, decisions, i) for i in range(len(decisions))]
    speaking = [i for i, d in enumerate(decisions) if d.value is not None]
    active = [i for i in speaking if not isinstance(decisions[i].value, Skip)]
    if not active:
        index = speaking[0] if speaking else 0
        return index, decisions[index]
    index = active[0]
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


def _voice(target: Target, decisions: list[Decision], index: int) -> Decision:
    """A claim's decision; where it is none of a rule's, that of the same owner under another of its paths."""
    owner = target.claims[index].modules[0][1]
    if not decisions[index].explicit:
        for claim, decision in zip(target.claims, decisions, strict=True):
            if decision.explicit and claim.modules[0][1] is owner:
                return decision
    return decisions[index]


def _whole(value: Recipe | None, variable: Variable | None) -> bool:
    """Whether an initializer gets the torch parameter itself instead of Keras' views of it."""
    return variable is None or value is None or not value.ours or "layout" in value.arguments


def _rehearse(
    value: Recipe, variable: Variable | None, target: Target
) -> tuple[tuple[int, int] | None, Moments | None]:
    """Run `value` on a meta copy of the tensor, so that wrong arguments raise now; the fans and law it will have."""
    tensor = target.tensor
    if not tensor.dtype.is_floating_point and target.kind == "buffer":
        if value != recipe("zeros"):
            raise ValueError(f"a counter of dtype {tensor.dtype} can only be 'zeros' or kinit.skip, not {value}.")
        return None, Moments(0.0, 0.0, 0.0, 0.0)
    _checks.tensor(tensor, "parameter")
    if not value.ours:
        return None, None
    with torch.inference_mode(False):  # in which views would not know what they are views of
        return _on_meta(value, variable, tensor)


def _on_meta(value: Recipe, variable: Variable | None, tensor: Tensor) -> tuple[tuple[int, int] | None, Moments | None]:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if _whole(value, variable):
        value(copy)
        shape, layout, given = tuple(copy.shape), value.arguments.get("layout", "torch"), None
        if layout == "torch" and len(shape) > 1:
            shape = (*shape[2:], shape[1], shape[0])
    else:
        assert variable is not None
        views = variable.views(copy)
        if any(view is not copy and view._base is not copy for view in views) or (
            sum(view.numel() for view in views) != copy.numel()
        ):
            raise ValueError("its layout must give views that hold each element of the tensor once")
        shape, given = tuple(views[0].shape), variable.fans
        for view in views:
            value(view, layout="keras", fans=given)
    fans = None
    if value.accepts("fans"):
        used = value.arguments.get("fans")
        fans = resolve_fans(used, shape) if used is not None else given or fans_of(shape, "keras")
    return fans, moments(value, shape, fans)


def carry_out(step: Step, target: Target, model: nn.Module, generator: torch.Generator | None) -> None:
    """Do what `step` says to its target, which `model` holds."""
    value, variable = step.initializer, target.claim(step.name).variable
    if value is None:
        return
    if not target.tensor.dtype.is_floating_point:
        target.tensor.zero_()
        return
    with torch.no_grad():
        tensor = target.tensor.clone() if target.parametrized else target.tensor
        if variable is None or _whole(value, variable):
            value(tensor, generator=generator)
        else:
            fans = variable.fans
            variable.fill(tensor, lambda view: value(view, layout="keras", fans=fans, generator=generator))
        if variable is not None and variable.zero_row is not None:
            tensor[variable.zero_row].zero_()
        if target.parametrized:
            holder, attribute = holder_of(model, step.name)
            with _drawing_from(generator, tensor.device):
                setattr(holder, attribute, tensor)


@contextmanager
def _drawing_from(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Let draws from torch's global generators (orthogonal's right_inverse makes some) come from `generator`."""
    if generator is None:
        yield
        return
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        torch.default_generator.manual_seed(seed)
        for there in devices:
            torch.get_device_module(there).manual_seed(seed)
        yield


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def dtype_name(tensor: Tensor) -> str:
    """A dtype's name as JSON has it, "float32"."""
    return str(tensor.dtype).removeprefix("torch.")
