"""What a plan keeps of an initializer is data: it is compared by its arguments, and goes through JSON and back."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import torch_kinit as kinit

partial = functools.partial

RECIPES = {
    "name": ("he_normal", (4, 3)),
    "keywords": (partial(kinit.variance_scaling_, scale=2.0, mode="fan_out", distribution="uniform"), (4, 3)),
    "axes": (partial(kinit.he_uniform_, fans=((0,), (1, 2))), (4, 3, 2)),
    "fans": (partial(kinit.he_uniform_, fans=(7, 9)), (4, 3)),
    "one-sided": (partial(kinit.trunc_normal_, lower=8, upper=math.inf), (5,)),
    "NumPy scalars": (partial(kinit.random_normal_, mean=np.float32(0.5), std=np.float64(0.02)), (5,)),
    "NumPy fans": (partial(kinit.he_normal_, fans=(np.int64(7), np.int64(9))), (4, 3)),
    "number": (0.1, (3,)),
    "numpy": (np.arange(6).reshape(2, 3), (2, 3)),
    "flipped": (np.arange(3.0)[::-1], (3,)),
    "bool": (np.array([True, False]), (2,)),
    "bfloat16": (torch.tensor([1.0, 2.0], dtype=torch.bfloat16), (2,)),
    "nested list": (partial(kinit.constant_, value=[[1.0], [2.0]]), (2, 2)),
    "window": (partial(kinit.stft_, window=np.array([0.5, 1.0, 2.0])), (4, 1, 3)),
}


def holder(shape=(2, 2)):
    return nn.ParameterDict({"x": nn.Parameter(torch.zeros(shape))})


def planned(initializer, shape=(2, 2)):
    return kinit.plan(holder(shape), {"x": initializer})


@pytest.mark.parametrize(("initializer", "shape"), RECIPES.values(), ids=RECIPES)
def test_a_recipe_survives_json(initializer, shape):
    """An initializer read back from standard JSON, which has no infinity, is equal and draws the same."""
    kept = planned(initializer, shape)
    read = kinit.Plan.from_dict(json.loads(json.dumps(kept.to_dict(), allow_nan=False)))
    assert read == kept
    assert read.to_dict() == kept.to_dict()
    first, second = holder(shape), holder(shape)
    kept.apply(first, generator=torch.Generator().manual_seed(1))
    read.apply(second, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first["x"], second["x"])
    assert bool(first["x"].any())


def test_recipes_differ_where_their_laws_differ():
    """Initializers are unequal for another function, another argument, another array, or an array against a number."""
    ones = np.ones((2, 2))
    arrays = [ones, 0 * ones, partial(kinit.constant_, value=ones)]
    different = ["he_normal", "he_uniform", 1.0, 2.0, *arrays, "orthogonal", partial(kinit.orthogonal_, gain=2.0)]
    kept = [planned(initializer)["x"].initializer for initializer in different]
    for i, one in enumerate(kept):
        assert [one == planned(other)["x"].initializer for other in different] == [i == j for j in range(len(kept))]


def test_only_our_own_recipes_become_json():
    """A function of somebody else's is not written to JSON, and an unknown name is not read from it."""
    with pytest.raises(ValueError, match=r"torch\.nn\.init\.normal_.*cannot be written to JSON"):
        planned(torch.nn.init.normal_).to_dict()
    with pytest.raises(ValueError, match="cannot be written to JSON"):
        planned(partial(kinit.he_normal_, generator=torch.Generator())).to_dict()
    written = planned("he_normal").to_dict()
    written["steps"][0]["initializer"]["name"] = "he_norml_"
    with pytest.raises(ValueError, match=r"'he_norml_'. Did you mean 'he_normal_'"):
        kinit.Plan.from_dict(written)


def test_recipes_of_other_arguments_differ():
    """Owners of one tensor whose rules differ in an argument's value alone do not agree."""
    model = nn.ModuleDict({"words": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["words"].weight
    with pytest.raises(kinit.TiedParameterError):
        kinit.plan(
            model,
            {nn.Embedding: partial(kinit.trunc_normal_, std=0.1), nn.Linear: partial(kinit.trunc_normal_, std=0.2)},
        )
    assert kinit.plan(nn.Linear(2, 2), {"bias": 1.0}) != kinit.plan(nn.Linear(2, 2), {"bias": 1.5})
