"""Models that several processes share: compared and probed as the whole; see shared_ports.py for what processes do."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl
from torch import nn
from torch.nn.utils import parametrizations

import torch_kinit as kinit
from tests.support.shared_ports import CASES, SHAPE
from torch_kinit.inspection.sharded import is_shared, own_class

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.mark.slow
@pytest.mark.xdist_group("serial")
@pytest.mark.usefixtures("_keras_on_cpu")
def test_a_shared_port_is_compared_and_probed_as_the_whole(tmp_path):
    """In each process alike, and it trains on as if nothing had looked at it; arguments are compared without a word."""
    layers = [
        kl.Conv1D(7, 3, padding="causal", activation="relu", name="conv"),
        kl.BatchNormalization(name="norm"),
        kl.LSTM(4, return_sequences=True, name="lstm"),
        kl.Dense(8, activation="relu", name="up"),
        kl.Dense(4, name="down"),
    ]
    model = keras.Sequential([keras.Input(SHAPE[1:]), *layers])
    config = kinit.keras_config(model, inputs=np.ones(SHAPE, np.float32))
    (tmp_path / "model.json").write_text(json.dumps(config))
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.shared_ports", str(tmp_path / "model.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split("\n")[:-1]) == sorted([*CASES, *CASES])


def test_a_class_that_torch_makes_anew_is_the_one_it_is_made_of():
    """A parametrized Linear is a Linear; a module of one's own stays what it is."""
    assert own_class(parametrizations.spectral_norm(nn.Linear(3, 3))) is nn.Linear

    class Own(nn.Linear):
        pass

    assert own_class(parametrizations.weight_norm(Own(3, 3))) is Own
    assert own_class(nn.Sequential()) is nn.Sequential
    assert not is_shared(nn.BatchNorm1d(3))
