"""Six small Keras models, of the kinds that people port: what `kinit.compare` is tested on.

It stands alone, so that a process of Keras on another backend can import it, too. `rate` is that of all dropout.
"""

import keras
from keras import layers as kl


def mnist(rate=0.25):
    """A convnet whose paddings are uneven, with a Flatten and a penalty."""
    layers = [
        kl.Conv2D(4, 3, strides=2, padding="same", activation="relu", name="conv"),
        kl.BatchNormalization(name="norm"),
        kl.MaxPooling2D(2, padding="same", name="pool"),
        kl.Dropout(rate, name="drop"),
        kl.Flatten(),
        kl.Dense(8, activation="relu", kernel_regularizer="l2", kernel_initializer="he_normal", name="hidden"),
        kl.Dropout(rate, name="drop_2"),
        kl.Dense(10, activation="softmax", name="head"),
    ]
    model = keras.Sequential([keras.Input((14, 14, 1)), *layers])
    model.compile("adam", "categorical_crossentropy")
    return model


def lstm(rate=0.25):
    """Two bidirectional LSTMs over words, with a mask."""
    inputs = keras.Input((6,), dtype="int32")
    x = kl.Embedding(20, 5, mask_zero=True, name="words")(inputs)
    x = kl.Bidirectional(kl.LSTM(4, return_sequences=True), name="first")(x)
    x = kl.Dropout(rate, name="drop")(x)
    x = kl.Bidirectional(kl.LSTM(3), name="second")(x)
    model = keras.Model(inputs, kl.Dense(1, activation="sigmoid", name="head")(x))
    model.compile(keras.optimizers.RMSprop(clipnorm=1.0), "binary_crossentropy")
    return model


def gru(rate=0.25):
    """A GRU over words, whose inputs lose whole channels, and a SimpleRNN."""
    inputs = keras.Input((6,), dtype="int32")
    x = kl.Embedding(20, 5, name="words")(inputs)
    x = kl.SpatialDropout1D(rate, name="drop")(x)
    x = kl.Bidirectional(kl.GRU(4, return_sequences=True), name="gru")(x)
    x = kl.SimpleRNN(4, return_sequences=True, activation="relu", name="rnn")(x)
    x = kl.GlobalAveragePooling1D(name="mean")(x)
    model = keras.Model(inputs, kl.Dense(3, name="head")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    return model


def transformer(rate=0.25):
    """One block over a time series, after a dilated causal convolution."""
    inputs = keras.Input((10, 6))
    x = kl.Conv1D(8, 3, padding="causal", dilation_rate=2, name="conv")(inputs)
    attended = kl.MultiHeadAttention(2, 4, dropout=rate, name="attention")(x, x)
    x = kl.LayerNormalization(epsilon=1e-6, name="norm_1")(x + attended)
    hidden = kl.Dropout(rate, name="drop")(kl.Dense(12, activation="gelu", name="up")(x))
    x = kl.LayerNormalization(name="norm_2")(x + kl.Dense(8, name="down")(hidden))
    x = kl.RMSNormalization(name="norm_3")(x)
    model = keras.Model(inputs, kl.Dense(1, name="head")(kl.GlobalAveragePooling1D(name="mean")(x)))
    model.compile(keras.optimizers.AdamW(0.01, weight_decay=0.02), "mse")
    return model


def unet(rate=0.25):
    """Down twice and up twice, each time in another way."""
    inputs = keras.Input((8, 8, 1))
    x = kl.Conv2D(4, 3, padding="same", use_bias=False, name="enter")(inputs)
    first = kl.ReLU(6.0, name="clip")(kl.BatchNormalization(name="norm", momentum=0.9, epsilon=1e-5)(x))
    x = kl.MaxPooling2D(name="pool_1")(first)
    second = kl.Conv2D(6, 3, padding="same", activation="elu", name="middle")(x)
    x = kl.AveragePooling2D(3, 2, padding="same", name="pool_2")(kl.ZeroPadding2D(((1, 0), (1, 0)))(second))
    x = kl.GroupNormalization(2, name="groups")(kl.Conv2D(8, 3, padding="same", dilation_rate=2, name="deep")(x))
    x = kl.Cropping2D(((0, 1), (0, 1)), name="crop")(
        kl.Conv2DTranspose(6, 3, strides=2, padding="same", name="up_1")(kl.Dropout(rate, name="drop")(x))
    )
    x = kl.Conv2D(6, 2, name="fuse", activation="silu")(x)
    x = kl.Concatenate(name="join_1")([x, second])
    x = kl.UpSampling2D(2, interpolation="bilinear", name="up_2")(x)
    x = kl.Concatenate(name="join_2")([x, first])
    x = kl.SeparableConv2D(4, 3, padding="same", activation="relu", name="separable")(x)
    model = keras.Model(inputs, kl.Conv2D(1, 1, activation="sigmoid", name="head")(x))
    model.compile(keras.optimizers.Adagrad(0.01), "binary_crossentropy")
    return model


def discriminator(rate=0.25):
    """The convnet of a GAN, with slopes of three kinds and a frozen norm."""
    layers = [
        kl.Conv2D(4, 5, strides=2, padding="same", name="conv_1"),
        kl.LeakyReLU(name="leaky"),
        kl.Dropout(rate, name="drop"),
        kl.SpectralNormalization(kl.Conv2D(6, 5, strides=2, padding="same", activation="leaky_relu"), name="conv_2"),
        kl.BatchNormalization(trainable=False, name="frozen"),
        kl.DepthwiseConv2D(3, depth_multiplier=2, strides=2, name="depthwise"),
        kl.PReLU(shared_axes=[1, 2], name="prelu"),
        kl.GlobalMaxPooling2D(name="max"),
        kl.Dense(1, name="head"),
    ]
    model = keras.Sequential([keras.Input((14, 14, 3)), *layers])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-4, beta_1=0.5), loss)
    return model


MODELS = {made.__name__: made for made in (mnist, lstm, gru, transformer, unet, discriminator)}
