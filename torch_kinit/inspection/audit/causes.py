"""What else a tensor may have been initialized with: the usual mistakes, each a law or a structure with a name."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn

from torch_kinit.initializers.axes import fans as fans_of
from torch_kinit.initializers.axes import keras_shape
from torch_kinit.initializers.names import law as law_of
from torch_kinit.initializers.table import ROWS
from torch_kinit.layers.table import layout_of
from torch_kinit.layers.variable import CONVENTIONS, Options
from torch_kinit.model.execute import Task
from torch_kinit.model.rehearse import first_view, rehearse
from torch_kinit.streams.laws import Constant, Law, Normal, TruncatedNormal, Uniform

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_SCALED = ("he_normal", "he_uniform", "glorot_normal", "glorot_uniform", "lecun_normal", "lecun_uniform")
_ALIKE = 0.05  # laws of one shape whose stds are closer than this are not worth telling apart


class Candidate(NamedTuple):
    """A law that a tensor may have instead of the planned one, and how to say so."""

    text: str
    law: Law


def usual_mistakes(task: Task, options: Options) -> list[Candidate]:
    """The laws of the usual mistakes, each once and none that is the planned one's like."""
    return _distinct(task.law, _usual(task, options))


def others(task: Task, options: Options) -> list[Candidate]:
    """The laws of other initializers, by name."""
    return _distinct(task.law, [*_by_name(task), *_of_libraries(task)])


def _usual(task: Task, options: Options) -> Iterator[Candidate]:
    yield from _of_torch(task)
    if task.recipe.ours and task.step.fans is not None:
        yield from _other_fans(task, options)
    yield from _other_truncation(task.law)


def _distinct(planned: Law | None, tried: Iterable[Candidate]) -> list[Candidate]:
    found: list[Candidate] = []
    for candidate in tried:
        if not any(_alike(candidate.law, law) for law in [planned, *(other.law for other in found)] if law):
            found.append(candidate)
    return found


def _alike(law: Law, other: Law) -> bool:
    if isinstance(law, Constant) or isinstance(other, Constant):
        return law == other
    near = abs(law.std - other.std) <= _ALIKE * max(law.std, other.std) and law.mean == other.mean
    return near and type(law) is type(other)


# torch's own initializers.


def _of_torch(task: Task) -> Iterator[Candidate]:
    """What torch's constructor of the layer gives the tensor."""
    claim = next(claim for claim in task.target.claims if claim.name == task.step.name)
    named = task.step.name.rpartition(".")[2]
    for owner in reversed(claim.modules):  # the module that holds it first
        found = _torch_default(owner.module, named, task.step.shape)
        if found is not None:
            yield Candidate(f"looks like torch's default {found[0]}", found[1])
            return


