"""Small Keras models, each with what one kind of layer, initializer or program does, beside their torch ports."""

from functools import partial

from torch import nn

from tests.support.port_models import Port, conv


def stack(twins, *modules, shape=(5,), dtype="float32", **kwargs):
    """A Sequential of these layers, and of these modules."""
    source = f'def make():\n    return keras.Sequential([keras.Input({shape}, dtype="{dtype}"), {twins}])'
    return Port(source, lambda: nn.Sequential(*[getattr(nn, cls)(*sizes) for cls, *sizes in modules]), **kwargs)


def program(source, make, layers=()):
    """Keras code of several statements, which returns the model."""
    return Port("def make():\n" + source, make, layers)


def lookup(tie):
    model = nn.ModuleDict({"words": nn.Embedding(11, 5), "mid": nn.Linear(5, 5), "out": nn.Linear(5, 11, bias=False)})
    if tie:
        model["out"].weight = model["words"].weight
    return model


def reversible(tie, *layers):
    return program(
        f"""
    words = kl.ReversibleEmbedding(11, 5, tie_weights={tie})
    x = keras.Input((7,), dtype="int32")
    y = kl.Dense(5, name="mid")(words(x))
    return keras.Model(x, words(y, reverse=True))
""",
        partial(lookup, tie),
        layers,
    )


TIED = reversible(True, ("", lambda table: {"words.weight": table, "out.weight": table}, 1), "mid")
TWO, THREE = (("Linear", 5, 4), ("Linear", 4, 3)), (("Linear", 5, 4), ("Linear", 4, 3), ("Linear", 3, 2))
SEPARABLE = stack(
    'kl.Dropout(0.1), kl.SeparableConv1D(4, 3, bias_initializer="random_normal"), kl.Dense(2)',
    *(("Conv1d", 5, 5, 3, 1, 0, 1, 5, False), ("Conv1d", 5, 4, 1), ("Linear", 4, 2)),
    shape=(8, 5),
)
RANDOM_BIASES = stack(
    'kl.LSTM(4, bias_initializer="random_normal", return_sequences=True),'
    'kl.LSTM(4, bias_initializer="random_normal", unit_forget_bias=False, return_sequences=True),'
    'kl.GRU(4, bias_initializer="random_normal", recurrent_initializer="he_normal"), kl.Dense(2)',
    *(("LSTM", 5, 4), ("LSTM", 4, 4), ("GRU", 4, 4), ("Linear", 4, 2)),
    shape=(7, 5),
)
LAWS = stack(
    'kl.Conv2D(4, 3, kernel_initializer="he_normal", bias_initializer="truncated_normal"),'
    'kl.DepthwiseConv2D(3, depthwise_initializer="lecun_normal"), kl.Dense(6, kernel_initializer="random_uniform"),'
    'kl.Dense(5, kernel_initializer="orthogonal")',
    *(("Conv2d", 3, 4, 3), ("Conv2d", 4, 4, 3, 1, 0, 1, 4), ("Linear", 4, 6), ("Linear", 6, 5)),
    shape=(8, 8, 3),
    orthogonal="3.weight",
)
NONES = stack("kl.Dense(4, bias_initializer=None), kl.Dense(3, bias_initializer=None)", *TWO)
ATTENTION = program(
    """
    layers = [kl.MultiHeadAttention(2, 3), kl.Dense(4)]
    x = keras.Input((7, 6))
    return keras.Model(x, layers[1](layers[0](x, x)))
""",
    lambda: nn.Sequential(nn.MultiheadAttention(6, 2), nn.Linear(6, 4)),
)

