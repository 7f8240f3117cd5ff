"""Keras on each of its backends, in a process of its own: the oracle of the streams and of whole models."""

import functools
import os
import pickle
import subprocess
import sys
import traceback

import numpy as np
import torch

NAMES = ("jax", "tensorflow", "torch")


class Backend:
    """A Python process in which KERAS_BACKEND is `name`; call it with code that sets `result`, and variables for it.

    Arrays come back as tensors, of the same bits.
    """

    def __init__(self, name, **environment):
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "JAX_PLATFORMS": "cpu"}
        # XLA compiles each shape anew: less thoroughly, it takes a fraction of the time and gives the same values. With
        # AVX512-FP16 it rounds float16 less often than on other CPUs.
        quiet["XLA_FLAGS"] = "--xla_backend_optimization_level=1 --xla_cpu_max_isa=AVX2"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **quiet, "KERAS_BACKEND": name, **environment},
        )

    def __call__(self, code, **variables):
        pickle.dump((code, variables), self._process.stdin)
        self._process.stdin.flush()
        ok, result = pickle.load(self._process.stdout)
        if not ok:
            raise RuntimeError(result)
        return _received(result)

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


@functools.cache
def backend(name):
    """The process for this backend, one a test run; it ends with it."""
    return Backend(name)


def same_bits(a, b):
    """Whether two tensors are equal in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize])


def _received(value):
    if isinstance(value, tuple) and isinstance(value[0], str) and value[0] == "bfloat16":
        return torch.from_numpy(value[1]).view(torch.bfloat16)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(_received, value))
    return {k: _received(v) for k, v in value.items()} if isinstance(value, dict) else value


def _sent(value):
    if isinstance(value, (list, tuple)):
        return type(value)(map(_sent, value))
    if isinstance(value, dict):
        return {k: _sent(v) for k, v in value.items()}
    if hasattr(value, "__array__") and not isinstance(value, np.generic):
        import keras

        shape = tuple(value.shape)
        # TensorFlow gives no array for a scalar in bfloat16
        value = np.array(keras.ops.convert_to_numpy(keras.ops.reshape(value, (-1,)))).reshape(shape)
        if value.dtype.name == "uint32":
            return value.view(np.int32)
        return ("bfloat16", value.view(np.int16)) if value.dtype.name == "bfloat16" else value
    return value


def _serve():
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            code, variables = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            exec(code, variables)
            answer = True, _sent(variables["result"])
        except BaseException:
            answer = False, traceback.format_exc()
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
