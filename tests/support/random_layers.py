"""Random Keras layers as source text, in a style that settles how they are named and their initializers given."""

import dataclasses
import math
import random
import re
from collections import Counter

TOKENS = "tokens"
LAWS = ("he_normal", "lecun_uniform", "random_normal", "truncated_normal", "orthogonal")
PLAIN_LAWS = LAWS[:-1]  # orthogonal over the last axis of an attention's kernel is another law on torch's matrix
CLASSES = {"he_normal": "HeNormal", "lecun_uniform": "LecunUniform", "random_normal": "RandomNormal"}
CLASSES |= {"truncated_normal": "TruncatedNormal", "orthogonal": "Orthogonal"}
WITH_ARGUMENTS = ("RandomNormal(stddev=0.02)", "VarianceScaling(2.0, 'fan_out')", "RandomUniform(-0.1, 0.1)")
DICTS = (
    '{"class_name": "RandomNormal", "config": {"stddev": 0.02}}',
    '{"class_name": "HeNormal", "config": {}}',
    '{"class_name": "LecunNormal", "config": {"seed": 5}}',
)
MODES = ("default", "name", "object", "arguments", "dict", "shared", "shared plain", "seed")
NAMINGS = ("automatic", "explicit", "like automatic", "downwards", "mixed")
CALLS = ("statements", "nested", "made first", "made first, shuffled", "mixed")


@dataclasses.dataclass(frozen=True)
class Style:
    """What is chosen once a program."""

    modes: tuple[str, ...]  # how initializers are given
    plain: bool  # whether objects without arguments are written as their names
    random_biases: float  # the share of layers whose bias has a random initializer
    naming: str
    calls: str
    unused: float  # the share of steps with a layer that is no part of the model
    hidden: bool  # whether such a layer may be of a class that the model has not, or have a name of its own
    seeds: float  # the share of dropouts and recurrent layers with a seed of their own
    branches: float  # the share of steps that branch
    nesting: float  # the share of steps that call a model


def style_of(rng):
    modes = (rng.choice(MODES),) if rng.random() < 0.5 else tuple(rng.sample(MODES, rng.randint(2, 4)))
    rare = [rng.choice((0, 0, 0, 0.3)) for _ in range(3)]
    return Style(
        modes=modes,
        plain=False,
        random_biases=rare[0],
        naming=rng.choice(("automatic", *NAMINGS)),
        calls=rng.choice(("statements", *CALLS)),
        unused=rare[1],
        hidden=True,
        seeds=rare[2],
        branches=rng.choice((0, 0, 0.3)),
        nesting=rng.choice((0, 0, 0.2)),
    )


