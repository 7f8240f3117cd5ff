"""The optimizer and loss of a compiled model: what torch's should be, and that it then trains as Keras does."""

import json
from pathlib import Path

import keras
import pytest
import torch
from torch import nn

import torch_kinit as kinit
from tests.support.backends import backend
from tests.support.compared_ports import CAREFUL
from torch_kinit.inspection.compare.differences import MEASURED

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")
ko, to = keras.optimizers, torch.optim


def config_of(optimizer, loss="mse", **layer):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense", **layer)])
    model.compile(optimizer, loss)
    return model.to_json()


def compared(optimizer, made=None, **more):
    port = nn.Sequential(nn.Linear(3, 2))
    return kinit.compare(config_of(optimizer, **more), port, optimizer=made and made(port.parameters()))


# Keras' optimizer, torch's as people make it, and the arguments that differ with their measured causes.
CARELESS = {
    "Adam": ("adam", to.Adam, {"eps": "adam_epsilon"}),
    "Adam's betas": (ko.Adam(beta_1=0.5), lambda p: to.Adam(p, eps=1e-7), {"betas": "unmeasured"}),
    "learning rate": (ko.Adam(0.1), lambda p: to.Adam(p, eps=1e-7), {"lr": "learning_rate"}),
    "amsgrad": (ko.Adam(amsgrad=True), lambda p: to.Adam(p, eps=1e-7), {"amsgrad": "unmeasured"}),
    "coupled decay": (
        ko.Adam(weight_decay=0.01),
        lambda p: to.Adam(p, weight_decay=0.01),
        {"optimizer": "weight_decay"},
    ),
    "AdamW's own decay": (
        ko.AdamW(weight_decay=0.1),
        lambda p: to.AdamW(p, eps=1e-7),
        {"weight_decay": "weight_decay"},
    ),
    "AdamW's decay for Adam": ("adam", lambda p: to.AdamW(p, eps=1e-7), {"weight_decay": "weight_decay"}),
    "RMSprop": (
        *("rmsprop", to.RMSprop),
        {"lr": "learning_rate", "alpha": "alpha", "eps": "rmsprop_epsilon"},
    ),
    "dampening": (ko.SGD(0.01, 0.9), lambda p: to.SGD(p, 0.01, 0.9, dampening=0.9), {"dampening": "dampening"}),
    "momentum": (ko.SGD(0.01, 0.9), lambda p: to.SGD(p, 0.01), {"momentum": "dampening"}),
    "nesterov": (ko.SGD(0.01, 0.9, nesterov=True), lambda p: to.SGD(p, 0.01, 0.9), {"nesterov": "dampening"}),
    "SGD's coupled decay": (
        *(ko.SGD(0.01, weight_decay=0.1), lambda p: to.SGD(p, 0.01, weight_decay=0.1)),
        {"weight_decay": "weight_decay"},
    ),
    "RMSprop's coupled decay": (
        *(ko.RMSprop(weight_decay=0.1), lambda p: to.RMSprop(p, 1e-3, 0.9, 1e-7, weight_decay=0.1)),
        {"weight_decay": "weight_decay"},
    ),
    "Adagrad": (
        *(ko.Adagrad(0.01), to.Adagrad),
        {"initial_accumulator_value": "accumulator", "eps": "unmeasured"},
    ),
    "Adadelta": (
        *(ko.Adadelta(), to.Adadelta),
        {"lr": "learning_rate", "rho": "rho", "eps": "unmeasured"},
    ),
    "Adamax": (ko.Adamax(0.002), to.Adamax, {"eps": "unmeasured"}),
    "Nadam": (ko.Nadam(0.002), to.NAdam, {"eps": "adam_epsilon", "momentum_decay": "momentum_decay"}),
    "another": ("sgd", to.Adam, {"optimizer": "function"}),
}


@pytest.mark.parametrize(("keras_optimizer", "made", "planted"), CARELESS.values(), ids=CARELESS)
def test_an_optimizer_is_compared_argument_by_argument(keras_optimizer, made, planted):
    """Each argument that differs is a difference, with its measured cause; and torch's as the note has it has none."""
    found = compared(keras_optimizer, made)
    assert {d.what: d.weight for d in found.differences} == {k: MEASURED[cause] for k, cause in planted.items()}
    line = compared(keras_optimizer).notes[0].mend

    def careful(parameters):
        return eval(line, {"torch": torch, "port": nn.ParameterList(parameters)})

    assert compared(keras_optimizer, careful).ok


