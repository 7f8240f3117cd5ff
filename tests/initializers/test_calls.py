"""An initializer as a plan prints it is read back as data, and what other libraries call one is answered."""

import functools
import math
import re

import jax
import pytest
import torch
from torch import nn

import torch_kinit as kinit
from torch_kinit.initializers.names import recipe
from torch_kinit.initializers.table import PARAMETERS, ROWS

partial = functools.partial

# Values for each argument that an initializer of the table takes, of each kind there is.
VALUES = {
    "value": [0.1, -2, 1e-30, [[1.0], [2.0]], [0.1 + 0.2]],
    "others": [
        kinit.he_normal_,
        partial(kinit.random_normal_, std=1 / 3),
        partial(kinit.trunc_normal_, upper=math.inf),
    ],
    "mean": [1 / 3, -0.5],
    "std": [0.02, 1 / 3, 2],
    "low": [-1 / 3],
    "high": [2, math.pi],
    "lower": [-math.inf, -1],
    "upper": [math.inf, 1.5],
    "scale": [2.0, 1 / 3],
    "mode": ["fan_out"],
    "distribution": ["untruncated_normal"],
    "fans": [(7, 9), ((0,), (1, 2)), [3, 4]],
    "layout": ["keras"],
    "generator": [kinit.Key(2**40), kinit.KerasSeed(7, backend="jax"), None],
    "gain": [math.sqrt(2), -1],
    "max_elements": [1 << 30],
    "side": ["imag"],
    "window": [None, "hamming"],
    "scaling": ["spectrum"],
    "periodic": [True],
}
PRINTED = {
    f"{row.function.__name__}-{name}-{i}": partial(row.function, **{name: value})
    for row in ROWS
    if row.names
    for name in PARAMETERS[row.function]
    for i, value in enumerate(VALUES[name])
}


@pytest.mark.parametrize("initializer", PRINTED.values(), ids=PRINTED)
def test_what_is_printed_is_read_back(initializer):
    """Each argument of each initializer in the table comes back equal from its printed form."""
    kept = recipe(initializer)
    assert recipe(str(kept)) == kept


@pytest.mark.parametrize("row", [row for row in ROWS if row.names], ids=lambda row: row.function.__name__)
def test_all_arguments_at_once(row):
    """An initializer with all its arguments comes back equal too, and one without any."""
    kept = recipe(partial(row.function, **{name: VALUES[name][0] for name in PARAMETERS[row.function]}))
    assert recipe(str(kept)) == kept
    assert recipe(str(recipe(row.function))) == recipe(row.function)


SPELLINGS = ["trunc_normal(std=.02)", " trunc_normal_( std = +2e-2 )", "TruncatedNormal(std=0.02,)"]


@pytest.mark.parametrize("text", SPELLINGS)
def test_other_spellings(text):
    """Keras' names and this package's, with any spaces, are the same initializer."""
    assert recipe(text) == recipe(partial(kinit.trunc_normal_, std=0.02))


def test_a_rule_takes_it():
    """In a rule the text gives the law of the partial."""
    step = kinit.plan(nn.Linear(3, 4), {nn.Linear: {"bias": "trunc_normal(mean=1, std=0.02)"}})["bias"]
    assert step.law == kinit.TruncatedNormal(1.0, 0.02)
    assert str(step.initializer) == "trunc_normal(mean=1, std=0.02)"


UNREAD = {
    "code": ("trunc_normal(std=[x for x in (1,)])", "is no plain value"),
    "arithmetic": ("trunc_normal(std=2*0.01)", "'2 * 0.01' is no plain value"),
    "nan": ("constant(nan)", "'nan' is no plain value"),
    "attribute": ("trunc_normal(std=math.pi)", "'math.pi' is no plain value"),
    "lambda": ("(lambda: 0)()", "it is not a name with arguments"),
    "two calls": ("he_normal()()", "it is not a name with arguments"),
    "stars": ("he_normal(**{'fans': (1, 2)})", "** is no argument"),
    "open": ("trunc_normal(std=0.02", "was never closed"),
    "more behind": ("trunc_normal(std=0.02) + 1", "it is not a name with arguments"),
    "minus a truth": ("trunc_normal(std=-True)", "'-True' is no plain value"),
    "array": ("constant(array of shape (2, 2))", "Arrays and functions are given themselves"),
    "object": ("he_normal(generator=<torch._C.Generator object at 0x7f>)", "invalid syntax"),
    "long": (f"constant([{'1, ' * 100_000}])", "it has 300012 characters"),
    "deep": (f"constant({'[' * 4000}{']' * 4000})", "too many nested parentheses"),
    "huge": (f"constant({'9' * 5000})", "Exceeds the limit"),
    "zero byte": ("constant(\0)", "Could not read the initializer"),
    "twice": ("trunc_normal(std=1, std=2)", "std"),
}


@pytest.mark.parametrize(("text", "says"), UNREAD.values(), ids=UNREAD)
def test_what_is_no_call_with_plain_values(text, says):
    """Code, open parentheses and giants are refused with the way out, and nothing is evaluated."""
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        recipe(text)
    assert "Could not read the initializer" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_nothing_is_called():
    """A function's name in a text is the name of an unknown initializer."""
    with pytest.raises(ValueError, match="Unknown initializer"):
        recipe("trunc_normal(std=__import__('os').getpid())")


