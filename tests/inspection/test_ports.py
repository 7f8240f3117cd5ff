"""How layers and modules are put together: functions in forward, shared modules, order, and what people ran into."""

import functools
import json

import keras
import pytest
import torch
from keras import layers as kl
from torch import nn

import torch_kinit as kinit
from tests.support.compared_ports import without_second_bias
from torch_kinit.inspection.compare.differences import MEASURED

pytestmark = pytest.mark.usefixtures("_keras_on_cpu")


def sequential(shape, *layers, **compiled):
    model = keras.Sequential([keras.Input(shape), *layers])
    if compiled:
        model.compile(**compiled)
    return model.to_json()


class Holder(nn.Module):
    """A port whose forward is its own."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def whats(found):
    return {(d.layer, d.what) for d in found.differences}


CONVNET = sequential(
    (9, 9, 2),
    kl.Conv2D(3, 3, strides=2, padding="same", activation="relu", name="conv"),
    kl.MaxPooling2D(name="pool"),
    kl.Dropout(0.25, name="drop"),
    kl.Conv2D(4, 2, activation="relu", name="conv_2"),
    kl.Flatten(name="flat"),
    kl.Dropout(0.5, name="drop_2"),
    kl.Dense(5, activation="softmax", name="head"),
)


def test_functions_are_not_seen_and_not_reported():
    """A port with modules for its weights alone has no differences but the order of the Flatten; all else is listed."""
    conv, conv_2 = nn.Conv2d(2, 3, 3, 2), nn.Conv2d(3, 4, 2)
    found = kinit.compare(CONVNET, Holder(conv=conv, conv_2=conv_2, head=nn.Linear(4, 5)))
    assert whats(found) == set()  # one position is left: there is no order to a Flatten
    unseen = {(note.layer, note.what) for note in found.notes if note.mend == "a function in `forward`"}
    layers = [("pool", "MaxPooling2D"), ("drop", "Dropout"), ("flat", "Flatten"), ("drop_2", "Dropout")]
    assert unseen == {*layers, ("conv", "relu"), ("conv_2", "relu"), ("head", "softmax")}
    (padding,) = [note for note in found.notes if "padding" in note.what]
    assert padding.mend == "port.conv.padding = (1, 1), or in `forward`"


def careful_holder(**others):
    given = {"relu": nn.ReLU(), "drop": nn.Dropout(0.25), "drop_2": nn.Dropout(0.5), "pool": nn.MaxPool2d(2)}
    weights = {"conv": nn.Conv2d(2, 3, 3, 2, 1), "conv_2": nn.Conv2d(3, 4, 2), "head": nn.Linear(4, 5)}
    return Holder(**{**weights, **given, **others})


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({}, set()),
        ({"pool": nn.AvgPool2d(2)}, {("pool", "pooling")}),
        ({"relu": nn.GELU()}, {("conv", "activation")}),
        ({"drop": nn.Dropout(0.5), "drop_2": nn.Dropout(0.25)}, {("drop", "rate"), ("drop_2", "rate")}),  # by name
        ({"drop_2": nn.Identity()}, {("drop_2", "rate")}),  # one module for both
        ({"drop_3": nn.Dropout(0.1)}, {("(no layer)", "Dropout")}),
        ({"pad": nn.ZeroPad2d(1)}, set()),  # for what is not known
    ],
)
def test_modules_in_no_certain_order_are_put_together_by_kind(modules, expected):
    """One activation serves all layers; a class that Keras has not, or a rate, is a difference."""
    assert whats(kinit.compare(CONVNET, careful_holder(**modules))) == expected


class Square(nn.Module):
    def forward(self, x):
        return x * x


def test_a_module_of_ones_own_may_do_what_keras_does():
    """In a Sequential, too, where a missing activation would be a difference, and another module is not too much."""
    config = sequential((3,), kl.Dense(3, activation="relu"), kl.Dense(2))
    assert not kinit.compare(config, nn.Sequential(nn.Linear(3, 3), nn.Identity(), nn.Linear(3, 2))).ok
    found = kinit.compare(config, nn.Sequential(nn.Linear(3, 3), Square(), nn.Linear(3, 2)))
    assert found.ok
    assert [note.what for note in found.notes] == ["relu"]


def test_dropouts_in_another_order_may_be_right():
    """Where only forward tells which dropout comes first, the rates alone must be Keras'."""
    layers = [kl.Dropout(0.1), kl.Dense(3), kl.Dropout(0.2), kl.Dense(3)]
    port = Holder(a=nn.Linear(3, 3), b=nn.Linear(3, 3), late=nn.Dropout(0.2), early=nn.Dropout(0.1))
    assert kinit.compare(sequential((3,), *layers), port).ok
    port.early.p = 0.3
    assert len(kinit.compare(sequential((3,), *layers), port).differences) == 2


