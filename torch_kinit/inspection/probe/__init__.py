"""How a signal and its gradient pass through the layers of a model at initialization."""
