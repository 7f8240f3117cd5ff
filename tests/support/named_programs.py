"""Keras programs that people write, as code for tests/support/programs.py: small, but made as the originals are."""

DCGAN = """
def make():
    init = ki.RandomNormal(mean=0.0, stddev=0.02)
    generator = keras.Sequential([
        keras.Input((8,)),
        kl.Dense(4 * 4 * 8, use_bias=False, kernel_initializer=init),
        kl.Reshape((4, 4, 8)),
        kl.Conv2DTranspose(8, 4, 2, padding="same", use_bias=False, kernel_initializer=init),
        kl.BatchNormalization(),
        kl.ReLU(),
        kl.Conv2DTranspose(4, 4, 2, padding="same", use_bias=False, kernel_initializer=init),
        kl.BatchNormalization(),
        kl.ReLU(),
        kl.Conv2DTranspose(3, 4, 2, padding="same", activation="tanh", kernel_initializer=init),
    ], name="generator")
    discriminator = keras.Sequential([
        keras.Input((32, 32, 3)),
        kl.Conv2D(4, 4, 2, padding="same", kernel_initializer=init),
        kl.LeakyReLU(0.2),
        kl.Dropout(0.3),
        kl.Conv2D(8, 4, 2, padding="same", kernel_initializer=init),
        kl.BatchNormalization(),
        kl.LeakyReLU(0.2),
        kl.Dropout(0.3),
        kl.Flatten(),
        kl.Dense(1, kernel_initializer=init),
    ], name="discriminator")
    return RETURNED
"""

PIX2PIX = """
def down(filters, norm=True):
    initializer = ki.RandomNormal(0.0, 0.02)
    block = keras.Sequential()
    block.add(kl.Conv2D(filters, 4, 2, padding="same", kernel_initializer=initializer, use_bias=False))
    if norm:
        block.add(kl.BatchNormalization())
    block.add(kl.LeakyReLU())
    return block

def up(filters, dropout=False):
    initializer = ki.RandomNormal(0.0, 0.02)
    block = keras.Sequential()
    block.add(kl.Conv2DTranspose(filters, 4, 2, padding="same", kernel_initializer=initializer, use_bias=False))
    block.add(kl.BatchNormalization())
    if dropout:
        block.add(kl.Dropout(0.5))
    block.add(kl.ReLU())
    return block

def make():
    inputs = keras.Input((16, 16, 3))
    downs = [down(4, norm=False), down(6), down(8)]
    ups = [up(6, dropout=True), up(4)]
    last = kl.Conv2DTranspose(3, 4, 2, padding="same", kernel_initializer=ki.RandomNormal(0.0, 0.02), activation="tanh")
    x, skips = inputs, []
    for block in downs:
        x = block(x)
        skips.append(x)
    for block, skip in zip(ups, reversed(skips[:-1])):
        x = kl.Concatenate()([block(x), skip])
    return keras.Model(inputs, last(x))
"""

N_BEATS = """
def block(x, last):
    for _ in range(3):
        x = kl.Dense(8, activation="relu", kernel_initializer="he_normal")(x)
    theta = kl.Dense(9, use_bias=False)(x)
    backcast = kl.Dense(6, name=f"backcast_{last}")(theta)
    forecast = kl.Dense(3, name=f"forecast_{last}")(theta)
    return backcast, forecast

def make():
    inputs = keras.Input((6,))
    x, total = inputs, None
    for i in range(3):
        backcast, forecast = block(x, i)  # the last backcast is of no use
        x = kl.Subtract()([x, backcast])
        total = forecast if total is None else kl.Add()([total, forecast])
    return keras.Model(inputs, total)
"""

WAVENET = """
def make():
    inputs = keras.Input((16, 4))
    x, skips = kl.Conv1D(4, 1)(inputs), []
    for rate in (1, 2, 4):
        gate = kl.Conv1D(6, 2, padding="causal", dilation_rate=rate, activation="sigmoid")(x)
        signal = kl.Conv1D(6, 2, padding="causal", dilation_rate=rate, activation="tanh")(x)
        y = kl.Multiply()([signal, gate])
        skips.append(kl.Conv1D(4, 1)(y))
        x = kl.Add()([kl.Conv1D(4, 1)(y), x])  # the last is of no use
    x = kl.ReLU()(kl.Add()(skips))
    x = kl.Conv1D(6, 1, activation="relu")(x)
    return keras.Model(inputs, kl.Conv1D(5, 1, activation="softmax")(x))
"""

