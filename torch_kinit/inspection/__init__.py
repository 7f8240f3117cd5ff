"""Is a model initialized as planned, and does a port compute as Keras does? Reports and pictures."""
