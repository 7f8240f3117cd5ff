"""Fixtures of the tests of Keras."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tf_keras_files(tmp_path_factory):
    """The directory of the models of tests.support.keras_files, saved by tf_keras."""
    if not importlib.util.find_spec("tf_keras"):
        pytest.skip("pip install --no-deps tf_keras==2.21.0")
    directory = tmp_path_factory.mktemp("tf_keras")
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.keras_files", str(directory)]
    # On torch Keras would import Triton, which crashes in a process that TensorFlow is in.
    settings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow"}
    subprocess.run(command, check=True, cwd=ROOT, env=settings, capture_output=True)
    return directory
