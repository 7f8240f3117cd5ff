"""The modules of a port in order, and where that order is certain to be the one in which they are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from torch_kinit.inspection.sharded import own_class
from torch_kinit.keras.slots import Holdings


@dataclass(eq=False)
class Item:
    """A module without modules in it, or one with weights of its own."""

    path: str
    module: nn.Module
    weighted: bool = False
    before: list[Item] = field(default_factory=list)  # padding, taken together with this module
    after: list[Item] = field(default_factory=list)  # cropping, likewise

    @property
    def code(self) -> str:
        """As Python has it: port.features[0]."""
        return code_of(self.path)


class Order:
    """The modules as they are registered; a gap, None, wherever what comes next is for `forward` to say."""

    def __init__(self, port: nn.Module, held: Holdings) -> None:
        self._held = held
        self._line = list(self._walk("", port))
        self.items = [item for item in self._line if item]
        self.by_path = {item.path: item for item in self.items}

    def after(self, item: Item | None) -> tuple[list[Item], bool]:
        """The modules without weights called after this one, or before all others; and whether no other can be."""
        found: list[Item] = []
        for other in self._line[self._line.index(item) + 1 if item else 0 :]:
            if other is None:
                return found, False
            if other.weighted:
                return found, True
            found.append(other)
        return found, True

    def neighbour(self, item: Item, step: int) -> Item | None:
        """The module registered before or after this one."""
        place = self.items.index(item) + step
        return self.items[place] if 0 <= place < len(self.items) else None

    def is_certain(self, item: Item) -> bool:
        """Whether the module before this one is known: it stands in a Sequential, and not at its beginning."""
        place = self._line.index(item)
        return place == 0 or self._line[place - 1] is not None

    def _walk(self, path: str, module: nn.Module) -> Iterator[Item | None]:
        children = [(name, child) for name, child in module.named_children() if name != "parametrizations"]
        if self._held.of(path) and not (children and own_class(module).__module__.partition(".")[0] != "torch"):
            yield Item(path, module, weighted=True)
        elif not children:
            yield Item(path, module)
        elif type(module).forward is nn.Sequential.forward:
            names = {id(child): name for name, child in children}
            for child in module:  # type: ignore[attr-defined]  # a module that comes twice, twice
                yield from self._walk(_join(path, names[id(child)]), child)
        else:
            for name, child in children:
                yield None
                yield from self._walk(_join(path, name), child)
            yield None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def code_of(path: str) -> str:
    parts = path.split(".") if path else []
    return "port" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in parts)
