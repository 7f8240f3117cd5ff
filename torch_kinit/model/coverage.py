"""Parameters of which nothing is said: an error that groups them and proposes a rule that harms no network."""

from __future__ import annotations

from collections.abc import Sequence

from torch_kinit import checks, torch_internals
from torch_kinit.model.grouping import Group, grouped
from torch_kinit.model.pruned import pruning_hooks
from torch_kinit.model.rules import UncoveredParameterError
from torch_kinit.model.targets import Target
from torch_kinit.shards import is_distributed

_SCALES = ("weight", "gamma", "scale", "g")  # what norms call the factor that starts from one
_ONE_MORE = ("gemma", "1p", "zerocenter")  # in the names of norms that add one to their weight
_ROOM, _EXAMPLES, _LONGEST = 750, 3, 110  # characters for the list; rules in the advice, and characters of a key there


def refuse_uncovered(found: Sequence[Target]) -> None:
    """Raise UncoveredParameterError, listing by pattern every parameter of which nothing is said."""
    bare = [target for target in found if not [c for c in target.claims if c.decision.value is not None]]
    if not bare:
        return
    groups = grouped(bare, (claim.canonical for target in found for claim in target.claims))
    lines = checks.bounded([f"  {group}" for group in groups], _ROOM)
    old = next(filter(None, map(_old_norm_hint, bare)), "")
    advice = (
        f"Add a rule for each, such as {_example(groups)}; kinit.register_layout teaches a whole class; "
        "on_uncovered='keep' leaves them all as they are."
    )
    raise UncoveredParameterError("\n".join(["Neither Keras nor a rule says how to initialize:", *lines, advice + old]))


def _example(groups: Sequence[Group]) -> str:
    """A rule dict for the first of the groups."""
    entries = [f"{group.key}: {_proposal(group.targets[0])}" for group in groups if len(group.key) < _LONGEST]
    more = ", ..." if len(entries) > _EXAMPLES else ""
    return f"{{{', '.join(entries[:_EXAMPLES])}{more}}}"


def _proposal(target: Target) -> str:
    """A value for a parameter that no network suffers from: what its author or any norm starts from, or `skip`."""
    last, layer = target.name.rpartition(".")[2], target.claims[0].layer.lower()
    if last in _SCALES and "norm" in layer and target.tensor.ndim < 2:
        if _is_zero(target):  # a norm that adds one
            return "'zeros'"
        return "kinit.skip" if any(mark in layer for mark in _ONE_MORE) else "'ones'"
    return "'zeros'" if last in ("bias", "beta") else "kinit.skip"


def _is_zero(target: Target) -> bool:
    """Whether a parameter holds zeros alone, as far as this process can say."""
    tensor = target.tensor.detach()
    if tensor.is_meta or is_distributed(tensor) or not tensor.numel():
        return False
    return not bool(tensor.any())


def _old_norm_hint(target: Target) -> str:
    """A sentence on pruning, or on torch's old weight_norm and spectral_norm, if one of them made the parameter."""
    old, module = target.name.endswith(("_g", "_v", "_orig")), target.claims[0].modules[0].module
    if not old or not torch_internals.forward_pre_hooks(module):
        return ""
    name = checks.cut(target.name, 70)
    if pruning_hooks(module):
        return f" {name} is pruned by torch.nn.utils.prune: a rule for this name sets it, and the mask stays."
    news = "torch.nn.utils.parametrizations has others"
    return f" {name} is of the old torch.nn.utils.weight_norm or spectral_norm; {news}."
