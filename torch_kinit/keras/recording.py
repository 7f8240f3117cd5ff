"""The outputs of each layer of a live Keras model for one batch, the model left as it was: `record`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from torch_kinit.keras.arrays import as_tensor, content, encoded, plain, sampled, write_npz
from torch_kinit.keras.read import OWN_PACKAGES

MODES = ("eval", "train")
# Of Keras itself: a layer and all inside, what is inside later. A layer that is no model has no public name for them.
layers_in = operator.methodcaller("_flatten_layers")


def record(model: Any, names: Mapping[int, str], layers: Sequence[Any], inputs: Any, file: Any) -> dict[str, Any]:
    """What each layer of `layers` gives when `model` is called on `inputs`, by the layers' `names`, as plain data.

    The model's variables, and the losses that a call adds, are as before afterwards.
    """
    recorder = _Recorder(model, names, layers)
    for mode in MODES:
        with _kept(model, layers), recorder.watching(mode):
            model(inputs, training=mode == "train")
    batch = recorder.references(inputs)
    found = {
        "format": 1,
        "inputs": dict(zip(inputs, batch, strict=True)) if isinstance(inputs, Mapping) else batch,
        "layers": {name: _described(layer) for name, layer in recorder.called.items()},
        "weights": [sampled(as_tensor(_value(variable))) for variable in model.weights],
        **recorder.calls,
        "left_out": recorder.left_out,
        "count": len(recorder.arrays),
    }
    if file is None:
        return {**found, "arrays": [encoded(array) for array in recorder.arrays]}
    write_npz(file, recorder.arrays)
    return {**found, "file": str(file)}


def is_model(layer: Any) -> bool:
    return hasattr(layer, "compile") and hasattr(layer, "layers")


def _described(layer: Any) -> dict[str, Any]:
    """A layer's class and what of its config is plain data; the layers inside it are described themselves."""
    try:
        config = {} if is_model(layer) else layer.get_config()
    except Exception:  # somebody's get_config can raise anything
        config = {}
    left = ("name", "trainable", "build_config")
    own = {key: plain(value) for key, value in config.items() if key not in left and "_initializer" not in key}
    return {"class_name": type(layer).__name__, "config": own, "own": _is_of_keras(layer) and not is_model(layer)}


def _is_of_keras(layer: Any) -> bool:
    return type(layer).__module__.partition(".")[0] in OWN_PACKAGES


def _value(variable: Any) -> Any:
    return variable.numpy() if hasattr(variable, "numpy") else variable


@contextmanager
def _kept(model: Any, layers: Sequence[Any]) -> Iterator[None]:
    """Give the model its variables back, and its layers the losses and attributes that they had."""
    import numpy

    before = [(variable, numpy.array(_value(variable))) for variable in _variables(model)]
    attributes = [(vars(layer), dict(vars(layer))) for layer in layers_in(model)]
    losses = [(own, list(own)) for layer in layers if isinstance(own := getattr(layer, "_losses", None), list)]
    try:
        yield
    finally:
        for variable, value in before:
            if not numpy.array_equal(numpy.asarray(_value(variable)), value):
                variable.assign(value)
        for own, held in losses:
            own[:] = held
        for now, then in attributes:  # such as a mask of dropout that a cell keeps for a call
            for name in now.keys() - then.keys():
                del now[name]
            now.update({name: value for name, value in then.items() if now.get(name) is not value})


def _variables(model: Any) -> list[Any]:
    """All that a call can change: weights, and the states of generators, which count as integers."""
    states = [generator.state for layer in layers_in(model) for generator in _generators(layer)]
    return list({id(variable): variable for variable in (*model.variables, *states) if _is_plain(variable)}.values())


def _is_plain(variable: Any) -> bool:
    return "string" not in str(variable.dtype)


def _generators(layer: Any) -> list[Any]:
    """The SeedGenerators of a layer itself."""
    found = [*(getattr(layer, "_seed_generators", None) or ()), getattr(layer, "seed_generator", None)]
    return list({id(generator): generator for generator in found if hasattr(generator, "state")}.values())


def _states(layer: Any) -> list[Any]:
    import numpy

    return [numpy.asarray(_value(generator.state)).tolist() for generator in _generators(layer)]


