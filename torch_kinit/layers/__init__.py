"""How each torch layer stores Keras' variables, and which Keras layer it stands for."""
