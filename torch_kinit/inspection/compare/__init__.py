"""A Keras model's config beside its torch port: what differs in arguments, and what that does to training."""
