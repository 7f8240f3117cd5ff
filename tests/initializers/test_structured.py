"""Orthogonal matrices, identities and Fourier kernels."""

import math

import keras
import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch

import torch_kinit as kinit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (1, 5), (5, 1), (8, 3, 2, 2), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("layout", ["torch", "keras"])
def test_the_shorter_side_is_orthonormal(shape, dtype, layout, device):
    """Flattened as Keras flattens (all axes but its last are rows), the shorter side's vectors have length `gain`."""
    if device.type == "mps" and dtype == torch.float64:
        pytest.skip("MPS has no float64")
    tensor = kinit.orthogonal_(torch.empty(shape, dtype=dtype, device=device), gain=1.5, layout=layout)
    view = tensor if layout == "keras" else tensor.permute(*range(2, len(shape)), 1, 0)
    matrix = view.reshape(-1, view.shape[-1]).double().cpu()
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    tolerance = 8 * torch.finfo(dtype).eps * 1.5**2
    assert torch.allclose(gram, 1.5**2 * torch.eye(len(gram), dtype=torch.float64), atol=tolerance)


def test_matrices_are_uniform_among_the_orthogonal_ones():
    """By Haar's measure a 3x3 matrix's entries are uniform on [-1, 1] (Archimedes), its determinant's sign is fair, and
    the eigenvalues' angles repel; without the signs of R's diagonal the first column's sign would be fixed."""
    matrices = torch.stack([kinit.orthogonal_(torch.empty(3, 3, dtype=torch.float64)) for _ in range(4000)])
    for i in range(3):
        for j in range(3):
            assert scipy.stats.kstest(matrices[:, i, j].numpy(), scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-5
    positive = int((torch.linalg.det(matrices) > 0).sum())
    assert scipy.stats.binomtest(positive, 4000).pvalue > 1e-5
    rotated = matrices @ torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    assert scipy.stats.ks_2samp(rotated[:, 0, 1].numpy(), matrices[:, 0, 1].numpy()).pvalue > 1e-5
    traces = torch.diagonal(matrices, dim1=1, dim2=2).sum(1)  # E trace^2 = 1 for Haar
    assert abs(float((traces**2).mean()) - 1) < 6 * float((traces**2).std()) / math.sqrt(4000)


def test_the_uniformity_check_rejects_plain_qr():
    """LAPACK's Q without sign correction fails the same checks."""
    matrices = torch.stack([torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0] for _ in range(4000)])
    assert scipy.stats.kstest(matrices[:, 0, 0].numpy(), scipy.stats.uniform(-1, 2).cdf).pvalue < 1e-5


def test_empty_matrices_stay():
    """Zero-size and meta tensors are returned as they are, as Keras allows."""
    for shape in ((0, 3), (3, 0), (0, 2, 2)):
        keras.initializers.Orthogonal(seed=0)(shape)
        assert kinit.orthogonal_(torch.empty(shape)).shape == shape
    assert kinit.orthogonal_(torch.empty(3, 3, device="meta")).device.type == "meta"


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (5, 2), (0, 3)])
def test_identity_is_that_of_keras(shape, device):
    """identity_ gives Keras' values, rectangular too."""
    expected = np.asarray(keras.initializers.Identity(gain=0.25)(shape))
    assert np.array_equal(kinit.identity_(torch.empty(shape, device=device), gain=0.25).cpu().numpy(), expected)


@pytest.mark.parametrize("side", ["real", "imag"])
@pytest.mark.parametrize("window", ["hann", "hamming", "blackman", "bartlett", "cosine", "nuttall", "boxcar", None])
@pytest.mark.parametrize("scaling", ["density", "spectrum", None])
@pytest.mark.parametrize("periodic", [False, True])
def test_stft_is_that_of_keras(side, window, scaling, periodic):
    """stft_ gives Keras' kernel, in both layouts, to Keras' own float32 rounding of the angles."""
    expected = np.asarray(keras.initializers.STFT(side, window, scaling, periodic)((30, 1, 17)))
    ours = kinit.stft_(torch.empty(17, 1, 30), side, window, scaling, periodic)
    assert np.allclose(ours.permute(2, 1, 0).numpy(), expected, atol=2e-5)  # an angle of 91 has 4e-6
    assert torch.equal(kinit.stft_(torch.empty(30, 1, 17), side, window, scaling, periodic, layout="keras"),
                       ours.permute(2, 1, 0))  # fmt: skip


def test_stft_takes_any_window_as_values():
    """A window torch does not have goes in as SciPy's values."""
    window = scipy.signal.get_window(("kaiser", 8.6), 30)
    expected = np.asarray(keras.initializers.STFT("real", window.astype("float32"))((30, 1, 17)))
    for values in (window, torch.from_numpy(window), window.tolist()):
        ours = kinit.stft_(torch.empty(17, 1, 30, dtype=torch.float64), "real", values)
        assert np.allclose(ours.permute(2, 1, 0).numpy(), expected, atol=3e-6)


def test_stft_convolution_is_a_fourier_transform():
    """A Conv1d with these kernels gives torch.fft.rfft of each windowed frame."""
    frame, cycle = 16, 16
    signal = torch.randn(1, 1, frame, dtype=torch.float64)
    real, imag = (
        kinit.stft_(torch.empty(cycle // 2 + 1, 1, frame, dtype=torch.float64), side, None) for side in ("real", "imag")
    )
    got = torch.nn.functional.conv1d(signal, real) + 1j * torch.nn.functional.conv1d(signal, imag)
    assert torch.allclose(got.flatten(), torch.fft.rfft(signal.flatten()), atol=1e-12)
