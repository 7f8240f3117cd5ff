"""Models that several processes share: compared and probed as the whole; see shared_ports.py for what processes do."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch
from keras import layers as kl

import torch_kinit as kinit
from tests.support.sharded_run import RUNS_FSDP2
from tests.support.shared_ports import CASES, SHAPE

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.mark.slow
@pytest.mark.skipif(not RUNS_FSDP2, reason="torch runs no model of fully_shard on the CPU")
@pytest.mark.xdist_group("serial")
@pytest.mark.usefixtures("_keras_on_cpu")
def test_a_shared_port_is_compared_and_probed_as_the_whole(tmp_path):
    """In each process alike, and it trains on as if nothing had looked at it; arguments are compared without a word."""
    layers = [
        kl.Conv1D(7, 3, padding="causal", activation="relu", name="conv"),
        kl.BatchNormalization(name="norm"),
        kl.LSTM(4, return_sequences=True, go_backwards=True, name="lstm"),
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
