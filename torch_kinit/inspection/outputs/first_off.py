"""The first layer whose outputs are not Keras', and why: the one candidate that gives what the port has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torch_kinit.inspection.outputs import mends, mistakes
from torch_kinit.inspection.outputs.agreement import Distance, arranged, distance
from torch_kinit.inspection.outputs.keras_functions import activation_of, computed
from torch_kinit.inspection.outputs.layerwise import AFTER, OFF, Layerwise, OutputRow
from torch_kinit.inspection.outputs.mistakes import Mistake
from torch_kinit.inspection.outputs.trace import Event
from torch_kinit.inspection.outputs.views import unflattened
from torch_kinit.inspection.untouched import untouched
from torch_kinit.keras.arrays import sampled
from torch_kinit.keras.recorded import Call
from torch_kinit.keras.weights import value_of

_EXPLAINED = 0.02  # of a difference may be left for a cause to count as its own
_ROUNDING = 1e-6  # of a layer without weights, of the largest value
_SLIGHT = 0.1  # of a difference within noise may be left for a cause to count as its own
_DEEPEST = 6  # layers without weights between two with weights, through which a mistake is followed
_WEIGHTS = 1e-5  # of a weight's largest value, by which others are not the same


@dataclass(frozen=True)
class Finding:
    """A layer that is off."""

    position: int  # of its call, in Keras' order
    layer: str
    module: str
    difference: float
    cause: str
    mend: str


def first_off(beside: Layerwise) -> tuple[list[OutputRow], Finding | None]:
    """A row for each call, and the first layer that is off."""
    search, found = _Search(beside), None
    rows: list[OutputRow] = []
    for i, row, event in beside.rows():
        if found is None and event is not None and row.state == OFF:
            with untouched(beside.port):  # copies of modules are run, and their hooks with them
                found = search.explained(i, row, event)
        elif found is None and event is not None:
            found = search.slight(i, event)
        elif row.state == OFF:
            row = dataclasses.replace(row, state=AFTER)
        rows.append(row)
    if found is None:
        return rows, None
    rows = [dataclasses.replace(row, state=AFTER) if row.state == OFF else row for row in rows]
    size = found.difference if math.isfinite(found.difference) else None
    rows[found.position] = dataclasses.replace(rows[found.position], state=OFF, module=found.module, difference=size)
    return rows, found


class _Search:
    """The candidates, tried on what a port has."""

    def __init__(self, beside: Layerwise) -> None:
        self._beside = beside

    def explained(self, i: int, row: OutputRow, event: Event) -> Finding:
        """Why a call is off: it itself, or what stands between it and the last one that the port has."""
        call, beside = self._beside.calls[i], self._beside
        size = math.inf if row.difference is None else row.difference
        if not call.layer and all(any(beside.is_near(x, ref) for x in event.outputs) for ref in call.outputs):
            return Finding(i, "", "", size, "the outputs are in another order", "return them as Keras' model does")
        if not call.layer:
            return self._between(event.outputs, call.outputs, None) or self._unexplained(i, row, size)
        if differing := self._other_weights(call):
            cause = f"weights differ: {', '.join(differing)}"
            return Finding(i, call.layer, row.module, size, cause, "kinit.from_keras(port, keras_model) first")
        entry, refs = beside.entrance(i, event)
        fed = all(any(beside.is_near(x, ref, entry.module) for x in entry.inputs) for ref in refs)
        if not fed and (found := self._between(entry.inputs, refs, entry.module)):
            return found
        at = self._situation(call, event)
        if fed or not self._is_right(at):
            found = self._mended(i, row, at, size) or self._of_heads(i, row, at, size)
            return found or self._unexplained(i, row, size)
        names = ", ".join(map(repr, beside.unseen_before(call)))
        cause, mend = "the module is right, and what it is given is not", f"# what comes before {row.module} in forward"
        return Finding(i, row.layer, row.module, size, cause, f"{mend}; Keras has {names}" if names else mend)

    def _is_right(self, at: mends.Situation) -> bool:
        """Whether the module gives Keras' outputs from Keras' inputs."""
        value = mends.alone(at)
        return value is not None and self._beside.is_noise(self._left(at.call, value))

    def slight(self, i: int, event: Event) -> Finding | None:
        """A mistake too small to stand out of the noise of the layers before, but not from what the port itself has."""
        call, beside = self._beside.calls[i], self._beside
        entry, refs = beside.entrance(i, event) if call.layer else (event, call.outputs)
        tensors, module = (entry.inputs, entry.module) if call.layer else (event.outputs, None)
        for ref in refs:
            if (right := beside.expected(ref)) is None:
                continue
            for tensor in (unflattened(x, module) for x in tensors):
                far = distance(tensor, right, beside.valid.get(ref))
                if far is None or far.relative <= _ROUNDING:
                    continue
                for mistake in self._mistakes(ref, _DEEPEST):
                    left = distance(tensor, mistake.value, beside.valid.get(ref))
                    if left is not None and left.largest <= min(_SLIGHT * far.largest, _ROUNDING * far.scale):
                        return self._finding(mistake, far.largest)
        return None

    def _finding(self, mistake: Mistake, size: float) -> Finding:
        position = next(k for k, own in enumerate(self._beside.calls) if own is mistake.call)
        return Finding(position, mistake.call.layer, self._where(mistake), size, mistake.cause, mistake.mend)

    def _where(self, mistake: Mistake) -> str:
        """The module that gives the wrong values first; "" if it is no module that does."""
        for event in self._beside.events:
            wrong = [any(self._gives(x, mistake) for x in tensors) for tensors in (event.outputs, event.inputs)]
            if wrong == [True, False]:
                return event.path
        return ""

    def _gives(self, found: Tensor, mistake: Mistake) -> bool:
        return self._beside.is_noise(distance(found, mistake.own))

    # --- mistakes of layers before ---

    def _between(self, tensors: Sequence[Tensor], refs: Sequence[int], module: nn.Module | None) -> Finding | None:
        """The mistake of an earlier layer that gives what the port has in place of Keras' arrays."""
        best: tuple[float, float, Mistake] | None = None
        for ref in refs:
            for tensor in (unflattened(x, module) for x in tensors):
                present = self._beside.distance(tensor, ref)
                if self._beside.is_noise(present):
                    continue
                for mistake in self._mistakes(ref, _DEEPEST):
                    left = distance(tensor, mistake.value, self._beside.valid.get(ref))
                    if left is not None and self._fits(left, present) and (best is None or left.largest < best[0]):
                        best = left.largest, present.largest if present else left.scale, mistake
        return None if best is None else self._finding(best[2], best[1])

    def _fits(self, left: Distance, present: Distance | None) -> bool:
        return self._beside.is_noise(left) or (present is not None and left.largest <= _EXPLAINED * present.largest)

    def _mistakes(self, ref: int, depth: int) -> Iterator[Mistake]:
        """What an array can be by one mistake in the layers that it is made by."""
        beside = self._beside
        if (i := beside.producers.get(ref)) is None:
            return
        call = beside.calls[i]
        if beside.places.get(call.layer):
            if i in beside.cores:
                yield from mistakes.activations(call, beside.cores[i])
            yield from self._parts(i, call)
            return
        inputs = [beside.ours.get(k, beside.arrays[k]) for k in call.inputs]
        yield from mistakes.mistakes(call, inputs, beside.masks(call))
        for k in dict.fromkeys(call.inputs if depth else ()):
            if k in beside.seen and beside.producers.get(k) not in beside.cores:
                continue
            for earlier in self._mistakes(k, depth - 1):
                try:
                    given = [earlier.value if ref == k else x for ref, x in zip(call.inputs, inputs, strict=True)]
                    value = computed(call, given, beside.masks(call))
                except (RuntimeError, IndexError):  # of another shape
                    continue
                if value is not None:
                    yield dataclasses.replace(earlier, value=value)

    def _parts(self, i: int, call: Call) -> Iterator[Mistake]:
        """Other parts of what a module gives than the one that Keras goes on with."""
        beside, known = self._beside, activation_of(call)
        right, shape = beside.right.get(i, ""), tuple(beside.arrays[call.outputs[0]].shape)
        for name, view in beside.parts.get(i, {}).items():
            cause = f"the port goes on with {name}, Keras with {right}"
            if call.class_name == "Bidirectional" and name == "out[:, -1]":
                cause += ": the backward half's last state is at the first step"
            for way in arranged(view, shape) if name != right else ():
                yield Mistake(call, known(way) if known else way, cause, right, view)

    # --- the layer itself ---

    def _situation(self, call: Call, event: Event) -> mends.Situation:
        beside = self._beside
        modules = [beside.held.modules[path] for path in beside.paths(call)]
        modules = modules if modules[-1] is event.module else [event.module]
        inputs = [beside.arrays[ref] for ref in call.inputs]
        given = (event.arguments, event.keywords, event.inputs)
        return mends.Situation(call, inputs, beside.masks(call), modules, *given, beside.mode)

    def _other_weights(self, call: Call) -> list[str]:
        """The weights of a layer that are not Keras'."""
        found = []
        for layer, weight, slot in self._beside.places.get(call.layer, ()):
            keras = torch.tensor(self._beside.samples.get((layer.name, weight.name), []))
            if slot and len(keras):
                ours = torch.tensor(sampled(value_of(slot, self._beside.held)))
                same = ours.shape == keras.shape
                if same and float((ours - keras).abs().max()) > _WEIGHTS * float(keras.abs().max()):
                    found.append(f"{weight.name} ({' and '.join(slot.names)})")
        return found

    def _mended(self, i: int, row: OutputRow, at: mends.Situation, size: float) -> Finding | None:
        """The mend with which the module gives Keras' numbers."""
        best: tuple[float, mends.Trial] | None = None
        for trial in mends.trials(at):
            left = self._left(at.call, trial.value, trial.valid)
            fits = self._beside.is_noise(left) or (left is not None and left.largest <= _EXPLAINED * size < math.inf)
            if left is not None and fits and (best is None or left.largest < best[0]):
                best = left.largest, trial
        return None if best is None else Finding(i, row.layer, row.module, size, best[1].cause, best[1].mend)

    def _left(self, call: Call, value: Tensor, valid: Tensor | None = None) -> Distance | None:
        """How far a value is from the layer's output, after or before its activation."""
        ref, known = call.outputs[0], activation_of(call)
        keras = self._beside.arrays[ref]
        valid = self._beside.valid.get(ref) if valid is None else valid
        ways = [value, *(known(way) for way in arranged(value, tuple(keras.shape)) if known)]
        found = [far for way in ways if (far := distance(way, keras, valid)) is not None]
        return min(found, key=lambda far: far.largest, default=None)

    def _of_heads(self, i: int, row: OutputRow, at: mends.Situation, size: float) -> Finding | None:
        """What is wrong between the projections of an attention that is written out."""
        events = [self._beside.calls_of(path) for path in self._beside.paths(at.call)]
        if at.call.class_name != "MultiHeadAttention" or len(events) != 4 or not all(events):
            return None
        projected, masked = [own[0].outputs[0] for own in events[:3]], bool(at.masks)
        ways = {
            "the scores are not scaled by 1 / sqrt(key_dim)": (False, masked, "scores / math.sqrt(key_dim)"),
            "the mask is ignored: Keras leaves out masked keys": (True, False, "scores.masked_fill(~mask, -inf)"),
        }
        for cause, (scale, mask, mend) in ways.items():
            value = mends.heads_mixed(at, projected, scale, mask)
            if value is not None and at.given and self._beside.is_noise(distance(at.given[0], value)):
                return Finding(i, row.layer, row.module, size, cause, mend)
        return None

    def _unexplained(self, i: int, row: OutputRow, size: float) -> Finding:
        names = ", ".join(map(repr, self._beside.unseen_before(self._beside.calls[i])))
        cause = "none of the known causes gives these numbers"
        return Finding(i, row.layer, row.module, size, f"{cause}; Keras has {names} before it" if names else cause, "")