def test_a_pad_counts_where_it_stands_before_the_convolution():
    """A padding module before a strided convolution is its padding, in a Sequential and among attributes."""
    config = sequential((8, 8, 1), kl.Conv2D(2, 3, strides=2, padding="same", name="conv"))
    pad, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(1, 2, 3, 2)
    assert kinit.compare(config, nn.Sequential(pad, conv)).ok
    assert kinit.compare(config, Holder(pad=pad, conv=conv)).ok
    assert whats(kinit.compare(config, nn.Sequential(conv))) == {("conv", "padding")}
    assert kinit.compare(config, Holder(conv=conv)).ok  # F.pad may do it


def test_stacked_recurrent_layers_share_a_module():
    """Two Keras layers in one nn.LSTM have one set of arguments; what stands between them is torch's dropout."""
    config = sequential((5, 2), kl.LSTM(3, return_sequences=True, name="a"), kl.LSTM(3, name="b"))
    port = without_second_bias(nn.LSTM(2, 3, 2, batch_first=True))
    assert kinit.compare(config, port).ok
    assert whats(kinit.compare(config, nn.LSTM(2, 3, 2))) == {
        (x, w) for x in "ab" for w in ("batch_first", "second bias")
    }


@pytest.mark.parametrize(("between", "rate", "ok"), [(0.2, 0.2, True), (0.2, 0.0, False), (0.0, 0.2, False)])
def test_dropout_between_stacked_recurrent_layers(between, rate, ok):
    """torch's LSTM has it as an argument."""
    layers = [kl.LSTM(3, return_sequences=True), kl.Dropout(between, name="drop"), kl.LSTM(3)]
    port = without_second_bias(nn.LSTM(2, 3, 2, batch_first=True, dropout=rate))
    assert kinit.compare(sequential((5, 2), *layers), port).ok == ok


def test_order_and_modules_say_which_module_is_which():
    """As for from_keras: a port that registers its modules in another order needs one of both."""
    config = sequential((4,), kl.Dense(4, name="a", activation="relu"), kl.Dense(4, name="b", trainable=False))
    port = Holder(b=nn.Linear(4, 4), a=nn.Linear(4, 4))
    port.b.requires_grad_(False)
    with pytest.raises(ValueError, match="Say which is meant"):
        kinit.compare(config, port)
    assert kinit.compare(config, port, order=["b", "a"]).layers == {"a": "a", "b": "b"}
    assert kinit.compare(config, port, modules={"a": "a", "b": "b"}).ok
    assert whats(kinit.compare(config, port, modules={"a": "b", "b": "a"})) == {("a", "trainable"), ("b", "trainable")}


ERRORS = {
    "order of a string": ({"order": "ab"}, TypeError, "`order` must be a list of the names of Keras layers"),
    "order of another": ({"order": ["a", "c"]}, ValueError, "`order` has 'c', which is no Keras layer"),
    "order lacks one": ({"order": ["a"]}, ValueError, "`order` leaves out 'b'"),
    "twice": ({"order": ["a", "b", "b"]}, ValueError, "`order` has a layer twice"),
    "no module": ({"modules": {"a": "c"}}, ValueError, "the path 'c', which holds no weights"),
}


@pytest.mark.parametrize(("given", "error", "text"), ERRORS.values(), ids=ERRORS)
def test_bad_arguments_are_refused(given, error, text):
    """In a sentence that names the argument."""
    config = sequential((4,), kl.Dense(4, name="a"), kl.Dense(4, name="b"))
    with pytest.raises(error, match=text):
        kinit.compare(config, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), **given)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = kl.Dense(2)

    def call(self, x):
        return self.dense(x)


