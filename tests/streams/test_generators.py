"""All numbers come from the generator that is given, or else from torch's global one."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.models import seeded

OURS = [
    *(f"{name}_{law}" for name in ("glorot", "he", "lecun") for law in ("normal", "uniform")),
    *("variance_scaling", "random_normal", "random_uniform", "truncated_normal", "orthogonal"),
    partial(kinit.trunc_normal_, lower=3.0, upper=math.inf),
    partial(kinit.variance_scaling_, distribution="untruncated_normal"),
]
TORCHS = [
    *(nn.init.xavier_uniform_, nn.init.xavier_normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_),
    *(nn.init.uniform_, nn.init.normal_, nn.init.trunc_normal_, nn.init.orthogonal_, partial(nn.init.normal_, std=2.0)),
]


def label(value):
    return value if isinstance(value, str) else getattr(value, "__name__", None) or f"partial {value.func.__name__}"


def mixed():
    return nn.ModuleDict(
        {"conv": nn.Conv2d(4, 4, 3, groups=4), "gru": nn.GRU(4, 3), "attend": nn.MultiheadAttention(4, 2)}
    )


@pytest.mark.parametrize("value", [*OURS, *TORCHS], ids=label)
def test_generator_reaches_every_draw(value):
    """With a generator, torch's global random state is neither read nor moved."""
    results = []
    for seed in (1, 2):
        model = mixed()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        kinit.apply(model, dict.fromkeys(("conv", "gru", "attend"), value), generator=seeded())
        assert torch.equal(torch.get_rng_state(), state)
        results.append(model.state_dict())
    assert all(torch.equal(values, results[1][name]) for name, values in results[0].items())


@pytest.mark.parametrize("shape", [(4, 4), (4, 3), (3, 4)], ids=str)
def test_generator_reaches_parametrizations(shape):
    """An orthogonal parametrization, which completes a rectangle at random, leaves the global state alone too."""
    results = []
    for seed in (1, 2):
        module = parametrizations.orthogonal(nn.Linear(*shape))
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        kinit.apply(module, generator=seeded())
        assert torch.equal(torch.get_rng_state(), state)
        results.append(module.parametrizations.weight[0].base)
    assert torch.equal(*results)


@pytest.mark.parametrize("value", [*OURS, *TORCHS], ids=label)
def test_without_generator_the_global_one_is_used(value):
    """Without a generator the values come from torch's global seed."""
    results = []
    for seed in (1, 1, 2):
        module = nn.Linear(6, 5)
        torch.manual_seed(seed)
        kinit.apply(module, {"": value})
        results.append(module.weight.detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_generator_given_in_a_rule():
    """A generator that a rule's partial holds is used for that rule, in place of the one given to apply."""
    module = nn.Linear(6, 5)
    kinit.apply(module, {"": partial(kinit.he_normal_, generator=torch.Generator().manual_seed(4))}, generator=seeded())
    assert torch.equal(module.weight, kinit.he_normal_(torch.empty(5, 6), generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.ReLU()], ids=["Linear", "nothing to draw"])
def test_seed_is_no_generator(model):
    """An integer where a generator belongs is a TypeError that tells how to make one, also where nothing is drawn."""
    with pytest.raises(TypeError, match=r"`generator` must be .*, got 3\. .*torch\.Generator\(\)\.manual_seed\(3\)"):
        kinit.apply(model, generator=3)
