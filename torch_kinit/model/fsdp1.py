"""Initializing a model while FSDP1 wraps it, a layer at a time: before a layer is flattened, and after it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torch_kinit.model import pending
from torch_kinit.model.apply import plan
from torch_kinit.model.execute import carry_out
from torch_kinit.model.materialize import Device, allocate, target_device
from torch_kinit.model.plan import derived, keyed, prepare, within_parametrized
from torch_kinit.model.steps import Step
from torch_kinit.model.targets import Target, holder_of, parametrized_value
from torch_kinit.streams.key import Key
from torch_kinit.streams.stream import AnyGenerator


def param_init_fn(
    model: nn.Module,
    rules: Mapping[Any, Any] | None = None,
    *,
    seed: int,
    prefix: str = "",
    device: Device | None = None,
    convention: str = "keras-3.15",
    depthwise: bool = True,
    on_uncovered: str = "error",
) -> Callable[[nn.Module], None]:
    """What FullyShardedDataParallel takes as `param_init_fn`, to initialize a model on the meta device as it wraps it.

    Each process holds the whole of one wrapped unit at a time, and the values are those of `apply(model, rules,
    seed=seed)` in a single process, whatever the wrapping. Names are those before it. For FSDP2's fully_shard, see
    `materialize`.

    Args:
        model: the model, on the meta device, before it or a part of it is wrapped.
        rules, seed, prefix, convention, depthwise, on_uncovered: as for `apply`.
        device: where to put what is on the meta device; None for the accelerator, or the CPU where there is none.

    Raises:
        ValueError: a parameter that gets values is not on the meta device, a buffer is and no rule says what is to be
            in it, or `plan` refuses the model or the rules.

    Returns:
        A function of a module, which initializes what this module holds itself, children aside.

    Example:
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> initialize = param_init_fn(model, {nn.Linear: "he_normal"}, seed=0, device="cpu")
        >>> for module in model.modules():                            # as FullyShardedDataParallel does
        ...     initialize(module)
        >>> model[1].running_var
        tensor([1., 1., 1.])
    """
    where = _accelerator_or_cpu() if device is None else target_device(device)
    made = plan(model, rules, convention=convention, depthwise=depthwise, on_uncovered=on_uncovered)
    key = keyed(Key(seed), None, prefix)
    work, silent = prepare(made, model, key)
    own, others = within_parametrized(work, silent)
    pending.refuse_unset(others, model)
    _refuse_real(work)
    known, waiting = set(model.modules()), _by_holder([_Task(*each, key, model) for each in work], model)

    def initialize(module: nn.Module) -> None:
        if module not in known:
            raise ValueError(
                f"A {type(module).__name__} is no part of the model that kinit.param_init_fn was given: give it the "
                "whole model, with all wrappers but FSDP1's."
            )
        allocate([module], where)
        for attribute, task in waiting.pop(module, []):
            task.carry_out(module, attribute, where)
        pending.refuse_unset([target for target in own if target.claims[0].modules[0][1] is module], model)

    return initialize


class _Task:
    """What to do with one target, once: then nothing holds its tensor any more, which FSDP1 replaces."""

    def __init__(self, step: Step, target: Target, key: AnyGenerator, model: nn.Module) -> None:
        self.step, self.target, self.model = step, target, model
        self.source = derived(key, target)  # by names as they are now
        self.done = False

    def carry_out(self, holder: nn.Module, attribute: str, device: torch.device) -> None:
        """Set the target, which `holder` has under the name of `attribute`."""
        if self.done:
            return
        target, step = self.target, self.step
        if target.parametrized:
            chain: Any = holder.parametrizations[attribute]  # type: ignore[index]
            allocate(list(chain.modules()), device)
            target.tensor = parametrized_value(chain)
        else:
            target.tensor = getattr(holder, attribute)
        assert step.initializer is not None
        carry_out(step.initializer, step.name, target, self.model, self.source, step.seeds)
        pending.forget(target, self.model)
        self.done, target.tensor = True, torch.empty(0)


def _by_holder(tasks: list[_Task], model: nn.Module) -> dict[nn.Module, list[tuple[str, _Task]]]:
    """The tasks of each module, with the names under which it holds their tensors; a tied one's is that of several."""
    found: dict[nn.Module, list[tuple[str, _Task]]] = {}
    for task in tasks:
        for claim in task.target.claims:
            holder, attribute = holder_of(model, claim.name)
            found.setdefault(holder, []).append((attribute, task))
    return found


def _refuse_real(work: list[tuple[Step, Target]]) -> None:
    """Raise if a parameter has storage: FSDP1 asks for the values of what is on the meta device only."""
    real = [step.name for step, target in work if target.kind == "parameter" and not target.tensor.is_meta]
    if real:
        raise ValueError(
            f"`model` has parameters that are not on the meta device: {', '.join(real)}. For those FSDP1 does not call "
            "its `param_init_fn`; use kinit.apply(model, rules, seed=...) before it is wrapped."
        )


def _accelerator_or_cpu() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
