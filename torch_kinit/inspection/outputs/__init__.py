"""The outputs that Keras recorded beside a port's own: the first layer that is off, and why."""
