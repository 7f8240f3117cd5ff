"""A port's modules beside the layers that Keras recorded: where each output is, and how far from Keras' it is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from torch_kinit.inspection.activations import LINEAR
from torch_kinit.inspection.outputs.agreement import Distance, arranged, closest, distance
from torch_kinit.inspection.outputs.arithmetic import with_arithmetic
from torch_kinit.inspection.outputs.keras_functions import activation_of, computed
from torch_kinit.inspection.outputs.trace import Event, traced
from torch_kinit.inspection.outputs.views import WHOLE, unflattened, views
from torch_kinit.keras.matching import Place
from torch_kinit.keras.recorded import Call, Recorded
from torch_kinit.keras.slots import Holdings

EQUAL, BEFORE, PART, UNSEEN = "equal", "equal before its activation", "equal, a part of it", "not seen"
OFF, AFTER, DRAWS = "off", "after the first", "draws"
Batch = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True)
class OutputRow:
    """One call of a Keras layer beside the port: where its output was found, and how far from Keras' it is.

    `layer` is "" for the model itself, `module` the path of the module whose output it is ("" where it is no module's),
    `difference` the largest of two values, `scale` the largest value of Keras'. `state` is "equal"; "equal before its
    activation", where a function in `forward` applies that; "equal, a part of it"; "not seen", where no module gives or
    takes it; "off", of the first that is; "after the first"; or "draws", where Keras draws random numbers.

    Example:
        >>> import keras, torch_kinit as kinit
        >>> from torch import nn
        >>> keras_model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="tanh", name="head")])
        >>> config = kinit.keras_config(keras_model, inputs=keras.ops.ones((2, 4)))
        >>> port = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        >>> kinit.from_keras(port, keras_model)
        >>> row = kinit.compare(config, port).outputs.rows[0]
        >>> row.mode, row.layer, row.module, row.state
        ('eval', 'head', '0', 'equal before its activation')
    """

    mode: str
    layer: str
    class_name: str
    module: str
    state: str
    difference: float | None = None
    scale: float | None = None


class Layerwise:
    """The calls of one mode, and what is known of where the port has the same arrays."""

    def __init__(
        self, recorded: Recorded, port: nn.Module, batch: Batch, found: Iterable[Place], held: Holdings, mode: str
    ) -> None:
        self.calls = with_arithmetic(recorded.calls[mode], recorded.arrays, recorded.inputs)
        self.arrays, self.mode, self.held, self.port = recorded.arrays, mode, held, port
        self.samples = recorded.samples
        self.places: dict[str, list[Place]] = defaultdict(list)
        self._first: dict[str, str] = {}  # of the layers whose weights a module holds, such as an LSTM of two
        self._last: dict[str, str] = {}
        for place in found:
            if place.slot:
                self.places[place.layer.name].append(place)
                self._last[place.slot.module] = place.layer.name
                self._first.setdefault(place.slot.module, place.layer.name)
        self.events = traced(port, *batch, mode)
        self._by_path: dict[str, list[Event]] = defaultdict(list)
        for event in self.events:
            self._by_path[event.path].append(event)
        self.seen = set(recorded.inputs)  # arrays that the port has, too
        self.ours: dict[int, Tensor] = {}  # where it has them, in Keras' layout; masked steps hold what they may
        self.cores: dict[int, Tensor] = {}  # what a layer's module gives before the activation, by the call
        self.parts: dict[int, Mapping[str, Tensor]] = {}  # what a module gave that may be the layer's, by the call
        self.right: dict[int, str] = {}  # which of these it is
        self.producers: dict[int, int] = {}
        for i, call in enumerate(self.calls):
            for ref in call.outputs:
                if ref not in call.inputs:
                    self.producers.setdefault(ref, i)
        self.valid = self._valid_steps()
        self._noise = 0.0  # of the last layer that was equal

    def _valid_steps(self) -> dict[int, Tensor]:
        """The masks of those arrays that have masked steps, whose values nobody reads."""
        valid: dict[int, Tensor] = {}
        for call in self.calls:
            masks = [self.arrays[call.masks[key]] for key in ("mask", "query_mask") if key in call.masks]
            own = [mask.bool() for mask in masks if mask.ndim == 2]
            for ref in call.inputs[:1]:
                valid |= {ref: own[0]} if own and ref not in valid else {}
            own += [valid[ref] for ref in call.inputs if ref in valid]
            for ref in call.outputs if own and call.layer else ():
                if self.arrays[ref].ndim > 2 and self.arrays[ref].shape[:2] == own[0].shape:
                    valid.setdefault(ref, own[0])
        return valid

    def rows(self) -> Iterator[tuple[int, OutputRow, Event | None]]:
        """A row for each call, with the call of the module that it is about; none after random numbers."""
        counts: Counter[str] = Counter()
        for i, call in enumerate(self.calls):
            if call.draws:
                yield i, OutputRow(self.mode, call.layer, call.class_name, "", DRAWS), None
                return
            yield (i, *self._row(i, call, counts[call.layer]))
            counts[call.layer] += 1

    def _row(self, i: int, call: Call, number: int) -> tuple[OutputRow, Event | None]:
        def make(module: str, state: str, far: Distance | None = None) -> OutputRow:
            sizes = (far.largest, far.scale) if far else (None, None)
            return OutputRow(self.mode, call.layer, call.class_name, module, state, *sizes)

        if not call.outputs:
            return make("", UNSEEN), None
        if not call.layer:
            far, state = self._of_the_model(call)
            return make("", state, far), self.events[-1]
        if (event := self._event(call, number)) is None:
            if (found := self._find(call.outputs[0])) is None:
                return make("", UNSEEN), None
            self._note(call)
            return make(found[0], EQUAL, found[1]), None
        far, state = self._matched(i, call, event)
        if state != OFF:
            self._note(call, outputs=state == EQUAL)
            self._noise = far.relative if far else self._noise
        return make(event.path, state, far), event

    def _of_the_model(self, call: Call) -> tuple[Distance | None, str]:
        """How far the outputs of the model itself are, at their worst."""
        outputs, worst = self.events[-1].outputs, Distance(0.0, 0.0)
        for k, ref in enumerate(call.outputs):
            several = outputs if len(outputs) != len(call.outputs) else [outputs[k]]
            ways = [far for out in several if (far := self.distance(out, ref)) is not None]
            best = min(ways, key=lambda far: far.largest, default=None)
            if best is None or not self.is_noise(best):
                return best, OFF
            worst = max(worst, best, key=lambda far: far.largest)
        return worst, EQUAL

    def distance(self, found: Tensor, ref: int) -> Distance | None:
        return distance(found, self.arrays[ref], self.valid.get(ref))

    def is_noise(self, far: Distance | None) -> bool:
        """Whether a distance is no more than that of rounding, in this depth."""
        return far is not None and far.within(self._noise)

    def is_near(self, found: Tensor, ref: int, module: nn.Module | None = None) -> bool:
        """Whether an input of a module is Keras' array."""
        return self.is_noise(self.distance(unflattened(found, module), ref))

    def paths(self, call: Call) -> list[str]:
        """The modules that hold the weights of a layer."""
        return list(dict.fromkeys(place.slot.module for place in self.places.get(call.layer, ()) if place.slot))

    def calls_of(self, path: str) -> Sequence[Event]:
        return self._by_path.get(path, ())

    def _event(self, call: Call, number: int) -> Event | None:
        """The call of the last module that holds the layer's weights, or of the one around several."""
        own = self.paths(call)
        if not own or self._last[own[-1]] != call.layer:
            return None
        parts = [path.split(".") if path else [] for path in own]
        shared = 0
        while all(len(names) > shared and names[shared] == parts[0][shared] for names in parts):
            shared += 1
        for path in (own[-1], ".".join(parts[0][:shared])):
            events = self.calls_of(path)
            if number < len(events) and (path or len(own) == 1):
                return events[number]
        return None

    def entrance(self, i: int, event: Event) -> tuple[Event, Sequence[int]]:
        """Where a layer's inputs go in: the call of its first module, and the arrays that this is to be given."""
        first = self.paths(self.calls[i])[0]
        events, number = self.calls_of(first), list(self.calls_of(event.path)).index(event)
        refs = [call.inputs for call in self.calls[: i + 1] if call.layer == self._first[first]]
        return events[number] if number < len(events) else event, refs[-1] if refs else ()

    def _matched(self, i: int, call: Call, event: Event) -> tuple[Distance | None, str]:
        """How far the module's output is from the layer's, after or before its activation."""
        ref = call.outputs[0]
        keras, known = self.arrays[ref], activation_of(call)
        found = self.parts[i] = views(event, tuple(keras.shape))
        ways = {name: far for name, view in found.items() if (far := self.distance(view, ref)) is not None}
        name = min(ways, key=lambda name: ways[name].largest, default="")
        best = ways.get(name)
        if best is not None and self.is_noise(best):
            self.right[i], self.ours[ref] = name, closest(found[name], keras)
            if known == LINEAR:
                self.cores[i] = self.ours[ref]
            return best, EQUAL if name.startswith(WHOLE) else PART
        for name, core in self._before_activation(call, found) if known and known != LINEAR else ():
            value = known(core) if known else core
            far = distance(value, keras, self.valid.get(ref))
            if far is not None and self.is_noise(far):
                self.cores[i], self.right[i] = core, name
                self.ours.setdefault(ref, value)
                return far, BEFORE
            best = far if far is not None and (best is None or far.largest < best.largest) else best
        return best, OFF

    def _before_activation(self, call: Call, found: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        shape = tuple(self.arrays[call.outputs[0]].shape)
        return ((name, way) for name, view in found.items() for way in arranged(view, shape))

    def _find(self, ref: int) -> tuple[str, Distance] | None:
        """The path of a module whose output, or else input, is Keras' array, and how far it is from it."""
        for attribute in ("outputs", "inputs"):
            for event in self.events:
                for tensor in getattr(event, attribute):
                    far = self.distance(tensor, ref)
                    if far is not None and self.is_noise(far):
                        self.ours.setdefault(ref, closest(tensor, self.arrays[ref]))
                        return event.path if attribute == "outputs" else "", far
        return None

    def _note(self, call: Call, outputs: bool = True) -> None:
        """The layer is right, and so is all that it was made from."""
        self.seen.update(call.outputs if outputs else ())
        left = list(call.inputs)
        while left:
            if (ref := left.pop()) not in self.seen:
                self.seen.add(ref)
                i = self.producers.get(ref)
                left += self.calls[i].inputs if i is not None else ()

    def masks(self, call: Call) -> dict[str, Tensor]:
        return {key: self.arrays[ref] for key, ref in call.masks.items()}

    def expected(self, ref: int) -> Tensor | None:
        """What the port should have for an array, from what it has before."""
        i = self.producers.get(ref)
        if i is None or self.places.get(self.calls[i].layer):
            return self.ours.get(ref)
        call = self.calls[i]
        inputs = [self.expected(k) for k in call.inputs]
        known = [x for x in inputs if x is not None]
        return computed(call, known, self.masks(call)) if len(known) == len(inputs) else self.ours.get(ref)

    def unseen_before(self, call: Call) -> list[str]:
        """The layers between this one and what the port has."""
        found: set[int] = set()
        left = list(call.inputs if call.layer else call.outputs)
        while left:
            ref = left.pop()
            i = self.producers.get(ref)
            if i is not None and i not in found and ref not in self.seen:
                found.add(i)
                left += self.calls[i].inputs
        return [self.calls[i].layer for i in sorted(found)]
