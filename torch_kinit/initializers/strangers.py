"""Other libraries' names for initializers and arguments: Keras' nearest, and what differs."""

from __future__ import annotations

_UNTRUNCATED = "{0} is truncated at two standard deviations; {1}_ is not, but for jax's of that name."
_ITSELF = "For torch's own law give torch.nn.init.{}_ itself."

# What there is in place of an initializer of torch, timm or jax, by its name without the last underscore.
_TWINS = {
    "kaiming_normal": f"Keras' twin is 'he_normal'. {_UNTRUNCATED.format('he_normal', 'kaiming_normal')} "
    f"{_ITSELF.format('kaiming_normal')}",
    "kaiming_uniform": "Keras' twin is 'he_uniform', the same law as kaiming_uniform_ with a=0. torch's layers start "
    "from a=sqrt(5), which is narrower: 'variance_scaling(scale=0.3333333333333333, distribution=\"uniform\")'.",
    "kaiming": "Keras' twins are 'he_uniform' and 'he_normal', which is truncated at two standard deviations.",
    "xavier": "Keras' twins are 'glorot_uniform' and 'glorot_normal', which is truncated at two standard deviations.",
    "xavier_normal": f"Keras' twin is 'glorot_normal'. {_UNTRUNCATED.format('glorot_normal', 'xavier_normal')} "
    f"{_ITSELF.format('xavier_normal')}",
    "xavier_uniform": "Keras' twin is 'glorot_uniform', the same law as xavier_uniform_ with gain=1. It scales each of "
    "the kernels packed in an LSTM or attention weight by its own fans; xavier_uniform_ takes them for one.",
    "normal_": "Keras' twin is 'random_normal', whose std is 0.05; that of torch's normal_ is 1: "
    "'random_normal(std=1)'.",
    "uniform_": "Keras' twin is 'random_uniform', from -0.05 to 0.05; torch's uniform_ goes from 0 to 1: "
    "'random_uniform(low=0, high=1)'.",
    "eye": "Keras' twin is 'identity', the same for a matrix.",
    "dirac": "Keras has no twin: 'identity' is for matrices, dirac_ for convolutions. "
    "Give torch.nn.init.dirac_ itself.",
    "sparse": "Keras has no twin. Give functools.partial(torch.nn.init.sparse_, sparsity=...) itself.",
    "trunc_normal_tf": "Keras' twin is 'trunc_normal', with the same bounds in standard deviations. Its std is 0.05; "
    "that of timm's trunc_normal_tf_ is 1: 'trunc_normal(std=1)'.",
    "delta_orthogonal": "Keras' nearest is 'orthogonal', which makes the whole kernel one orthogonal matrix; "
    "delta_orthogonal only its middle, and the rest zero.",
    "zeros_init": "Keras' twin is 'zeros', the same.",
    "ones_init": "Keras' twin is 'ones', the same.",
}

_ABSOLUTE = (
    "Keras' twin is 'trunc_normal', whose std is 0.05 and whose bounds count standard deviations; torch's and timm's "
    "trunc_normal_ have std 1 and absolute bounds."
)

# What others call an argument, and what it is called here.
_ARGUMENTS = {
    "seed": "A seed is `seed=` of apply here, or `generator=Key(seed)`.",
    "input_axes": "Keras' `input_axes` and `output_axes` are `fans` here, such as fans=((0,), (1, 2)).",
    "output_axes": "Keras' `input_axes` and `output_axes` are `fans` here, such as fans=((0,), (1, 2)).",
    "a": "torch's `a` and `b` are absolute bounds; here `low` and `high` are, and `lower` and `upper` count standard "
    "deviations.",
    "val": "torch's `val` is `value` here.",
    "nonlinearity": "torch's `nonlinearity` is a factor of the variance, `scale` of variance_scaling_ here.",
}
_ARGUMENTS["b"] = _ARGUMENTS["a"]


def twin_of(name: str) -> str:
    """What to write for an initializer's name in another library, and what differs; empty for any other name.

    Example:
        >>> twin_of("torch.nn.init.eye_")
        "Keras' twin is 'identity', the same for a matrix."
    """
    last = name.rpartition(".")[2]
    if last != name and last == "trunc_normal_":  # which alone is this package's
        return _ABSOLUTE
    return _TWINS.get(last) or _TWINS.get(last.removesuffix("_"), "")


def argument_here(name: str) -> str:
    """What an argument of another library is called here; empty for any other name."""
    return _ARGUMENTS.get(name, "")
