"""Initializing a model while FSDP1 wraps it, a layer at a time: before a layer is flattened, and after it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from torch_kinit import checks
from torch_kinit.model import pending
from torch_kinit.model.apply import plan
from torch_kinit.model.execute import Execution, Task, source_of
from torch_kinit.model.materialize import Device, allocate, target_device
from torch_kinit.model.parametrized import settle, weight_path
from torch_kinit.model.pruned import mask_again
from torch_kinit.model.targets import chain_of, holder_of, parametrized_value
from torch_kinit.streams.key import Key


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
        >>> import torch
        >>> from torch import nn
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> initialize = param_init_fn(model, {nn.Linear: "he_normal"}, seed=0, device="cpu")
        >>> for module in model.modules():                            # as FullyShardedDataParallel does
        ...     initialize(module)
        >>> model[1].running_var
        tensor([1., 1., 1.])
    """
    if device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = found or "cpu"
    where = target_device(device)
    made = plan(model, rules, convention=convention, depthwise=depthwise, on_uncovered=on_uncovered)
    execution = Execution(made, model, source_of(Key(seed), None, prefix))  # by names as they are now
    pending.refuse_unset([*execution.untouched, *execution.uncovered], model)
    if real := [t.step.name for t in execution.tasks if t.target.kind == "parameter" and not t.target.tensor.is_meta]:
        raise ValueError(
            f"`model` has parameters that are not on the meta device: {checks.listed(real)}. For those FSDP1 does not "
            "call its `param_init_fn`; use kinit.apply(model, rules, seed=...) before it is wrapped."
        )
    known = set(model.modules())
    waiting: dict[nn.Module, list[tuple[str, Task]]] = {}
    for task in execution.tasks:
        for claim in task.target.claims:
            holder, attribute = holder_of(model, claim.name)
            waiting.setdefault(holder, []).append((attribute, task))
    done: set[int] = set()  # tied tensors have several holders
    unsettled = {path: _made_of(path, execution) for path in execution.vectors}

    def initialize(module: nn.Module) -> None:
        if module not in known:
            raise ValueError(
                f"A {type(module).__name__} is no part of the model that kinit.param_init_fn was given: give it the "
                "whole model, with all wrappers but FSDP1's."
            )
        allocate([module], where)
        for attribute, task in waiting.pop(module, []):
            if id(task) not in done:
                done.add(id(task))
                _carry_out(task, module, attribute, where, model)
        for path in [path for path, parts in unsettled.items() if parts <= done]:
            settle(path, [task.step.name for task in execution.vectors[path]], model)
            del unsettled[path]
        mask_again(module)
        inside = [target for target in execution.set_inside if target.claims[0].modules[0].module is module]
        pending.refuse_unset(inside, model)

    return initialize


def _made_of(path: str, execution: Execution) -> set[int]:
    """The tasks, by their identity, that must be done before spectral_norm's vectors can fit the weight."""
    weight = weight_path(path)
    weights = [task for task in execution.tasks if any(claim.name == weight for claim in task.target.claims)]
    return {id(task) for task in (*weights, *execution.vectors[path])}


def _carry_out(task: Task, holder: nn.Module, attribute: str, device: torch.device, model: nn.Module) -> None:
    """Set a task's target, which `holder` has under the name of `attribute`; then let go of it: FSDP1 replaces it."""
    target = task.target
    if target.parametrized:
        chain = chain_of(holder, attribute)
        allocate(list(chain.modules()), device)
        target.tensor = parametrized_value(chain)
    else:
        target.tensor = getattr(holder, attribute)
    task.carry_out(model)
    pending.forget(target, model)
    target.tensor = torch.empty(0)
