"""A Keras model beside its torch port, layer by layer, by the config and by recorded outputs: `compare`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from torch_kinit import checks
from torch_kinit.initializers.names import recipe
from torch_kinit.inspection.compare import checking, optimizers, training
from torch_kinit.inspection.compare.differences import MEASURED, MODEL, Difference, Note
from torch_kinit.inspection.compare.events import attach_padding
from torch_kinit.inspection.compare.keras_graph import Unit, units_of
from torch_kinit.inspection.compare.masks import mask_notes
from torch_kinit.inspection.compare.pairing import pair
from torch_kinit.inspection.compare.port_order import Item, Order, code_of
from torch_kinit.inspection.compare.report import Comparison
from torch_kinit.inspection.outputs.forward import compare_outputs, recorded_outputs
from torch_kinit.keras.configs import is_model, load_config
from torch_kinit.keras.draws import Config, Layer
from torch_kinit.keras.flatten import unmarked
from torch_kinit.keras.matching import Modules, Place, paired, places
from torch_kinit.keras.port import rules_of
from torch_kinit.keras.saved_model import Model
from torch_kinit.keras.slots import Holdings, Slot, holdings
from torch_kinit.layers.variable import Options
from torch_kinit.model.rules import KERAS_DEFAULTS

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_UNBIASED = Note(MODEL, "torch's running variance is the unbiased one", "none needed: outputs in eval mode off by 4e-5")


_SUBCLASSED = Note(MODEL, "the arguments of layers: a subclassed model saves none", "what the outputs tell")


def compare(
    keras_config: Any,
    port: nn.Module,
    *,
    inputs: Any = None,
    modules: Modules | None = None,
    order: Sequence[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    convention: str = "keras-3.15",
    depthwise: bool = True,
) -> Comparison:
    """Compare a Keras model with its torch port: what makes them train differently though every weight is equal.

    Layers with weights are matched as `from_keras` does, and their arguments compared: epsilon, momentum, padding,
    strides, dilation, gates, biases, what is frozen. Pooling, activations, dropout and the like are matched with the
    modules between; in a Sequential their order is known, elsewhere their kind and number are compared. What a port
    does by functions in `forward` cannot be seen there: it is listed in `notes`, not reported as a difference.

    What `forward` does is seen in outputs. Where `keras_config(keras_model, inputs=x)` recorded those of each layer,
    the port is run on the same batch, in eval and in train mode without dropout. Its modules' outputs are compared with
    the layers', and the first layer that is off is named, with the cause and a mend: the candidate that gives what the
    port has. An output is Keras' if no value differs by more than 1e-5 of the largest, or five times what the layers
    before differ by. The port's weights must be Keras', as `from_keras` copies them.

    Of a port that processes share (`fully_shard`, DTensors) the arguments are compared, in each process by itself and
    without a word between them; recorded outputs are refused.

    Args:
        keras_config: a Sequential or functional Keras model, as `rules_from_keras` takes it; with recorded outputs a
            subclassed one, too.
        port: the torch port; run where outputs are recorded, and left as it is: modes, buffers, torch's generators.
        inputs: the batch of the recording as the port takes it: a tensor, a tuple of them for several arguments, or a
            dict of keyword arguments. None for the recorded one, its channels moved first where the port needs it.
        modules: which torch module is which Keras layer, as in `rules_from_keras`.
        order: the names of the Keras layers with weights in the order in which the port registers their modules, if
            that is not the config's.
        optimizer: the torch optimizer, compared with that of the compiled model in the config; None lists what to set.
        convention, depthwise: as in `plan`.

    Returns:
        A `Comparison`: `ok`, `differences` with their effect on training as it was measured, and a line of torch that
        mends each; `notes`, `layers`, `laws`, `outputs`.

    Raises:
        ValueError, TypeError: as `rules_from_keras`: weights of other shapes than the port's, a layer without a twin, a
            config that does not list its layers; an optimizer, and a config that has none; `inputs`, and a config
            without recorded outputs, or of another batch; recorded outputs, and a port on the meta device, in half
            precision or shared among processes. What the port itself raises on the batch is left as it is.

    Example:
        >>> from torch import nn
        >>> import torch_kinit as kinit
        >>> norm = {"class_name": "BatchNormalization", "config": {"momentum": 0.99, "epsilon": 0.001}}
        >>> config = {"class_name": "Sequential", "config": {"layers": [norm]}}
        >>> for found in kinit.compare(config, nn.Sequential(nn.BatchNorm2d(4))).differences:
        ...     print(found.what, "|", found.weight, "|", found.mend)
        momentum | loss equal, but outputs in eval mode off by 0.25 to 0.9 after 20 steps | port[0].momentum = 0.01
        epsilon | loss off by up to 0.28 within 20 steps | port[0].eps = 0.001
    """
    checks.module(port, "port")
    if not (optimizer is None or isinstance(optimizer, torch.optim.Optimizer)):
        raise TypeError(f"`optimizer` must be a torch.optim.Optimizer, got {checks.short(optimizer)}.")
    captured = load_config(keras_config, seeds=False)
    held, outputs = holdings(port, Options(convention, depthwise)), None
    if (recorded := recorded_outputs(captured, keras_config, inputs)) is not None:
        every = places(_reordered(Model(captured).layers, order), held, modules)
        outputs = compare_outputs(recorded, port, inputs, every, held)
        if unread := _unread(captured):
            laws, doubts = _laws(every, held)
            return Comparison((), (unread, *doubts), _paths(every), laws, outputs)
    config = _listing(captured)
    with _read_as_saved("`keras_config`"):
        keras = Model(config)
    found = places(_reordered(keras.layers, order), held, modules)
    own = {layer.name: _slots(found, layer) for layer in keras.layers if layer.weights}
    with _read_as_saved("`keras_config`"):
        results, layers = _of_config(config, own, Order(port, held), held)
        results += [*_of_flatten(config, found, held), *_of_compile(config, optimizer)]
        laws, doubts = _laws(found, held)
    doubts += [Note(MODEL, "fans of attention", str(doubt)) for doubt in keras.check_convention(convention)]
    return Comparison(*_sorted([*results, *doubts]), layers, laws, outputs)


@contextmanager
def _read_as_saved(what: str) -> Iterator[None]:
    """Say of what Keras cannot have saved where it stands, instead of how it went wrong."""
    try:
        yield
    except (AttributeError, LookupError, ArithmeticError, TypeError) as error:
        raise ValueError(f"{what} is not as Keras saves it: {checks.cut(repr(error), 200)}") from error


def _of_config(
    config: Config, slots: dict[str, list[Slot]], order: Order, held: Holdings
) -> tuple[list[Difference | Note], dict[str, str]]:
    """What layers and modules tell, and the paths of the modules of each layer with weights."""
    units = units_of(config)
    own = {name: _items(given, order) for name, given in slots.items()}
    attach_padding(units, order)
    results = [*_of_layers(units, own, slots, held, order), *_of_order(units, own, order), *mask_notes(units)]
    results += [note for unit in units for note in training.notes_of(unit)]
    results += [_UNBIASED] if any(isinstance(item.module, _NORMS) for item in order.items) else []
    return results, {name: ", ".join(item.path for item in items) for name, items in own.items()}


def _unread(captured: Config) -> Note | None:
    """Why the arguments of layers cannot be compared, where outputs can be."""
    if not is_model(captured):
        return _SUBCLASSED
    try:
        Model(_listing(captured))
    except ValueError as error:  # a class of the program's own
        return Note("-", f"the arguments of layers: {error}", "what the outputs tell")
    return None


def _listing(config: Config) -> Config:
    """A config that lists layers; of what `keras_config` captured, that part alone."""
    if not is_model(config):
        raise ValueError(
            "`keras_config` is of a subclassed model, which saves its weights and none of its layers' arguments: there "
            "is nothing to compare. Give the config of a Sequential or functional model."
        )
    return {key: value for key, value in config.items() if key not in ("weights", "convention", "outputs")}


def _paths(found: Iterable[Place]) -> dict[str, str]:
    """The modules of each layer."""
    paths: dict[str, dict[str, None]] = {}
    for layer, _, slot in found:
        paths.setdefault(layer.name, {}).update({slot.module: None} if slot else {})
    return {name: ", ".join(own) for name, own in paths.items()}


def _reordered(layers: Sequence[Layer], order: Sequence[str] | None) -> list[Layer]:
    """The layers with weights as `order` names them."""
    weighted = {layer.name: layer for layer in layers if layer.weights}
    if order is None:
        return list(weighted.values())
    listed = isinstance(order, Sequence) and not isinstance(order, str)
    if not listed or not all(isinstance(name, str) for name in order):
        raise TypeError(f"`order` must be a list of the names of Keras layers, got {checks.short(order)}.")
    if unknown := [name for name in order if name not in weighted]:
        hint = checks.near(unknown[0], weighted)
        raise ValueError(f"`order` has {checks.short(unknown[0])}, which is no Keras layer with weights.{hint}")
    if sorted(order) != sorted(weighted):
        left = [name for name in weighted if name not in order]
        raise ValueError(f"`order` leaves out {checks.short(left[0])}." if left else "`order` has a layer twice.")
    return [weighted[name] for name in order]


def _slots(found: Iterable[Place], layer: Layer) -> list[Slot]:
    return [place.slot for place in found if place.layer is layer and place.slot]


def _items(slots: Iterable[Slot], order: Order) -> list[Item]:
    """The modules that hold these weights."""
    return [order.by_path[path] for path in dict.fromkeys(slot.module for slot in slots) if path in order.by_path]


def _of_layers(
    units: Iterable[Unit],
    own: dict[str, list[Item]],
    slots: dict[str, list[Slot]],
    held: Holdings,
    order: Order,
) -> list[Difference | Note]:
    found: list[Difference | Note] = []
    for unit in units:
        if items := own.get(unit.name):
            with _read_as_saved(f"The config of layer {checks.short(unit.name)}"):
                found += checking.check_layer(unit, items, certain=order.is_certain(items[0]))
                found += training.check_training(unit, items, slots[unit.name], held)
    return found


def _of_order(units: Sequence[Unit], own: dict[str, list[Item]], order: Order) -> list[Difference | Note]:
    """Of what stands between layers with weights."""
    placed = {name: items for name, items in own.items() if items}
    pairing = pair(units, order, placed, checking.check_pair)
    found: list[Difference | Note] = []
    for event, item, certain in pairing.pairs:
        found += checking.check_pair(event, item, certain=certain)
    for event, after in pairing.missing:
        found += checking.check_missing(event, after)
    for inside in pairing.inside:
        found += checking.check_inside(*inside)
    for item, unit in pairing.extra:
        found += checking.check_extra(item, unit)
    found += [checking.check_moved(*moved) for moved in pairing.moved]
    return found + [Note(event.unit.name, str(event), "a function in `forward`") for event in pairing.unseen]


def _of_flatten(config: Config, found: Sequence[Place], held: Holdings) -> list[Difference]:
    differences = []
    for name, slot, sizes in unmarked(config, found, held):
        code, said = code_of(slot.module), held.variables[slot.names[0]].flattened
        port = f"said to follow {said}" if said else "no order said"
        mend = f"kinit.flattened({code}, {sizes or '(channels, *spatial)'})"
        keras = f"Flatten of {(*sizes[1:], sizes[0])}, channels last" if sizes else "Flatten of channels-last data"
        differences.append(Difference(name, slot.module, "Flatten", keras, port, MEASURED["flatten"], mend))
    return differences


def _of_compile(config: Config, optimizer: torch.optim.Optimizer | None) -> list[Difference | Note]:
    compiled = config.get("compile_config")
    if not compiled:
        if optimizer is not None:
            raise ValueError(
                "`optimizer` is given, and `keras_config` has no optimizer to compare it with: give to_json() of the "
                "compiled model."
            )
        return []
    units = units_of(config)
    penalties = [
        value["config"]["l2"]
        for unit in units
        for key, value in unit.config.items()
        if key.endswith("_regularizer") and isinstance(value, dict) and (value.get("config") or {}).get("l2")
    ]
    embeddings = [unit.name for unit in units if unit.class_name == "Embedding" and unit.get("trainable", True)]
    return [
        *optimizers.compare_optimizer(compiled, optimizer, penalties),
        *optimizers.sparse_notes(compiled, embeddings),
        *optimizers.loss_notes(compiled),
    ]


def _laws(found: Sequence[Place], held: Holdings) -> tuple[dict[str, str], list[Note]]:
    """The law of each parameter by the config, and a note if kinit.apply would not draw it without being told."""
    try:
        rules = rules_of(paired(found), held)
    except ValueError as error:
        return {}, [Note(MODEL, "initializers", str(error))]
    given = set()
    for layer, weight, slot in found:
        if slot:
            role = slot.role.rpartition("/")[2]
            default = held.variables[slot.names[0]].default or KERAS_DEFAULTS.get(role)
            if default and recipe(rules[slot.names[0]]) != recipe(default):
                given.add(f"{layer.name} {weight.source.name}")
    told = "kinit.apply(port, kinit.rules_from_keras(keras_config, port))"
    notes = [Note(MODEL, f"initializers: {', '.join(sorted(given))}", told)] if given else []
    return {name: str(recipe(rule)) for name, rule in rules.items()}, notes


def _sorted(results: Iterable[Difference | Note]) -> tuple[tuple[Difference, ...], tuple[Note, ...]]:
    """The differences, what matters most first, and the notes, each once."""
    found = dict.fromkeys(results)
    differences = sorted((d for d in found if isinstance(d, Difference)), key=lambda d: -d.weight.size)
    return tuple(differences), tuple(note for note in found if isinstance(note, Note))
