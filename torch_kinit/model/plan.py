"""A plan: the steps that initialize a model, as data, and carrying them out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, KeysView, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.layers.variable import Options
from torch_kinit.model import report
from torch_kinit.model.execute import Execution, source_of
from torch_kinit.model.plan_table import plan_table
from torch_kinit.model.steps import Step
from torch_kinit.streams.generator import AnyGenerator
from torch_kinit.torch_internals import WRAPPERS

_WITH_DATA_PARALLEL = WRAPPERS | {"module"}

# What methods of a plan call in the room above this one, which enters it here when torch_kinit is imported.
INSPECTIONS: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Plan:
    """The steps that initialize a model, as data: iterate, index by parameter name, compare, print, save as JSON.

    A name may have or lack the parts that torch.compile, DataParallel, checkpointing and FSDP1 put into it.
    `convention` and `depthwise` are those it was made with; `model` is the one it was made for, or None for
    a plan read from JSON, unpickled or copied. Two plans are equal when their steps and conventions are, whatever the
    model.

    Example:
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> plan = kinit.plan(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), {"1": "he_normal"})
        >>> [step.name for step in plan]
        ['0.weight', '0.bias', '1.weight', '1.bias']
        >>> str(plan["1.weight"].initializer), kinit.Plan.from_dict(plan.to_dict()) == plan
        ('he_normal', True)
    """

    steps: tuple[Step, ...]
    convention: str = "keras-3.15"
    depthwise: bool = True
    model: nn.Module | None = field(default=None, compare=False)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, name: str) -> Step:
        if not isinstance(name, str):
            raise TypeError(
                f"A plan is indexed by parameter name, got {checks.short(name)}; for a position take `plan.steps`."
            )
        found = self._called(name)
        if not found:
            raise KeyError(f"The plan has no parameter {checks.short(name)}.{checks.near(name, self._by_name)}")
        if len(found) > 1:
            names = ", ".join(repr(step.name) for step in found[:5])
            raise KeyError(
                f"{checks.short(name)} is ambiguous: without wrappers' names it may be {names}. Give one of these."
            )
        return found[0]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and len(self._called(name)) == 1

    @property
    def names(self) -> KeysView[str]:
        """All names of the tensors it speaks of, those of tied ones too, as they were when it was made."""
        return self._by_name.keys()

    @property
    def options(self) -> Options:
        """The conventions it was made with."""
        return Options(self.convention, self.depthwise)

    def __getstate__(self) -> dict[str, Any]:
        return {"steps": self.steps, "convention": self.convention, "depthwise": self.depthwise, "model": None}

    @functools.cached_property
    def _by_name(self) -> dict[str, Step]:
        return {name: step for step in self.steps for name in (step.name, *step.tied)}

    def _called(self, name: str) -> list[Step]:
        """The steps of this very name or, if there is none, of this name but for those of wrappers."""
        if name in self._by_name:
            return [self._by_name[name]]
        for wrappers in (WRAPPERS, _WITH_DATA_PARALLEL):  # nothing but the model tells DataParallel's "module" apart
            if found := self._without(wrappers).get(_bare(name, wrappers)):
                return list(found.values())
        return []

    def _without(self, wrappers: frozenset[str]) -> dict[str, dict[int, Step]]:
        """The steps by their names without those of wrappers."""
        found: dict[str, dict[int, Step]] = {}
        for name, step in self._by_name.items():
            found.setdefault(_bare(name, wrappers), {})[id(step)] = step
        return found

    def __repr__(self) -> str:
        return f"<Plan of {len(self)} steps>"

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        header, rows, notes = plan_table(self.steps)
        return report.as_html(header, rows, notes=notes)

    def to_text(self, width: int | None = None, *, fold: bool = True, color: bool = False) -> str:
        """The plan as a table: a row a tensor and a last line that sums up.

        Args:
            width: how long lines may be; None for the terminal's width where the output goes to one, and for no limit
                elsewhere. Where a row is longer, names stand under the headings of their modules, and then words wrap
                or are cut; names and numbers stay whole, if need be in longer lines.
            fold: whether numbered blocks that are alike have the rows of one: "layers.0-5.linear1.weight".
            color: whether to colour it for a terminal. Nothing is coloured where the environment has NO_COLOR.

        Example:
            >>> from torch import nn
            >>> import torch_kinit as kinit
            >>> print(kinit.plan(nn.Sequential(*(nn.Linear(8, 8) for _ in range(6)))).to_text())
            name        layer   role    initializer     fans    std
            ----------  ------  ------  --------------  ------  ------
            0-5.weight  Linear  kernel  glorot_uniform  (8, 8)  0.3536
            0-5.bias    Linear  bias    zeros           -       0
            ----------  ------  ------  --------------  ------  ------
            12 tensors, 432 values; rule of all: Keras default
        """
        if width is not None and checks.integer("width", width) < 1:
            raise ValueError(f"`width` must be at least 1, got {width!r}.")
        header, rows, notes = plan_table(self.steps, fold=fold)
        return report.as_text(header, rows, width, notes=notes, usual={"rule": "Keras default"}, color=color)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data that JSON can hold.

        Raises:
            ValueError: an initializer is a function of somebody else's, or has an argument JSON cannot hold.
        """
        steps = [step.to_dict() for step in self.steps]
        return {"convention": self.convention, "depthwise": self.depthwise, "steps": steps}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_dict` wrote, without its model: give one to `apply`.

        Raises:
            ValueError: the data is not a plan's.
        """
        try:
            options = Options(data["convention"], data["depthwise"])
            return cls(tuple(map(Step.from_dict, data["steps"])), options.convention, options.depthwise)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"This is not a plan that `to_dict` wrote: {checks.cut(repr(error), 300)}.") from None

    def apply(
        self,
        model: nn.Module | None = None,
        *,
        generator: AnyGenerator = None,
        seed: int | None = None,
        prefix: str = "",
        progress: bool = False,
    ) -> Plan:
        """Carry the plan out, and return it.

        Args:
            model: another model with parameters of the same names, shapes and dtypes; None for the plan's own.
            generator: a torch.Generator on the parameters' device or the CPU; a `KerasSeed`, for every parameter the
                numbers of that seed, as of Keras layers whose initializers all have it; a `Key`, from which one is
                derived for each parameter by its name; or None for torch's global ones. Parameters with seeds of
                their own (see `replay_keras`) draw from these instead.
            seed: an int n, for `generator=Key(n)`: each parameter's values then depend only on n, its name and its
                shape. Names of wrappers (torch.compile, DataParallel, checkpointing, FSDP1) do not count. A rule's
                own Key is used as it is, for each parameter. Other initializers receive a torch.Generator seeded from
                the parameter's key; torch's global generators are seeded likewise while they run, and put back. Their
                values are equal on one device and torch version.
            prefix: the name that the model has in a larger one, whose values it then gets: "encoder".
            progress: show a bar over the parameters where it takes longer than a second, if tqdm is installed.

        Raises:
            ValueError: the model is not the one planned for, the generator does not fit, `seed` and `generator`
                are both given, something is on the meta device (see `materialize`), or a buffer that was there has not
                been set since. After any error, also of another's initializer, parameters, buffers and random states
                are as they were.
        """
        model = self.model if model is None else model
        if model is None:
            raise ValueError("This plan was read from data and has no model: pass one to `apply`.")
        checks.module(model)
        Execution(self, model, source_of(generator, seed, prefix)).run(progress)
        return self

    def audit(self, model: nn.Module | None = None, *, alpha: float = 1e-3) -> Any:
        """Compare the values that a model holds now, by default the plan's own, with the plan: see `kinit.audit`.

        Raises:
            ValueError: as `apply`.

        Example:
            >>> from torch import nn
            >>> import torch_kinit as kinit
            >>> kinit.apply(nn.Linear(64, 256), seed=0).audit().ok
            True
        """
        return INSPECTIONS["audit"](self, model, alpha=alpha)

    def plot(self, ax: Any = None) -> Any:
        """Draw the std of each parameter's law beside that of its values now; see `torch_kinit.plot.plan`."""
        return INSPECTIONS["plot"](self, ax=ax)


def _bare(name: str, wrappers: frozenset[str]) -> str:
    return ".".join(part for part in name.split(".") if part not in wrappers)