MISMATCHES = {
    "units": ((3,), kl.Dense(4), nn.Linear(3, 2), r"has kernel \(3, 4\)"),
    "use_bias": ((3,), kl.Dense(4, use_bias=False), nn.Linear(3, 4), "has no weight for 0.bias"),
    "groups": ((8, 4), kl.Conv1D(4, 3, groups=2), nn.Conv1d(4, 4, 3), r"has kernel \(3, 2, 4\)"),
    "depth_multiplier": ((8, 4), kl.DepthwiseConv1D(3), nn.Conv1d(4, 8, 3, groups=4), r"has kernel \(3, 4, 1\)"),
    "scale": ((3,), kl.LayerNormalization(scale=False), nn.LayerNorm(3), "has beta"),
    "axis": ((2, 3), kl.LayerNormalization(axis=[1, 2]), nn.LayerNorm(3), r"has gamma \(2, 3\)"),
    "renorm": ((3,), kl.BatchNormalization(renorm=True), nn.BatchNorm1d(3), "moving_stddev"),
    "reset_after": (
        (5, 3),
        kl.GRU(2, reset_after=False),
        nn.GRU(3, 2),
        "reset_after=False, for which torch has no twin",
    ),
    "use_gate": ((5, 4), kl.ConvLSTM1D(2, 3), nn.LSTM(4, 2), "a ConvLSTM1D, for which torch has no twin"),
    "PReLU": ((5, 4), kl.PReLU(), nn.PReLU(4), r"has alpha \(5, 4\)"),
}


@pytest.mark.parametrize(("shape", "layer", "module", "text"), MISMATCHES.values(), ids=MISMATCHES)
def test_other_weights_are_errors_of_matching(shape, layer, module, text):
    """What shows in the shapes, or has no twin, is refused by name as it is by from_keras."""
    shape = (4, *shape) if isinstance(layer, kl.ConvLSTM1D) else shape
    with pytest.raises(ValueError, match=text):
        kinit.compare(sequential(shape, layer), nn.Sequential(module))


def test_a_subclassed_model_tells_nothing_to_compare():
    """Its config has weights and no arguments, and nothing to compare must not pass for no differences."""
    model = Subclassed()
    model(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="saves its weights and none of its layers' arguments"):
        kinit.compare(kinit.keras_config(model), nn.Sequential(nn.Linear(3, 2)))


def test_every_form_of_a_config_is_compared(tmp_path):
    """A live model, what keras_config makes of it, a dict, and a .keras file tell the same."""
    model = keras.Sequential([keras.Input((3, 3, 2)), kl.BatchNormalization(name="norm")])
    model.save(tmp_path / "model.keras")
    port = nn.BatchNorm2d(2)
    forms = [model, kinit.keras_config(model), model.to_json(), tmp_path / "model.keras"]
    assert [whats(kinit.compare(form, port)) for form in forms] == [{("norm", "momentum"), ("norm", "epsilon")}] * 4


def test_nested_and_shared_layers_are_found_by_their_paths():
    """A layer of a model in a model goes by both names, and one that is called twice is compared once."""
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(4, activation="gelu", name="dense")], name="inner")
    inputs = keras.Input((4,))
    shared = kl.Dense(4, activation="tanh", name="shared")
    model = keras.Model(inputs, kl.LayerNormalization(name="norm")(shared(shared(inner(inputs)))))
    port = nn.Sequential(nn.Linear(4, 4), nn.GELU("tanh"), nn.Linear(4, 4), nn.Tanh(), nn.LayerNorm(4))
    found = kinit.compare(model, port)
    assert found.layers == {"inner/dense": "0", "shared": "2", "norm": "4"}
    assert whats(found) == {("inner/dense", "activation"), ("norm", "epsilon")}


def test_a_time_distributed_layer_is_compared_as_the_layer_in_it():
    """Its arguments are those of the layer inside."""
    config = sequential(
        (3, 9, 2), kl.TimeDistributed(kl.Conv1D(4, 3, strides=2, padding="same", name="x"), name="conv")
    )
    assert kinit.compare(config, nn.Sequential(nn.Conv1d(2, 4, 3, 2, 1))).ok
    assert whats(kinit.compare(config, nn.Sequential(nn.Conv1d(2, 4, 3)))) == {("conv", "strides"), ("conv", "padding")}