@pytest.mark.parametrize("key", ["alpha", "eps", "lr"])
def test_the_mend_of_an_optimizer_mends(key):
    """The line sets the argument in each group."""
    port = nn.Sequential(nn.Linear(3, 2))
    optimizer, config = to.RMSprop(port.parameters()), config_of("rmsprop")
    found = {d.what: d for d in kinit.compare(config, port, optimizer=optimizer).differences}
    exec(found[key].mend, {"optimizer": optimizer})
    assert {d.what for d in kinit.compare(config, port, optimizer=optimizer).differences} == found.keys() - {key}


def test_the_epsilon_of_a_step_is_right_as_well():
    """Keras' epsilon before the bias correction is torch's divided by a root that grows with the steps."""
    found = compared("adam", lambda p: to.Adam(p, eps=1e-7 / (1 - 0.999) ** 0.5))
    assert found.ok
    assert not compared("adam", lambda p: to.Adam(p, eps=1e-7 / (1 - 0.999**7) ** 0.5)).ok


def test_the_epsilon_of_adagrad_is_part_of_its_accumulator():
    """Keras has it inside the root, where torch's sum of squares may begin with it; a small one may stand outside."""
    large = ko.Adagrad(0.01, epsilon=0.01)
    assert compared(large, lambda p: to.Adagrad(p, 0.01, initial_accumulator_value=0.11, eps=0.0)).ok
    found = compared(large, lambda p: to.Adagrad(p, 0.01, initial_accumulator_value=0.1, eps=0.01)).differences
    assert {d.what for d in found} == {"initial_accumulator_value", "eps"}
    for accumulator, eps in ((0.1 + 1e-7, 0.0), (0.1, 1e-7)):
        assert compared(ko.Adagrad(0.01), lambda p, a=accumulator, e=eps: to.Adagrad(p, 0.01, 0, 0, a, e)).ok


def test_a_decay_may_be_the_l2_penalty_of_sgd():
    """Twice the factor of an L2 regularizer is what SGD's weight decay is."""
    penalty = {"kernel_regularizer": keras.regularizers.L2(0.05)}
    assert compared(ko.SGD(0.01), lambda p: to.SGD(p, 0.01, weight_decay=0.1), **penalty).ok
    assert not compared(ko.SGD(0.01), lambda p: to.SGD(p, 0.01, weight_decay=0.05), **penalty).ok


NOTES = {
    "clipnorm": (ko.SGD(clipnorm=1.0), "for each Keras variable"),
    "global_clipnorm": (ko.SGD(global_clipnorm=1.0), "nn.utils.clip_grad_norm_(port.parameters(), 1.0)"),
    "clipvalue": (ko.SGD(clipvalue=0.5), "nn.utils.clip_grad_value_(port.parameters(), 0.5)"),
    "schedule": (ko.SGD(ko.schedules.ExponentialDecay(0.1, 9, 0.9)), "rate inside the velocity"),
    "use_ema": (ko.Adam(use_ema=True), "AveragedModel"),
    "accumulation": (ko.Adam(gradient_accumulation_steps=4), "step after so many backward passes"),
    "SGD decay": (ko.SGD(weight_decay=0.1), "p.mul_(1 - lr * 0.1)"),
    "RMSprop's decay": (ko.RMSprop(weight_decay=0.1), "p.mul_(1 - lr * 0.1)"),
    "epsilon's place": (ko.Adam(), "1e-07 / (1 - 0.999 ** t) ** 0.5"),
    "epsilon in the root": (ko.RMSprop(), "no argument mends it"),
    "Adagrad's epsilon": (ko.Adagrad(), "initial_accumulator_value=0.1000001 and eps=0.0 are the same"),
    "no twin": (ko.Lion(), "torch has none"),
}


@pytest.mark.parametrize(("optimizer", "line"), NOTES.values(), ids=NOTES)
def test_what_no_argument_does_is_noted(optimizer, line):
    """What the training loop must do has a line of its own."""
    assert any(line in note.mend for note in compared(optimizer).notes)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adagrad", "adadelta", "adamax", "nadam", "adam", "adamw"])
