"""Looking at models: how a port compares with its Keras model, and what a model holds beside what was planned."""