MASKED = {
    "rnn": ([kl.LSTM(3, name="user")], ["user"]),
    "through a dense": ([kl.Dense(3), kl.GRU(3, name="user")], ["user"]),
    "mean": ([kl.GlobalAveragePooling1D(name="user")], ["user"]),
    "outputs": ([kl.LSTM(3, return_sequences=True, name="user")], ["user", "user"]),
}


@pytest.mark.parametrize(("layers", "users"), MASKED.values(), ids=MASKED)
def test_users_of_a_mask_are_listed(layers, users):
    """Each layer that a mask reaches, and the loss if it reaches the outputs."""
    model = keras.Sequential([keras.Input((5,)), kl.Embedding(4, 3, mask_zero=True), *layers])
    modules = [nn.Embedding(4, 3)]
    for layer in layers:
        cls = {"LSTM": nn.LSTM, "GRU": nn.GRU, "Dense": nn.Linear}.get(type(layer).__name__)
        modules += [cls(3, 3)] if cls else []
    notes = kinit.compare(model, nn.Sequential(*modules)).notes
    assert [note.layer for note in notes if "mask" in note.what] == users


# What threads of people whose port trained worse came to, and where a config tells it.
FOUND_BY_PEOPLE = {
    "epsilon of a norm": (  # gzuidhof/nn-transfer pull 3
        *(sequential((8, 8, 3), kl.BatchNormalization()), nn.Sequential(nn.BatchNorm2d(3, momentum=0.01)), "epsilon"),
    ),
    "momentum the other way round": (  # vlawhern/arl-eegmodels 39, r9y9/tacotron_pytorch 19, fastestimator pull 1201
        *(sequential((8, 8, 3), kl.BatchNormalization()), nn.Sequential(nn.BatchNorm2d(3, 1e-3, 0.99)), "momentum"),
    ),
    "strides with padding": (  # benchopt/benchmark_resnet_classif 30
        sequential((8, 8, 3), kl.ZeroPadding2D(1), kl.Conv2D(4, 3, strides=2)),
        *(nn.Sequential(nn.Conv2d(3, 4, 3, 2)), "padding"),
    ),
    "strides": (*(sequential((8, 8, 3), kl.Conv2D(4, 1, strides=2)), nn.Sequential(nn.Conv2d(3, 4, 1)), "strides"),),
    "softmax for logits": (  # "Significant differences between Keras/TensorFlow and Torch"
        sequential((3,), kl.Dense(4), loss=keras.losses.CategoricalCrossentropy(from_logits=True)),
        *(nn.Sequential(nn.Linear(3, 4), nn.Softmax(1)), "activation"),
    ),
    "order of a Flatten": (
        sequential((4, 4, 2), kl.Conv2D(3, 3), kl.Flatten(), kl.Dense(4)),
        *(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4)), "Flatten"),
    ),
    "batch_first": (  # "The loss in PyTorch decreases slower than in Keras"
        *(sequential((6, 3), kl.LSTM(4)), without_second_bias(nn.LSTM(3, 4)), "batch_first"),
    ),
    "two biases": (sequential((6, 3), kl.LSTM(4)), nn.LSTM(3, 4, batch_first=True), "second bias"),
    "hard sigmoid": (
        *(sequential((3,), kl.Dense(4, activation="sigmoid"), kl.Dense(1)),),
        *(nn.Sequential(nn.Linear(3, 4), nn.Hardsigmoid(), nn.Linear(4, 1)), "activation"),
    ),
    "channels first": (  # "Recreating Keras performance in PyTorch"
        sequential(
            (2, 6, 6, 6), kl.Conv3D(4, 5, padding="same", data_format="channels_first"), kl.BatchNormalization(1)
        ),
        nn.Sequential(nn.Conv3d(2, 4, 5), nn.BatchNorm3d(4, 1e-3, 0.01)),
        "padding",
    ),
}