def _draws_when_training(layer: Any) -> bool:
    """Whether a layer of Keras' own is one that draws: Dropout and its kin, recurrent layers with a rate."""
    parts = [layer, getattr(layer, "cell", None)]
    generators = any(_generators(part) or getattr(part, "_random_generator", None) for part in parts)
    return _is_of_keras(layer) and not is_model(layer) and generators


class _Recorder:
    """Stands between layers and their `call`, and notes what goes in and out."""

    def __init__(self, model: Any, names: Mapping[int, str], layers: Sequence[Any]) -> None:
        self._model, self._names, self._layers = model, names, layers
        self.arrays: list[Tensor] = []
        self.calls: dict[str, list[dict[str, Any]]] = {}
        self.left_out: dict[str, str] = {}
        self.called: dict[str, Any] = {}  # the layers that were noted, by name
        self._mode = MODES[0]
        self._inside = 0  # how many layers of Keras' own are being called, in which nothing is noted
        self._kept: list[Any] = []  # so that no other tensor gets the id of one that was noted
        self._by_id: dict[int, int] = {}
        self._by_content: dict[tuple[Any, ...], int] = {}

    @contextmanager
    def watching(self, mode: str) -> Iterator[None]:
        """Note the calls of all layers."""
        self._mode, self.calls[mode] = mode, []
        watched = {id(layer): layer for layer in (*layers_in(self._model), *self._layers)}.values()
        own = {id(layer): vars(layer).get("call") for layer in watched}
        try:
            for layer in watched:  # past __setattr__, by which Keras and torch track what a layer holds
                vars(layer)["call"] = self._watched(layer, layer.call)
            yield
        finally:
            for layer in watched:
                if own[id(layer)] is None:
                    vars(layer).pop("call", None)
                else:
                    vars(layer)["call"] = own[id(layer)]

    def _watched(self, layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, noted where the layer has a name, and without dropout."""
        quiet = _draws_when_training(layer) and "training" in inspect.signature(call).parameters
        closed = _is_of_keras(layer) and not is_model(layer)

        @functools.wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if quiet and "training" in kwargs:
                kwargs = {**kwargs, "training": False}
            noted = id(layer) in self._names and not self._inside
            before = _states(layer) if noted else []
            self._inside += closed
            try:
                outputs = call(*args, **kwargs)
            finally:
                self._inside -= closed
            if noted:
                self._note(layer, args, kwargs, outputs, drew=before != _states(layer))
            return outputs

        return watched

    def _note(self, layer: Any, args: Any, kwargs: Mapping[str, Any], outputs: Any, drew: bool) -> None:
        name = self._names[id(layer)]
        masks = {key: value for key, value in kwargs.items() if key.endswith("mask") and value is not None}
        given = [args, {key: value for key, value in kwargs.items() if key not in masks and _is_data(value)}]
        try:
            call = {
                "layer": name,
                "inputs": self.references(given),
                "outputs": self.references(outputs),
                "masks": {key: found[0] for key, value in masks.items() if (found := self.references(value))},
            }
        except Exception as error:  # tracers, ragged and sparse tensors each raise their own
            self.left_out.setdefault(name, f"{type(error).__name__}: {str(error)[:200]}")
            return
        self.called.setdefault(name, layer)
        self.calls[self._mode].append({**call, "draws": True} if drew else call)

    def references(self, value: Any) -> list[int]:
        """The numbers, in `arrays`, of all arrays in a nest of lists and dicts; one of equal content is kept once."""
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, (list, tuple)):
            return [i for item in value for i in self.references(item)]
        if not _is_data(value):
            return []
        if id(value) not in self._by_id:
            tensor = as_tensor(value)
            key = (tuple(tensor.shape), tensor.dtype, hashlib.sha256(content(tensor)).digest())
            if key not in self._by_content:
                self._by_content[key] = len(self.arrays)
                self.arrays.append(tensor)
            self._kept.append(value)
            self._by_id[id(value)] = self._by_content[key]
        return [self._by_id[id(value)]]


def _is_data(value: Any) -> bool:
    """Whether a value is an array or tensor, or a nest that can have some."""
    return isinstance(value, (list, tuple, Mapping)) or (hasattr(value, "shape") and hasattr(value, "dtype"))
