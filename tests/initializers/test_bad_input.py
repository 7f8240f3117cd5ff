"""Wrong arguments are refused in a sentence that names them, and nothing is changed."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import torch_kinit as kinit
from torch_kinit.streams.generator import as_source

NAN, INF = math.nan, math.inf

VALUES = [
    (partial(kinit.random_normal_, mean=NAN), ValueError, "`mean` must be finite, got nan"),
    (partial(kinit.random_normal_, std=-1.0), ValueError, "`std` must not be negative, got -1.0"),
    (partial(kinit.random_normal_, std=INF), ValueError, "`std` must be finite, got inf"),
    (partial(kinit.random_normal_, std="1"), TypeError, "`std` must be a number, got '1' of type str"),
    (partial(kinit.random_normal_, std=True), TypeError, "`std` must be a number, got True"),
    (partial(kinit.random_normal_, std=1e38), ValueError, "which torch.float32 cannot hold"),
    (partial(kinit.random_uniform_, low=0.5, high=0.5), ValueError, "`low` must be less than `high`"),
    (partial(kinit.random_uniform_, low=1.0, high=0.5), ValueError, "got low=1.0, high=0.5"),
    (partial(kinit.random_uniform_, low=-INF), ValueError, "`low` must be finite, got -inf"),
    (partial(kinit.random_uniform_, low=-3e38, high=3e38), ValueError, "further apart than torch.float32 can express"),
    (partial(kinit.random_uniform_, low=1e39, high=2e39), ValueError, "torch.float32 cannot hold values from 1e.39"),
    (partial(kinit.random_uniform_, low=1 + 1e-9, high=1 + 2e-9), ValueError, "torch.float32 has no value between"),
    (partial(kinit.trunc_normal_, lower=2, upper=-2), ValueError, "`lower` must be less than `upper`"),
    (partial(kinit.trunc_normal_, lower=NAN), ValueError, "`lower` must be a number, got nan"),
    (partial(kinit.trunc_normal_, std=NAN), ValueError, "`std` must be finite, got nan"),
    (partial(kinit.trunc_normal_, mean=1.0, lower=1e-9, upper=2e-9), ValueError, "has no value between"),
    (partial(kinit.variance_scaling_, scale=0), ValueError, "`scale` must be greater than 0, got 0"),
    (partial(kinit.variance_scaling_, scale=-1), ValueError, "`scale` must not be negative, got -1"),
    (partial(kinit.variance_scaling_, scale=NAN), ValueError, "`scale` must be finite"),
    (partial(kinit.variance_scaling_, mode="fan_inn"), ValueError, "got 'fan_inn'. Did you mean 'fan_in'"),
    (partial(kinit.variance_scaling_, mode="FAN_IN"), ValueError,
     "`mode` must be one of 'fan_in', 'fan_out', 'fan_avg'"),
    (partial(kinit.variance_scaling_, distribution="normal"), ValueError,
     "means a truncated normal in Keras and an unt"),
    (partial(kinit.variance_scaling_, distribution="gauss"), ValueError,
     "`distribution` must be one of 'truncated_norm"),
    (partial(kinit.variance_scaling_, layout="pytorch"), ValueError,
     "`layout` must be one of 'torch', 'keras', got 'py"),
    (partial(kinit.he_normal_, fans=(3,)), ValueError, r"`fans` must be \(fan_in, fan_out\).* got \(3,\)"),
    (partial(kinit.he_normal_, fans=(-3, 4)), ValueError, r"`fans` must be .* got \(-3, 4\)"),
    (partial(kinit.he_normal_, fans=(1.5, 4)), ValueError, r"`fans` must be .* got \(1.5, 4\)"),
    (partial(kinit.he_normal_, fans=((9,), (0,))), ValueError, r"`fans` must be .* got \(\(9,\), \(0,\)\)"),
    (partial(kinit.he_normal_, generator=3), TypeError, r"For a seed, pass .*manual_seed\(3\) or Key\(3\)"),
    (partial(kinit.he_normal_, generator=True), TypeError, "a torch.Generator, a Key, a KerasSeed or None, got True.$"),
    (partial(kinit.he_normal_, generator="cpu"), TypeError, "a torch.Generator, a Key, a KerasSeed or None, got"),
    (partial(kinit.orthogonal_, gain=INF), ValueError, "`gain` must be finite"),
    (partial(kinit.orthogonal_, layout="x"), ValueError, "`layout` must be one of"),
    (partial(kinit.identity_, gain=NAN), ValueError, "`gain` must be finite"),
    (partial(kinit.identity_, gain=1e39), ValueError, "`gain` 1e.39 does not fit in torch.float32"),
    (partial(kinit.constant_, value=NAN), ValueError, "`value` must be finite, got nan"),
    (partial(kinit.constant_, value=1e39), ValueError, "`value` 1e.39 does not fit in torch.float32"),
    (partial(kinit.constant_, value=[1.0, INF, 2.0, 3.0]), ValueError,
     "`value` must be an array of finite real numbers"),
    (partial(kinit.constant_, value=[1j, 2j, 3j, 4j]), TypeError, "`value` must be a number or an array of numbers"),
    (partial(kinit.constant_, value=np.array([1e39])), ValueError,
     "`value` holds numbers that do not fit in torch.float32"),
    (partial(kinit.constant_, value=[1.0, 2.0, 3.0]), ValueError, r"of shape \(3,\) does not broadcast .*, \(4, 6\)"),
    (partial(kinit.constant_, value="zero"), TypeError, "`value` must be a number or an array of numbers, got 'zero'"),
    (kinit.unit_forget_bias_, ValueError, r"`tensor` must be a vector of four equal blocks, got shape \(6, 4\)"),
    (partial(kinit.stft_, side="left"), ValueError, "`side` must be one of 'real', 'imag', got 'left'"),
    (kinit.stft_, ValueError, r"`tensor` must have shape \(frame_length, 1, fft_length // 2 \+ 1\).* got \(4, 6\)"),
]  # fmt: skip


@pytest.mark.parametrize(("fill", "error", "message"), VALUES, ids=[m[:40] for _, _, m in VALUES])
def test_a_wrong_argument_is_named_and_nothing_changes(fill, error, message):
    """A wrong value of an argument raises, on meta tensors as well, and neither the tensor nor the RNG moves."""
    tensor = torch.full((6, 4), 0.25)
    state = torch.get_rng_state()
    for target in (tensor, torch.empty(6, 4, device="meta")):
        with pytest.raises(error, match=message):
            fill(target)
    assert bool((tensor == 0.25).all())
    assert torch.equal(torch.get_rng_state(), state)


FILLS = [kinit.zeros_, kinit.random_uniform_, kinit.random_normal_, kinit.trunc_normal_, kinit.he_normal_,
         kinit.orthogonal_, kinit.identity_, kinit.stft_, kinit.unit_forget_bias_]  # fmt: skip

TENSORS = [
    (lambda: torch.zeros(4, 4, dtype=torch.int64), TypeError, "must have a real floating dtype, got torch.int64"),
    (lambda: torch.zeros(4, 4, dtype=torch.bool), TypeError, "must have a real floating dtype, got torch.bool"),
    (lambda: torch.zeros(4, 4, dtype=torch.complex64), TypeError, "real floating dtype, got torch.complex64"),
    (lambda: torch.zeros(4, 4).to_sparse(), TypeError, r"must be a dense \(strided\) tensor, got a torch.sparse_coo"),
    (lambda: torch.zeros(4, 1).expand(4, 4), ValueError, "holds the same memory more than once"),
    (lambda: torch.zeros(9).as_strided((4, 4), (1, 1)), ValueError, "holds the same memory more than once"),
    (lambda: torch.zeros(10).unfold(0, 4, 2), ValueError, "holds the same memory more than once"),
    (lambda: nn.UninitializedParameter(), ValueError, "is lazy and has no shape yet: run one forward pass"),
    (lambda: np.zeros((4, 4)), TypeError, "`tensor` must be a torch.Tensor, got <ndarray"),
    (lambda: nn.Linear(2, 2), TypeError, "`tensor` must be a torch.Tensor, got Linear"),
    (lambda: None, TypeError, "`tensor` must be a torch.Tensor, got None of type NoneType"),
]  # fmt: skip
if hasattr(torch, "float8_e8m0fnu"):  # from torch 2.7 on: powers of two without a sign
    TENSORS.append(
        (
            lambda: torch.zeros(4, 4, dtype=torch.float8_e8m0fnu),
            TypeError,
            "real floating dtype, got torch.float8_e8m0fnu",
        )
    )


@pytest.mark.parametrize(("make", "error", "message"), TENSORS, ids=[m[-30:] for _, _, m in TENSORS])
@pytest.mark.parametrize("fill", FILLS, ids=[f.__name__ for f in FILLS])
def test_a_tensor_that_cannot_be_filled_is_refused(fill, make, error, message):
    """Integer, complex, sparse, overlapping and lazy tensors, and what is no tensor, raise."""
    with pytest.raises(error, match=message):
        fill(make())


def test_quantized_tensors_are_refused(recwarn):
    """A quantized tensor raises a TypeError that says so."""
    quantized = torch.quantize_per_tensor(torch.zeros(4, 4), 0.1, 0, torch.qint8)
    with pytest.raises(TypeError, match="got a quantized one"):
        kinit.he_normal_(quantized)


@pytest.mark.parametrize("shape", [(), (5,)], ids=["rank 0", "rank 1"])
def test_matrices_need_two_axes(shape):
    """orthogonal_ and identity_ refuse scalars and vectors, in Keras' words' sense."""
    with pytest.raises(ValueError, match="must have at least two axes to be orthogonal"):
        kinit.orthogonal_(torch.empty(shape))
    with pytest.raises(ValueError, match="must have two axes to be an identity"):
        kinit.identity_(torch.empty(shape))


def test_wrong_windows_are_refused():
    """stft_ names the windows there are, and the length one must have."""
    kernel = torch.empty(9, 1, 12)
    with pytest.raises(ValueError, match=r"got 'han'. Did you mean 'hann'"):
        kinit.stft_(kernel, window="han")
    with pytest.raises(ValueError, match=r"vector of frame_length=12 values, got shape \(5,\)"):
        kinit.stft_(kernel, window=torch.ones(5))
    with pytest.raises(ValueError, match="`window` must hold finite values"):
        kinit.stft_(kernel, window=torch.full((12,), NAN))


def test_a_law_that_does_not_fit_in_half_precision_is_refused():
    """float16 ends at 65504: a wider law raises instead of giving infinities."""
    for fill in (kinit.random_normal_, kinit.trunc_normal_):
        with pytest.raises(ValueError, match=r"torch.float16 cannot hold"):
            fill(torch.empty(3, dtype=torch.float16), 0.0, 50000.0)
    assert bool(torch.isfinite(kinit.trunc_normal_(torch.empty(9, dtype=torch.float16), 0.0, 30000.0)).all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_generator_of_another_accelerator_is_refused():
    """A CUDA generator cannot fill a CPU tensor."""
    with pytest.raises(ValueError, match=r"`generator` is on cuda.* and the tensor on cpu"):
        kinit.he_normal_(torch.empty(3, 3), generator=torch.Generator("cuda"))


def test_the_generator_check_sees_devices():
    """The check itself, without an accelerator: a meta-like device pair that differs is refused."""
    with pytest.raises(ValueError, match="pass a generator of the tensor's device, or a CPU one"):
        as_source(_OnCuda(), torch.device("cpu"))
    assert as_source(_OnCuda(), torch.device("cuda:0")) is not None
    with pytest.raises(ValueError, match="`generator` is on cuda:0 and the tensor on cuda:1"):
        as_source(_OnCuda(), torch.device("cuda:1"))


class _OnCuda(torch.Generator):
    device = torch.device("cuda:0")


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["none", "torch's"])
def test_a_distributed_tensor_needs_a_key(generator):
    """A tensor with a device mesh and placements raises where its parts would not be those of one whole."""
    tensor = torch.zeros(3, 3)
    tensor.device_mesh, tensor.placements = object(), ()
    with pytest.raises(ValueError, match=r"`tensor` is a DTensor, .*; pass generator=Key\(seed\), equal on all"):
        kinit.he_normal_(tensor, generator=generator)
    assert not tensor.any()


def test_unit_forget_bias_needs_four_blocks():
    """A vector of no four equal blocks, or a matrix, is refused by unit_forget_bias_ and keeps its values."""
    for shape in [(6,), (4, 4), ()]:
        tensor = torch.full(shape, 7.0)
        with pytest.raises(ValueError, match="four equal blocks"):
            kinit.unit_forget_bias_(tensor)
        assert bool((tensor == 7).all())