ARGUMENTS = {
    "stddev": ("random_normal(stddev=0.1)", "Keras' `stddev` is `std` here."),
    "minval": ("random_uniform(minval=0)", "Keras' `minval` is `low` here."),
    "maxval": ("RandomUniform(maxval=0)", "Keras' `maxval` is `high` here."),
    "partial": (partial(kinit.trunc_normal_, stddev=0.1), "Keras' `stddev` is `std` here."),
    "seed": ("he_normal(seed=3)", "A seed is `seed=` of apply here"),
    "input_axes": ("he_normal(input_axes=(0,))", "are `fans` here"),
    "absolute bound": ("trunc_normal(a=-2, b=2)", "`lower` and `upper` count standard deviations."),
    "misspelt": ("trunc_normal(sdt=0.1)", "Did you mean 'std'?"),
    "of zeros": ("zeros(value=1)", "zeros_ takes no argument 'value', but the tensor alone."),
    "in others": ("unit_forget_bias(others=random_normal(stddev=1))", "Keras' `stddev` is `std` here."),
}


@pytest.mark.parametrize(("identifier", "says"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_an_argument_of_another_name(identifier, says):
    """Keras' and torch's keywords are answered with this package's, others with near misses."""
    with pytest.raises(TypeError, match=re.escape(says)):
        recipe(identifier)


def test_arguments_go_in_by_name():
    """Only a constant has its value by position, as it is printed."""
    with pytest.raises(
        ValueError, match=re.escape("go in by name, got 0.02 for trunc_normal, which takes mean, std, lower")
    ):
        recipe("trunc_normal(0.02)")
    with pytest.raises(ValueError, match="go in by name"):
        recipe("constant(1, 2)")
    with pytest.raises(ValueError, match=r"Unknown initializer 'trunc_norml'. Did you mean 'trunc_normal'"):
        recipe("trunc_norml(std=0.02)")


STRANGERS = {
    "kaiming_normal": "he_normal is truncated at two standard deviations; kaiming_normal_ is not",
    "kaiming_normal_": "he_normal is truncated",
    "torch.nn.init.kaiming_normal_": "he_normal is truncated",
    "kaiming_normal_(nonlinearity='relu')": "he_normal is truncated",
    "kaiming_uniform": "start from a=sqrt(5)",
    "xavier_normal": "glorot_normal is truncated at two standard deviations; xavier_normal_ is not",
    "xavier_uniform_": "'glorot_uniform', the same law",
    "normal_": "'random_normal(std=1)'",
    "uniform_": "'random_uniform(low=0, high=1)'",
    "nn.init.dirac_": "Give torch.nn.init.dirac_ itself.",
    "eye_": "'identity'",
    "sparse_": "torch.nn.init.sparse_",
    "trunc_normal_tf_": "'trunc_normal(std=1)'",
    "delta_orthogonal": "'orthogonal'",
    "zeros_init": "'zeros'",
    "keras.initializers.HeNormal": "Write 'HeNormal' alone.",
    "torch.nn.init.trunc_normal_": "have std 1 and absolute bounds.",
    "xavier": "'glorot_uniform' and 'glorot_normal', which is truncated",
    "torch.nn.init.orthogonal_": "Write 'orthogonal_' alone.",
    "HE_NORMAL": "Did you mean 'he_normal'?",
}


@pytest.mark.parametrize(("name", "says"), STRANGERS.items(), ids=STRANGERS)
def test_a_name_of_another_library(name, says):
    """torch's, timm's and jax's names are errors that name Keras' twin and what differs."""
    with pytest.raises(ValueError, match=f"Unknown initializer .*{re.escape(says)}"):
        recipe(name)


def bounds(fill):
    """The least and the greatest of many values."""
    values = fill(torch.empty(400, 300, dtype=torch.float64))
    return float(values.min()), float(values.max())


SAME = {
    "he_uniform": nn.init.kaiming_uniform_,
    "glorot_uniform": nn.init.xavier_uniform_,
    'variance_scaling(scale=0.3333333333333333, distribution="uniform")': partial(
        nn.init.kaiming_uniform_, a=math.sqrt(5)
    ),
    "random_uniform(low=0, high=1)": nn.init.uniform_,
}


@pytest.mark.parametrize(("ours", "torchs"), SAME.items(), ids=SAME)
def test_what_the_answers_call_the_same_law(ours, torchs):
    """The bounds of torch's values are those of the law that the answer names."""
    assert bounds(torchs) == pytest.approx(kinit.law(ours, (400, 300)).bounds, rel=1e-3, abs=1e-4)


def test_what_the_answers_call_other_laws():
    """torch's normal laws are not truncated where Keras' are, and jax's of the same name are."""
    limit = kinit.law("he_normal", (400, 300)).bounds[1]
    assert bounds(nn.init.kaiming_normal_)[1] > 1.5 * limit
    theirs = jax.nn.initializers.kaiming_normal()(jax.random.key(0), (300, 400))
    assert float(abs(theirs).max()) <= limit * (1 + 1e-6)
    assert kinit.law("glorot_normal", (400, 300)).bounds[1] * 1.5 < bounds(nn.init.xavier_normal_)[1]
    assert float(nn.init.normal_(torch.empty(10_000)).std()) == pytest.approx(1, abs=0.05)
