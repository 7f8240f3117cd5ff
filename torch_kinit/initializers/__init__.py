"""One tensor: the in-place initializers, Keras' names and configs for them, and the fans that they use."""
