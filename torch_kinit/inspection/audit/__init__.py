"""Whether each tensor of a model holds what its plan says, and if not, what it looks like."""
