"""Every initializer class that Keras has, and a draw in a variable of Keras' shape."""

import keras
import torch
from keras.src.initializers import ALL_OBJECTS_DICT

K = keras.initializers

# Every class of Keras that can be called, by each string that names it; a new one fails these tests.
CONCRETE = {name: cls for name, cls in sorted(ALL_OBJECTS_DICT.items()) if cls is not K.Initializer}


def drawn(initializer, shape, **context):
    """What an initializer of ours gives for a variable of this Keras-layout shape."""
    return initializer(torch.empty(shape), **context)