def _torch_default(module: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[str, Law] | None:
    holder: Any = module
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return _uniform("U(-b, b), b = 1/sqrt(hidden_size)", 1 / math.sqrt(max(1, holder.hidden_size)))
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "N(0, 1)", Normal(0.0, 1.0)
    if isinstance(module, nn.MultiheadAttention):
        return _of_attention(name, shape)
    if isinstance(module, nn.PReLU):
        return "0.25", Constant(0.25)
    if not isinstance(module, (nn.Linear, nn.Bilinear, *_CONVOLUTIONS)):
        return None
    what = "kaiming_uniform(a=sqrt 5)" if name == "weight" else "bias U(-b, b), b = 1/sqrt(fan_in)"
    return _uniform(what, 1 / math.sqrt(max(1, _torch_fan_in(holder))))


def _torch_fan_in(module: Any) -> int:
    """As torch counts it, from the layer's arguments: its weight may be one that changes whenever it is looked at."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, nn.Bilinear):
        return module.in1_features
    channels = module.out_channels if module.transposed else module.in_channels
    return int(channels // module.groups * math.prod(module.kernel_size))


def _of_attention(name: str, shape: tuple[int, ...]) -> tuple[str, Law] | None:
    if name == "in_proj_weight":
        whole = math.sqrt(6 / sum(shape))
        return _uniform("xavier_uniform of in_proj as one matrix: packed fans", whole)
    if name.endswith("_proj_weight"):
        return _uniform("xavier_uniform", math.sqrt(6 / sum(shape)))
    if name in ("bias_k", "bias_v"):
        return "xavier_normal", Normal(0.0, math.sqrt(2 / (shape[0] * shape[2] + shape[1] * shape[2])))
    return None


def _uniform(text: str, bound: float) -> tuple[str, Law]:
    return text, Uniform(-bound, bound)


# The planned initializer with another convention.


def _other_fans(task: Task, options: Options) -> Iterator[Candidate]:
    """The planned initializer with fans that are swapped, of the packed tensor, or of another convention."""
    fan_in, fan_out = task.step.fans or (1, 1)
    whole = tuple(task.step.shape)
    readings = {
        "fans look like those of Conv(groups=...)": fans_of(whole) if task.step.role == "depthwise_kernel" else None,
        "fans look like those of the packed tensor as one matrix": fans_of(whole) if task.step.blocks > 1 else None,
        "fans look swapped": (fan_out, fan_in),
        "fans look like Keras' for torch's shape: axes in the wrong order": fans_of(whole, "keras"),
    }
    for text, fans in readings.items():
        if fans is not None and fans != (fan_in, fan_out) and (law := _with_fans(task, fans)) is not None:
            yield Candidate(f"{text}, {fans} for {(fan_in, fan_out)}", law)
    yield from _other_conventions(task, options)


def _with_fans(task: Task, fans: tuple[int, int]) -> Law | None:
    with contextlib.suppress(ValueError, TypeError):
        view, layout = first_view(task.recipe, task.variable, task.target.tensor)
        if "fans" not in task.recipe.arguments:
            return task.recipe.law_for(view, layout, fans)
    return None


def _other_conventions(task: Task, options: Options) -> Iterator[Candidate]:
    claim = next(claim for claim in task.target.claims if claim.name == task.step.name)
    others = [(name, Options(name, options.depthwise)) for name in CONVENTIONS if name != options.convention]
    others.append(("a depthwise convention", Options(options.convention, not options.depthwise)))
    for name, other in others:
        for variable in layout_of(claim.modules[0].module, other):
            if task.variable is not None and variable.tensor == task.variable.tensor:
                fans, law = rehearse(task.recipe, variable, task.target)
                if law is not None and fans != task.step.fans:
                    whose = f"of {name}" if name in CONVENTIONS else "of a convolution that is read otherwise"
                    yield Candidate(f"fans look like those {whose}, {fans} for {task.step.fans}", law)


def _other_truncation(law: Law | None) -> Iterator[Candidate]:
    """A truncated normal without the factor that corrects its std, with one too many, and without bounds."""
    if not isinstance(law, TruncatedNormal) or not law.std:
        return
    share = law.std / law.scale
    text = f"std is {share:.2f} of the law's: truncation not corrected"
    yield Candidate(text, TruncatedNormal(law.loc, law.std, law.lower, law.upper))
    text = f"std is {1 / share:.2f} of the law's: truncation corrected, where the planned std is before it"
    yield Candidate(text, TruncatedNormal(law.loc, law.scale / share, law.lower, law.upper))
    yield Candidate("looks like a normal of the same std, not truncated", Normal(law.mean, law.std))
    yield Candidate("looks like a normal of the std before truncation, not truncated", Normal(law.loc, law.scale))


# Other initializers by name.


def _by_name(task: Task) -> Iterator[Candidate]:
    """What Keras' initializers would give, with their defaults."""
    fans, shape = task.step.fans, task.step.shape
    if task.variable is not None:
        with contextlib.suppress(ValueError, TypeError):
            view, layout = first_view(task.recipe, task.variable, task.target.tensor)
            shape = keras_shape(view.shape, layout)
            fans = fans or task.variable.fans
    names = [*_SCALED, *(row.names[0] for row in ROWS if row.names)]
    for name in names:
        with contextlib.suppress(ValueError, TypeError):
            law = law_of(name, shape, layout="keras", fans=fans if name in _SCALED else None)
            if law is not None and (law.drawn or isinstance(law, Constant)):
                yield Candidate(f"looks like Keras' {name}", law)


def _of_libraries(task: Task) -> Iterator[Candidate]:
    yield Candidate("looks like N(0, 0.02), as of GPT-2, BERT and timm", Normal(0.0, 0.02))
    if len(task.step.shape) > 1:
        kaiming = math.sqrt(2 / max(1, fans_of(task.step.shape)[0]))
        yield Candidate("looks like torch's kaiming_normal, not truncated", Normal(0.0, kaiming))
        xavier = math.sqrt(2 / max(1, sum(fans_of(task.step.shape))))
        yield Candidate("looks like torch's xavier_normal, not truncated", Normal(0.0, xavier))


def scaled(law: Law, factor: float) -> Law | None:
    """The law of the values times a factor."""
    if isinstance(law, Uniform):
        return Uniform(law.low * factor, law.high * factor)
    if isinstance(law, Normal):
        return Normal(law.mean * factor, law.std * factor)
    if isinstance(law, TruncatedNormal):
        return TruncatedNormal(law.loc * factor, law.scale * factor, law.lower, law.upper)
    return None
