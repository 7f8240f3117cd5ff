"""The values of all tensors of a model, and comparing them with those of another."""

import torch

import torch_kinit as kinit
from tests.support.models import network


def tensors(model):
    """All parameters and buffers, by each of their names."""
    return dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))


def state(model):
    """Copies of them."""
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


def network_state(seed=5, **arguments):
    """The values that `network` gets with a seed."""
    model = network()
    kinit.apply(model, seed=seed, **arguments)
    return state(model)


def check_same_state(found, want):
    """Raise AssertionError unless two dicts have the same names, in any order, and equal tensors."""
    assert found.keys() == want.keys()
    assert [name for name in want if not torch.equal(found[name].cpu(), want[name].cpu())] == []