@pytest.mark.parametrize(("config", "port", "what"), FOUND_BY_PEOPLE.values(), ids=FOUND_BY_PEOPLE)
def test_what_people_ran_into_is_found(config, port, what):
    """Each cause is the one difference of a port that is right but for it."""
    assert [d.what for d in kinit.compare(config, port).differences] == [what]


def test_the_unbiased_variance_is_noted():
    """torch's running variance is another estimate, which no argument changes: a note, not a difference."""
    found = kinit.compare(sequential((8, 8, 3), kl.BatchNormalization()), nn.BatchNorm2d(3, 1e-3, 0.01))
    assert found.ok
    assert any("unbiased" in note.what for note in found.notes)


def test_laws_other_than_the_defaults_are_listed():
    """The note names each layer's law; those that kinit.apply draws untold are not mentioned."""
    layers = [kl.Dense(3, name="a"), kl.Dense(3, kernel_initializer="he_normal", name="b"), kl.LSTM(2, name="c")]
    config = sequential((5, 3), *layers)
    found = kinit.compare(config, nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.LSTM(3, 2, batch_first=True)))
    assert [note.what for note in found.notes if "initializers" in note.what] == ["initializers: b he_normal"]
    assert found.laws["1.weight"] == "he_normal"
    assert found.laws["2.bias_ih_l0"] == "unit_forget_bias"


def test_nothing_of_the_port_is_changed():
    """Neither values nor attributes, nor torch's random state."""
    port = careful_holder()
    before = {name: tensor.clone() for name, tensor in port.state_dict().items()}
    state = torch.get_rng_state()
    kinit.compare(CONVNET, port)
    assert all(torch.equal(before[name], tensor) for name, tensor in port.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_a_port_on_meta_is_compared():
    """Modules are looked at, not their values."""
    with torch.device("meta"):
        port = nn.Sequential(nn.LSTM(3, 4, batch_first=True))
    found = kinit.compare(sequential((6, 3), kl.LSTM(4)), port)
    assert [(d.what, d.weight) for d in found.differences] == [("second bias", MEASURED["second_bias"])]


def test_a_config_of_keras_2_is_compared():
    """Its names of arguments and nodes are read, its sizes worked out, and float32's noise is not passed on."""
    node = [[["conv", 0, 0, {}]]], [[["leaky", 0, 0, {}]]]
    layers = [
        {"class_name": "InputLayer", "name": "in", "config": {"batch_input_shape": [None, 8, 8, 1], "name": "in"}},
        {
            "class_name": "Conv2D",
            "name": "conv",
            "config": {"name": "conv", "filters": 2, "kernel_size": [3, 3], "strides": [2, 2], "padding": "same"},
            "inbound_nodes": [[["in", 0, 0, {}]]],
        },
        {
            "class_name": "LeakyReLU",
            "name": "leaky",
            "config": {"name": "leaky", "alpha": 0.30000001192092896},
            "inbound_nodes": node[0],
        },
        {
            "class_name": "MaxPooling2D",
            "name": "pool",
            "config": {"padding": "same", "strides": [1, 1]},
            "inbound_nodes": node[1],
        },
    ]
    config = {"layers": layers, "input_layers": [["in", 0, 0]], "output_layers": [["pool", 0, 0]]}
    port = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.LeakyReLU(), nn.MaxPool2d(2, 1))
    found = kinit.compare({"class_name": "Functional", "keras_version": "2.15.0", "config": config}, port)
    mends = {
        "port[1] = nn.LeakyReLU(negative_slope=0.3)",
        "nn.ZeroPad2d((0, 1, 0, 1)) before port[0], whose padding is then 0",
        "nn.ConstantPad2d((0, 1, 0, 1), float('-inf')) before port[2]",
    }
    assert {d.mend for d in found.differences} == mends


def attended(layer, **arguments):
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, layer(inputs, inputs, **arguments))


def scored():
    inputs = keras.Input((5, 4))
    return keras.Model(inputs, kl.Attention(name="x")([inputs, inputs]))


def joined():
    inputs = keras.Input((4, 4, 2))
    return keras.Model(inputs, kl.Concatenate(name="x")([inputs, inputs]))