VAE = """
class Sampling(kl.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_variance = inputs
        epsilon = keras.random.normal(keras.ops.shape(mean), seed=self.seed_generator)
        return mean + keras.ops.exp(0.5 * log_variance) * epsilon

def make():
    inputs = keras.Input((8, 8, 1))
    x = kl.Conv2D(4, 3, activation="relu", strides=2, padding="same")(inputs)
    x = kl.Conv2D(6, 3, activation="relu", strides=2, padding="same")(x)
    x = kl.Flatten()(x)
    x = kl.Dense(8, activation="relu")(x)
    mean = kl.Dense(2, name="z_mean")(x)
    log_variance = kl.Dense(2, name="z_log_var")(x)
    z = Sampling()([mean, log_variance])
    encoder = keras.Model(inputs, [mean, log_variance, z], name="encoder")
    latent = keras.Input((2,))
    x = kl.Dense(2 * 2 * 6, activation="relu")(latent)
    x = kl.Reshape((2, 2, 6))(x)
    x = kl.Conv2DTranspose(6, 3, activation="relu", strides=2, padding="same")(x)
    x = kl.Conv2DTranspose(4, 3, activation="relu", strides=2, padding="same")(x)
    decoder = keras.Model(latent, kl.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(x), name="decoder")
    outer = keras.Input((8, 8, 1))
    return keras.Model(outer, decoder(encoder(outer)[2]))
"""

TRANSFORMER = """
def block(x, rate=0.1):
    y = kl.MultiHeadAttention(num_heads=2, key_dim=4, dropout=rate)(x, x)
    y = kl.Dropout(rate)(y)
    x = kl.LayerNormalization(epsilon=1e-6)(x + y)
    y = keras.Sequential([kl.Dense(16, activation="relu"), kl.Dense(8)])(x)
    y = kl.Dropout(rate)(y)
    return kl.LayerNormalization(epsilon=1e-6)(x + y)

def make():
    words, places = keras.Input((7,), dtype="int32"), keras.Input((7,), dtype="int32")
    x = kl.Embedding(11, 8)(words) + kl.Embedding(7, 8)(places)
    x = block(block(x))
    x = kl.GlobalAveragePooling1D()(x)
    x = kl.Dropout(0.1)(x)
    x = kl.Dense(6, activation="relu")(x)
    x = kl.Dropout(0.1)(x)
    return keras.Model([words, places], kl.Dense(2, activation="softmax")(x))
"""

SEQ2SEQ = """
def make():
    source, target = keras.Input((7,), dtype="int32"), keras.Input((5,), dtype="int32")
    x = kl.Embedding(11, 4, mask_zero=True)(source)
    memory, *forward, = kl.Bidirectional(kl.LSTM(4, return_sequences=True, return_state=True))(x)
    h, c = kl.Concatenate()(forward[::2]), kl.Concatenate()(forward[1::2])
    y = kl.Embedding(13, 4, mask_zero=True)(target)
    y, *_ = kl.LSTM(8, return_sequences=True, return_state=True, recurrent_dropout=0.1)(y, initial_state=[h, c])
    context = kl.Attention(dropout=0.1)([y, memory])
    y = kl.Concatenate()([y, context])
    y = kl.TimeDistributed(kl.Dense(8, activation="tanh"))(y)
    return keras.Model([source, target], kl.Dense(13, activation="softmax")(y))
"""

MOBILE_NET = """
def make():
    return keras.applications.MobileNetV3Small((32, 32, 3), alpha=0.25, weights=None, classes=5, dropout_rate=0.2)
"""

CONV_NEXT = """
from keras.src.applications.convnext import ConvNeXt

def make():
    sizes = {"depths": (1, 2, 2, 1), "projection_dims": (4, 8, 12, 16)}
    return ConvNeXt(**sizes, drop_path_rate=0.1, weights=None, input_shape=(32, 32, 3), classes=5, weights_name="")
"""

XCEPTION = """
def make():
    return keras.applications.Xception(input_shape=(71, 71, 3), weights=None, classes=5)
"""

NASNET = """
def make():
    sizes = {"penultimate_filters": 96, "num_blocks": 1, "stem_block_filters": 4, "skip_reduction": False}
    return keras.src.applications.nasnet.NASNet((32, 32, 3), **sizes, filter_multiplier=2, weights=None, classes=5)
"""

NAMED = {
    "dcgan generator": DCGAN.replace("RETURNED", "generator"),
    "dcgan discriminator": DCGAN.replace("RETURNED", "discriminator"),
    "pix2pix u-net": PIX2PIX,
    "n-beats": N_BEATS,
    "wavenet": WAVENET,
    "vae": VAE,
    "transformer": TRANSFORMER,
    "seq2seq": SEQ2SEQ,
    "mobilenet v3": MOBILE_NET,
    "convnext": CONV_NEXT,
    "xception": XCEPTION,
    "nasnet": NASNET,
}
