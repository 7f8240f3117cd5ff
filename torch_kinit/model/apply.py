"""`plan` and `apply`: which initializer each parameter of a model gets, decided first and carried out second."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.layers.variable import Options
from torch_kinit.model.coverage import refuse_uncovered
from torch_kinit.model.execute import Execution, source_of
from torch_kinit.model.parametrized import decide_vectors
from torch_kinit.model.plan import Plan
from torch_kinit.model.rehearse import Rehearsals
from torch_kinit.model.rules import parse_rules
from torch_kinit.model.steps import Only, decide, make_step, restrict
from torch_kinit.model.targets import Target, everything
from torch_kinit.shards import reshard
from torch_kinit.streams.generator import AnyGenerator


def plan(
    model: nn.Module,
    rules: Mapping[Any, Any] | None = None,
    *,
    only: Only = None,
    convention: str = "keras-3.15",
    depthwise: bool = True,
    on_uncovered: str = "error",
) -> Plan:
    """Decide how each parameter of `model` is initialized: Keras' defaults, then `rules`. Draws and changes nothing.

    Args:
        model: any module, also on the meta device.
        rules: a dict from what to match to what to do; the last entry that matches wins, role by role.
            A key is a module class (isinstance), or a tuple of them; a glob over a parameter's qualified name or its
            module's path; a compiled regex over the same, matching in full; or a role of all layers, such as "kernel",
            where nothing at the top of the model has this name. Names are those of the bare model, without what
            torch.compile, DataParallel, checkpointing and FSDP1 put into them; a key that fits none of these is one of
            the names with it. A value is anything `get` takes: a Keras name or config, "trunc_normal(std=0.02)", a
            function that fills a tensor, a number, an array; or `skip`; or a dict from roles (kernel, recurrent_kernel,
            depthwise_kernel, embeddings, bias, gamma, beta, alpha, moving_mean, moving_variance) to such values.
            A value by itself sets the parameter that is named or, for a class or a module's path, the layer's main
            weight; `skip` leaves the whole layer alone. Functions of this package see each variable in Keras' layout
            (unless a functools.partial says `layout="torch"`), all others the torch parameter. An array has the
            parameter's shape where that is named, and the shape of Keras' variable where a role is.
            A buffer that Keras has no name for, such as a rotary cache, is set by a number, an array or a function
            under a glob over its name that fits no parameter's, and left alone by `skip`.
            A glob or regex with a random law by itself that reaches gamma, beta, alpha or a bias warns: name the roles.
        only: the names of the parameters and buffers to initialize, as in the model or in the bare one, or a function
            that says whether a name is one of them; None for all. The others are left alone and need no rule. A tensor
            with several names is initialized if all of them are chosen, and a parametrized one if any of its originals
            is chosen. Buffers of which neither Keras nor a rule speaks stay as they are.
        convention: "keras-3.15", or "keras-3.14" for the attention fans of Keras up to 3.14 and of tf.keras.
        depthwise: whether a convolution with as many groups as input channels is Keras' DepthwiseConv; False takes it
            for Conv(groups=...), whose fans differ. For one layer write the rule `partial(he_normal_, layout="torch")`.
        on_uncovered: "error", or "keep" to leave parameters alone that neither Keras' defaults nor a rule cover.

    A tensor that several layers share gets the law of the embedding among them, as in Keras; if there is none, that of
    a rule for one of them, or else that of the first in the alphabet.

    Raises:
        UnusedRuleError: a rule or one of its roles matches nothing.
        UncoveredParameterError: nothing is said of a parameter, such as a raw nn.Parameter.
        TiedParameterError: two layers share a parameter for which rules say different things.
        ValueError, TypeError: a rule that means nothing, a lazy parameter, a parametrization that cannot be set.

    Example:
        >>> from torch import nn
        >>> p = plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 2)), {nn.Conv2d: "he_normal", "1.bias": 0.1})
        >>> [(step.name, step.role, str(step.initializer)) for step in p]
        [('0.weight', 'kernel', 'he_normal'), ('0.bias', 'bias', 'zeros'), ('1.weight', 'kernel', 'glorot_uniform'), \
('1.bias', 'bias', 'constant(0.1)')]
        >>> p["0.weight"].fans
        (27, 72)
    """
    checks.module(model)
    return _plan(model, rules, only, Options(convention, depthwise), on_uncovered)[0]


def _plan(
    model: nn.Module, rules: Mapping[Any, Any] | None, only: Only, options: Options, on_uncovered: str
) -> tuple[Plan, list[Target]]:
    """The plan, and all that the model has to initialize."""
    found = everything(model, options)
    checks.choice("on_uncovered", on_uncovered, ("error", "keep"))
    decide(parse_rules(rules), found, model)
    if [target for target in found if target.parametrized]:
        decide_vectors(found, model)
    if only is not None:
        restrict(found, only, model)
    planned = [target for target in found if target.has_step()]
    if on_uncovered == "error":
        refuse_uncovered(planned)
    rehearsals: Rehearsals = {}
    steps = tuple(make_step(target, model, rehearsals) for target in planned)
    return Plan(steps, options.convention, options.depthwise, model), found


def apply(
    model: nn.Module,
    rules: Mapping[Any, Any] | None = None,
    *,
    generator: AnyGenerator = None,
    seed: int | None = None,
    prefix: str = "",
    only: Only = None,
    convention: str = "keras-3.15",
    depthwise: bool = True,
    on_uncovered: str = "error",
    progress: bool = False,
) -> Plan:
    """Initialize `model`: Keras' defaults for every layer, then `rules`.

    This is `plan(model, rules, only=..., ...).apply(generator=..., seed=..., ...)`; see both for the arguments and
    errors. After loading a checkpoint with strict=False, `only=incompatible.missing_keys` initializes what it lacked.
    LSTM's default bias is Keras' unit_forget_bias; a rule for its bias replaces it whole. The row of an embedding's
    padding_idx is zeroed again, and running statistics start anew. A parametrized weight obeys its parametrization at
    once: the vectors of torch's spectral_norm are made anew, from the same source; a pruned one keeps its mask. A
    function that leaves the tensor as it was, or NaN in it, is an error. After an error nothing is changed.

    Returns:
        The plan that was carried out.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> g = torch.Generator().manual_seed(0)
        >>> done = apply(model, {nn.Linear: "he_normal", "2": {"bias": 0.5}}, generator=g)
        >>> model[2].bias
        Parameter containing:
        tensor([0.5000, 0.5000], requires_grad=True)
        >>> done["2.bias"].rule
        "'2'"
    """
    checks.module(model)
    reshard(model)
    made, found = _plan(model, rules, only, Options(convention, depthwise), on_uncovered)
    Execution(made, model, source_of(generator, seed, prefix), found).run(progress)
    return made