def permuted():
    return keras.Sequential([keras.Input((4, 2)), kl.Permute((2, 1), name="x")])


def bidirectional(**arguments):
    return keras.Sequential([keras.Input((5, 4)), kl.Bidirectional(kl.GRU(3), name="x")])


def dense(**arguments):
    return keras.Sequential([keras.Input((4,)), kl.Dense(3, name="x", **arguments)])


MHA, GRU = nn.MultiheadAttention(4, 2, batch_first=True), nn.GRU(4, 3, batch_first=True, bidirectional=True)
BY_HAND = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
NOTES = {
    "penalty": (dense(kernel_regularizer="l2"), nn.Linear(4, 3), "weight_decay=0.02"),
    "activity": (dense(activity_regularizer="l1"), nn.Linear(4, 3), "add it to the loss"),
    "frozen norm": (
        *(sequential((4,), kl.BatchNormalization(trainable=False, name="x")),),
        *(nn.BatchNorm1d(4, 1e-3, 0.01).requires_grad_(False).eval(), "port.eval()  # after each port.train()"),
    ),
    "constraint": (dense(bias_constraint="non_neg"), nn.Linear(4, 3), "to the weight after each step"),
    "lambda": (dense(activation=lambda x: x * 2), nn.Linear(4, 3), "see that `forward` does it"),
    "causal mask": (attended(kl.MultiHeadAttention(2, 2, name="x"), use_causal_mask=True), MHA, "attn_mask="),
    "attention by hand": (attended(kl.MultiHeadAttention(2, 2, name="x")), BY_HAND, "by hand"),
    "scale": (scored(), nn.Sequential(), "scale=1.0"),
    "last state": (bidirectional(), GRU, "not out[:, -1]"),
    "join": (joined(), nn.Sequential(), "torch.cat(tensors, 1)"),
    "permute": (permuted(), nn.Sequential(), "after the change of layout"),
    "unknown size": (
        keras.Sequential([keras.Input((None, 2)), kl.Conv1D(3, 3, strides=2, padding="same", name="x")]),
        *(nn.Conv1d(2, 3, 3, 2, 1), "the size of the inputs is not known"),
    ),
}


@pytest.mark.parametrize(("model", "port", "line"), NOTES.values(), ids=NOTES)
@pytest.mark.filterwarnings("ignore:.*lambda.*:UserWarning", "ignore:.*not a serializable.*:UserWarning")
def test_what_no_module_shows_is_noted(model, port, line):
    """A note names the layer and what to do; there is no difference."""
    found = kinit.compare(model, port)
    assert found.ok
    assert any(note.layer == "x" and line in note.mend for note in found.notes)


def test_a_layer_of_another_class_is_noted(register_keras):
    """Its weights are matched, and its arguments are not Keras' to compare."""
    register_keras("Mine", weights={"kernel": "glorot_uniform"})
    layer = {"class_name": "Mine", "module": "mine", "registered_name": "Mine", "config": {"name": "x"}}
    config = {"class_name": "Sequential", "config": {"layers": [layer]}}
    found = kinit.compare(config, nn.Linear(3, 2, bias=False))
    assert [note.what for note in found.notes] == ["of class Mine, not Keras' own"]


JUNK = {
    "a key": ((2, "config", "pool_size"), ["x", "x"], "`keras_config` is not as Keras saves it"),
    "initializer": ((1, "config", "bias_initializer", "registered_name"), -1, "`keras_config` is not as Keras saves"),
    "strides": ((1, "config", "strides"), [0, 0], "The config of layer 'conv' is not as Keras saves it"),
    "config": ((2, "config"), "x", "`keras_config` is not as Keras saves it"),
}


@pytest.mark.parametrize(("path", "value", "text"), JUNK.values(), ids=JUNK)
def test_what_keras_cannot_have_saved_is_told(path, value, text):
    """A value of another kind is an error that says where it stands."""
    config = json.loads(CONVNET)
    *way, last = path
    place = functools.reduce(lambda part, key: part[key], way, config["config"]["layers"])
    place[last] = value
    with pytest.raises(ValueError, match=text) as caught:
        kinit.compare(config, careful_holder())
    assert len(str(caught.value)) < 400