def test_an_optimizer_by_its_name_has_keras_defaults(name):
    """A config may have the name alone; it tells what that of the optimizer does."""
    named, whole = json.loads(config_of(name)), json.loads(config_of(name))
    named["compile_config"]["optimizer"] = name
    port = nn.Sequential(nn.Linear(3, 2))
    for optimizer in (None, to.Adam(port.parameters()), to.SGD(port.parameters(), 0.1)):
        found, expected = (kinit.compare(config, port, optimizer=optimizer) for config in (named, whole))
        assert found.to_dict() == expected.to_dict()


def test_the_decay_of_keras_2_is_noted():
    """It is one of the learning rate, which torch's optimizers do not have."""
    config = json.loads(config_of("sgd"))
    config["compile_config"]["optimizer"] = {"class_name": "SGD", "config": {"learning_rate": 0.01, "decay": 0.001}}
    notes = kinit.compare(config, nn.Sequential(nn.Linear(3, 2))).notes
    assert any(note.what == "decay=0.001" and "lr / (1 + 0.001 * t)" in note.mend for note in notes)


LOSSES = {
    "probabilities": ("categorical_crossentropy", "twice"),
    "logits": (keras.losses.BinaryCrossentropy(from_logits=True), "nn.BCEWithLogitsLoss() on the outputs"),
    "smoothing": (keras.losses.CategoricalCrossentropy(True, 0.1), "nn.CrossEntropyLoss(label_smoothing=0.1)"),
    "sum": (keras.losses.MeanSquaredError(reduction="sum"), "reduction='sum'"),
}


@pytest.mark.parametrize(("loss", "line"), LOSSES.values(), ids=LOSSES)
def test_what_a_loss_tells_is_noted(loss, line):
    """Whether it takes logits, smooths or sums."""
    assert any(line in note.mend for note in compared("sgd", loss=loss).notes)


def test_an_optimizer_needs_one_to_be_compared_with():
    """A config without compile_config, and something else than an optimizer, are refused."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    port = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="`optimizer` is given, and `keras_config` has no optimizer"):
        kinit.compare(model.to_json(), port, optimizer=to.SGD(port.parameters(), 0.1))
    with pytest.raises(TypeError, match=r"`optimizer` must be a torch\.optim\.Optimizer, got 'adam'"):
        kinit.compare(config_of("sgd"), port, optimizer="adam")


CURVE = """
import sys, numpy as np
sys.path.insert(0, support)
import keras
from compared_keras import MODELS
model, rng = MODELS[name](rate=0.0), np.random.default_rng(0)
shape = (20, 16, *model.inputs[0].shape[1:])
if name == "gru":
    x = rng.integers(20, size=shape)
    y = x.sum(2) % 3
else:
    x = rng.standard_normal(shape).astype("float32")
    y = x.mean((2, 3))[..., None] * 3
start, config = model.get_weights(), model.to_json()
result = x, y, start, config, [float(model.train_on_batch(*batch)) for batch in zip(x, y)]
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transformer", "gru"])
def test_a_careful_port_has_keras_own_loss_curve(name):
    """Twenty steps with the optimizer, the epsilon and the loss of the notes: the losses are Keras' to 1e-5."""
    support = str(Path(__file__).parents[1] / "support")
    inputs, targets, start, config, expected = backend("tensorflow")(CURVE, support=support, name=name)
    port = CAREFUL[name]()
    for module in port.modules():
        module.p = module.dropout = 0.0
    kinit.from_keras(port, start, keras_config=config)
    found = kinit.compare(config, port)
    lines = {note.what.partition(" ")[0]: note.mend for note in found.notes if note.layer == "compile_config"}
    optimizer = eval(lines["optimizer"], {"torch": torch, "port": port})
    assert kinit.compare(config, port, optimizer=optimizer).ok
    epsilon = lines.get("epsilon", ": ").partition(": ")[2]
    criterion = eval(lines.get("loss", "nn.MSELoss() on").partition(" on")[0], {"nn": nn})
    losses = []
    for t, (x, y) in enumerate(zip(inputs, targets, strict=True), 1):
        for group in optimizer.param_groups:
            exec(epsilon, {"group": group, "t": t})
        optimizer.zero_grad()
        loss = criterion(port(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5)
    assert max(losses) - min(losses) > 1e-2  # it trains: a tolerance a thousand times smaller can tell
