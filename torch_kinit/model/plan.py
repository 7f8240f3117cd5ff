"""A plan: the steps that initialize a model, as data, and carrying them out."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torch_kinit import checks
from torch_kinit.layers.variable import Options
from torch_kinit.model import report
from torch_kinit.model.execute import Execution, source_of
from torch_kinit.model.steps import Step
from torch_kinit.streams.generator import AnyGenerator


@dataclass(frozen=True)
class Plan:
    """The steps that initialize a model, as data: iterate, index by parameter name, compare, print, save as JSON.

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
        if name not in self._by_name:
            raise KeyError(f"The plan has no parameter {checks.short(name)}.{checks.near(name, self._by_name)}")
        return self._by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    @property
    def options(self) -> Options:
        """The conventions it was made with."""
        return Options(self.convention, self.depthwise)

    def __getstate__(self) -> dict[str, Any]:
        return {"steps": self.steps, "convention": self.convention, "depthwise": self.depthwise, "model": None}

    @functools.cached_property
    def _by_name(self) -> dict[str, Step]:
        return {name: step for step in self.steps for name in (step.name, *step.tied)}

    def __repr__(self) -> str:
        return f"<Plan of {len(self)} steps>"

    def __str__(self) -> str:
        return report.as_text(*report.plan_table(self.steps))

    def _repr_html_(self) -> str:
        return report.as_html(*report.plan_table(self.steps))

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
            progress: show a bar over the parameters, if tqdm is installed.

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
