"""Looking at models: what their values are, how their signal flows, and where a port differs from Keras."""