# Ports, and what `replay_keras` must be told beside the saved config.
WITH_CONFIG = {
    "random biases": (RANDOM_BIASES, {}),
    "other laws": (LAWS, {}),
    "one separable layer for two modules": (SEPARABLE, {}),
    "biases that are None": (NONES, {}),
    "initializers made before their layers": (
        stack("kl.Dense(4, kernel_initializer=ki.RandomNormal(stddev=0.02)), kl.Dropout(0.1),"
              "kl.Dense(3, kernel_initializer='he_normal', bias_initializer=ki.RandomUniform(-0.1, 0.1)),"
              "kl.Dense(2, kernel_initializer=ki.VarianceScaling(2.0, 'fan_out', 'untruncated_normal'))", *THREE), {}),
    "seeds of its own": (
        stack("kl.Dense(4, kernel_initializer=ki.HeNormal(7)), kl.Dropout(0.1, seed=3), kl.Dense(3),"
              "kl.Dense(2, kernel_initializer=ki.Orthogonal(0.5, keras.random.SeedGenerator(2**31 - 1)),"
              "bias_initializer=ki.RandomNormal(seed=0))", *THREE, orthogonal="2.weight"), {}),
    "initializers without chance": (
        stack("kl.Dense(4, kernel_initializer=ki.Constant(0.25)), kl.Dense(3, kernel_initializer='identity',"
              "bias_initializer='ones'), kl.Dense(2)", *THREE), {}),
    "modules in another order": (
        Port(stack("kl.Dense(4, name='a'), kl.Dense(4, name='b'), kl.BatchNormalization(name='c'), kl.Dense(3)").source,
             lambda: nn.ModuleDict({"z": nn.Linear(4, 4), "y": nn.Linear(5, 4), "x": nn.Linear(4, 3)}),
             ("y", "z", ("", lambda *_: {}, 4), "x")), {"modules": {"b": "z", "a": ["y"], "c": None}}),
    "a nested model": (program("""
    inner = [keras.Input((5,)), kl.Dense(4, name="in"), kl.Dropout(0.1), kl.Dense(3, name="out")]
    encoder = keras.Sequential(inner, name="encoder")
    x = keras.Input((5,))
    return keras.Model(x, kl.Dense(2)(encoder(x)))
""", lambda: nn.ModuleDict({"c": nn.Linear(3, 2), "b": nn.Linear(4, 3), "a": nn.Linear(5, 4)}), ("a", "b", "c")),
        {"modules": {"encoder/in": "a", "encoder/out": "b"}}),
    "a layer made before what it is called on": (program("""
    x = keras.Input((5,))
    y = kl.Dropout(0.1, name="drop")(kl.Dense(4, name="a")(x))
    return keras.Model(x, kl.Dense(3, name="b")(y))
""", lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))), {"order": ["drop", "a", "b"]}),
    "layers that are added": (program("""
    model = keras.Sequential()
    model.add(keras.Input((5,)))
    model.add(kl.Dense(4, bias_initializer=None))
    model.add(kl.Dense(3))
    return model
""", lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))), {"build": "functional"}),
    "tied embeddings": (TIED, {}),
    "untied embeddings": (reversible(False, "words", "out", "mid"), {"modules": {"mid": "mid"}}),
    "convolutions in groups": (
        stack("kl.Conv2D(6, 3, groups=3, kernel_initializer='he_normal')", ("Conv2d", 3, 6, 3, 1, 0, 1, 3),
              shape=(8, 8, 3), layers=(("0", conv, 2),)), {"depthwise": False}),
    "convolutions in groups, here depthwise": (
        stack("kl.Conv2D(6, 3, groups=3, kernel_initializer='he_normal')", ("Conv2d", 3, 6, 3, 1, 0, 1, 3),
              shape=(8, 8, 3), layers=(("0", conv, 2),)), {}),
    "depthwise, here convolutions in groups": (
        stack("kl.DepthwiseConv2D(3, depth_multiplier=2, depthwise_initializer='he_normal')",
              ("Conv2d", 3, 6, 3, 1, 0, 1, 3), shape=(8, 8, 3)), {"depthwise": False}),
    "all made, then all built": (ATTENTION, {"build": "sequential"}),
    "attention over other sizes": (program("""
    x, y = keras.Input((7, 6)), keras.Input((5, 4))
    return keras.Model([x, y], kl.MultiHeadAttention(2, 3, dropout=0.1)(x, y))
""", lambda: nn.Sequential(nn.MultiheadAttention(6, 2, 0.1, kdim=4, vdim=4))), {}),
}  # fmt: skip