class Layers:
    """Code of layers, in one style.

    `start` and `first` are lines for the program's beginning, of initializers and layers; `lines` those that follow.
    """

    def __init__(self, number, style, outer=None):
        # What the model is, how it is written, and what else there is: a program and its twins agree in the first.
        names = ("rng", "how", "else")
        self.random = outer.random if outer else {name: random.Random(f"{name} {number}") for name in names}
        self.rng, self.how = self.random["rng"], self.random["how"]
        self.style = style
        self.start, self.first, self.lines = outer.start if outer else {}, [], []
        self.named = outer.named if outer else Counter()  # how many names were given of each kind
        self.kinds = outer.kinds if outer else set()  # the classes of the layers that are part of the model
        self.known = outer.known if outer else set()  # the same, if the program was written before
        self.aside = False  # while a layer is written that is no part of the model

    def new(self, prefix):
        self.named[prefix] += 1
        return f"{prefix}{self.named[prefix]}"

    def assigned(self, expression, prefix="x"):
        """A variable with the value of an expression, which is written down now."""
        if re.fullmatch(r"\w+", expression):
            return expression
        variable = self.new(prefix)
        self.lines.append(f"{variable} = {expression}")
        return variable

    def initializer(self, laws=LAWS):
        """An initializer as an argument; None for the layer's default."""
        mode, law = self.rng.choice(self.style.modes), self.rng.choice(laws)
        made, with_arguments = f"ki.{CLASSES[law]}", f"ki.{self.rng.choice(WITH_ARGUMENTS)}"
        known, seed = self.rng.choice(DICTS), self.rng.choice((3, 4, 7))
        if self.style.plain and mode in ("object", "shared plain"):
            mode = "name"
        if mode == "shared":
            return self.object("init", with_arguments)
        if mode == "shared plain":
            return self.object(law, f"{made}()")
        return {
            "default": None,
            "name": f'"{law}"',
            "object": f"{made}()",
            "arguments": with_arguments,
            "dict": known,
            "seed": f"{made}(seed={seed})",
        }[mode]

    def object(self, name, code):
        """An object that is made at the program's start, once of each name."""
        self.start.setdefault(name, f"{name} = {code}")
        return name

    def initializers(self, *kernels, bias="bias", laws=LAWS):
        """Arguments for some of a layer's initializers, in either order."""
        found = [(kernel, self.initializer(laws)) for kernel in kernels if self.rng.random() < 0.8]
        if bias and self.rng.random() < self.style.random_biases:
            none = ["None"] if kernels == ("kernel",) and laws is LAWS else []  # which recurrent layers cannot take
            found.append((bias, self.initializer(PLAIN_LAWS) or self.rng.choice(['"random_normal"', *none])))
        self.rng.shuffle(found)
        return [f"{name}_initializer={value}" for name, value in found if value]

    def no_bias(self):
        return ["use_bias=False"] if self.rng.random() < 0.1 else []

    def seed(self):
        return [f"seed={self.rng.choice((3, 4, 8))}"] if self.rng.random() < self.style.seeds else []

    def name(self, kind):
        """The argument `name` of a layer or model, or nothing."""
        naming = self.style.naming
        mixed = naming == "mixed"
        if mixed:
            naming = self.rng.choice(NAMINGS[:-1])
        if naming == "automatic":
            return []
        if naming == "explicit" or self.aside:
            return [f'name="{self.new("aside_" if self.aside else "layer_")}"']
        self.named[kind] += 1
        number = self.named[kind] + 10 * mixed
        snake = re.sub("(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", kind).lower()
        return [f'name="{snake}_{number if naming == "like automatic" else 99 - number}"']

    def layer(self, kind, *arguments, named=True):
        name = self.name(kind) if named else []
        self.kinds |= set() if self.aside else {kind}
        return f"kl.{kind}({', '.join(map(str, (*arguments, *name)))})"

    # Layers for inputs of each rank: each gives the code of a layer and the shape that comes out.

    def units(self):
        return self.rng.choice((4, 6))

    def dense(self, shape, units=None, **kwargs):
        units = units or self.units()
        return self.layer("Dense", units, *self.no_bias(), *self.initializers("kernel"), **kwargs), (*shape[:-1], units)

    def einsum(self, shape):
        units = self.units()
        equation = ("ab,bd->ad", "abc,cd->abd")[len(shape) - 1]
        output = units if len(shape) == 1 else (shape[0], units)
        arguments = [f'"{equation}"', output, 'bias_axes="d"', *self.initializers("kernel")]
        return self.layer("EinsumDense", *arguments), (*shape[:-1], units)

    def embedding(self, shape):
        units = self.units()
        return self.layer("Embedding", 11, units, *self.initializers("embeddings", bias=None)), (*shape[1:], units)

    def conv(self, shape, units=None, suffix="", **kwargs):
        rank, units = len(shape) - 1, units or self.units()
        arguments = [units, 2, 'padding="same"', *self.no_bias(), *self.initializers("kernel")]
        return self.layer(f"Conv{rank}D{suffix}", *arguments, **kwargs), (*shape[:-1], units)

    def conv_transpose(self, shape):
        return self.conv(shape, suffix="Transpose")

    def depthwise(self, shape):
        multiplier = self.rng.choice((1, 2)) if shape[-1] < 8 else 1
        arguments = [2, 'padding="same"', f"depth_multiplier={multiplier}", *self.initializers("depthwise")]
        return self.layer(f"DepthwiseConv{len(shape) - 1}D", *arguments), (*shape[:-1], shape[-1] * multiplier)

    def separable(self, shape):
        units = self.units()
        arguments = [units, 2, 'padding="same"', *self.initializers("depthwise", "pointwise")]
        return self.layer(f"SeparableConv{len(shape) - 1}D", *arguments), (*shape[:-1], units)

    def recurrent_arguments(self, sequences):
        extra = ["return_sequences=True"] if sequences else []
        extra += ["dropout=0.1"] if self.rng.random() < 0.2 else []
        extra += self.no_bias()
        return [4, *extra, *self.initializers("kernel", "recurrent"), *self.seed()]

    def recurrent(self, shape, sequences=None, **kwargs):
        sequences = self.rng.random() < 0.7 if sequences is None else sequences
        kind = self.rng.choice(("SimpleRNN", "LSTM", "GRU"))
        more = ["reset_after=False"] if kind == "GRU" and self.rng.random() < 0.2 else []
        code = self.layer(kind, *self.recurrent_arguments(sequences), *more, **kwargs)
        return code, (*shape[:1], 4) if sequences else (4,)

    def bidirectional(self, shape):
        inner, out = self.recurrent(shape, named=self.rng.random() < 0.5)
        return self.layer("Bidirectional", inner), (*out[:-1], 8)

    def stacked(self, shape):
        cells = [
            self.layer(self.rng.choice(("LSTMCell", "GRUCell", "SimpleRNNCell")), *self.recurrent_arguments(False))
            for _ in range(self.rng.randint(1, 2))
        ]
        cell = f"kl.StackedRNNCells([{', '.join(cells)}])" if len(cells) > 1 else cells[0]
        return self.layer("RNN", cell, "return_sequences=True"), (*shape[:1], 4)

    def distributed(self, shape):
        inner, out = self.dense(shape, named=self.rng.random() < 0.5)
        return self.layer("TimeDistributed", inner), out

    def attention(self, shape):
        arguments = [2, shape[-1] // 2, *(["dropout=0.1", *self.seed()] if self.rng.random() < 0.5 else [])]
        return self.layer("MultiHeadAttention", *arguments, *self.initializers("kernel", laws=PLAIN_LAWS)), shape

    def grouped(self, shape):
        return self.layer("GroupQueryAttention", 2, 4, 1, *self.initializers("kernel", laws=PLAIN_LAWS)), shape

    def batch_norm(self, shape):
        return self.layer("BatchNormalization"), shape

    def layer_norm(self, shape):
        gamma = ['gamma_initializer="random_normal"'] if self.rng.random() < self.style.random_biases else []
        return self.layer("LayerNormalization", *gamma), shape

    def group_norm(self, shape):
        return self.layer("GroupNormalization", 2), shape

    def prelu(self, shape):
        axes = [f"shared_axes={list(range(1, len(shape)))}"] if len(shape) > 1 else []
        return self.layer("PReLU", *self.initializers("alpha", bias=None, laws=PLAIN_LAWS[2:]), *axes), shape

    def dropout(self, shape):
        kinds = ["Dropout", "Dropout", "GaussianNoise", "GaussianDropout"]
        kinds += [f"SpatialDropout{len(shape) - 1}D"] if len(shape) > 1 else []
        return self.layer(self.rng.choice(kinds), self.rng.choice((0.1, 0.1, 0.0)), *self.seed()), shape

    def spectral(self, shape):
        inner, out = (self.dense if len(shape) == 1 else self.conv)(shape, named=self.rng.random() < 0.5)
        return self.layer("SpectralNormalization", inner), out

    def activation(self, shape):
        return self.layer("Activation", '"relu"'), shape

    def pooling(self, shape):
        if self.rng.random() < 0.2:
            return self.layer("Flatten"), (math.prod(shape),)
        return self.layer(f"GlobalAveragePooling{len(shape) - 1}D"), shape[-1:]

    def repeated(self, shape):
        return self.layer("RepeatVector", 6), (6, *shape)

    def choices(self, shape, same, single):
        """What may come next: `same` if the rank must stay, `single` if a layer gets one tensor."""
        both = [self.batch_norm, self.layer_norm, self.dropout, self.dropout, self.prelu, self.activation]
        if shape[0] == TOKENS:
            return [self.embedding]
        if len(shape) == 1:
            found = [*both, self.dense, self.dense, self.dense, self.einsum, self.spectral]
            return found if same else [*found, self.repeated]
        found = [*both, self.group_norm, self.conv, self.conv, self.conv_transpose, self.depthwise, self.separable]
        if len(shape) == 3:
            return [*found, self.conv] if same else [*found, self.conv, self.pooling]
        found += [self.dense, self.einsum, self.distributed, self.stacked, self.spectral]
        found += [] if single else [self.attention, self.attention, self.grouped]
        if same:
            return [*found, lambda shape: self.recurrent(shape, sequences=True)]
        return [*found, self.recurrent, self.recurrent, self.bidirectional, self.pooling]

    def next_layer(self, shape, same=False, single=False):
        return self.rng.choice(self.choices(shape, same, single))(shape)

    def to_units(self, shape, units):
        """A layer whose output has so many units."""
        return (self.conv if len(shape) == 3 else self.dense)(shape, units)
