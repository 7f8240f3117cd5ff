"""A digest that tells whether anything has changed."""

import hashlib
import random

import numpy as np
import torch
from torch import nn


def fingerprint(model, *generators):
    """A digest of all that an initialization could change: parameters, buffers, modes and every random state."""
    digest = hashlib.sha256()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tensor.requires_grad}".encode())
        if not isinstance(tensor, nn.parameter.UninitializedTensorMixin) and tensor.device.type != "meta":
            digest.update(f"{tuple(tensor.shape)}".encode() + tensor.detach().contiguous().numpy().tobytes())
    digest.update(repr([(name, module.training) for name, module in model.named_modules()]).encode())
    for state in (torch.get_rng_state(), *(g.get_state() for g in generators)):
        digest.update(state.numpy().tobytes())
    digest.update(repr((random.getstate(), np.random.get_state())).encode())
    return digest.hexdigest()
