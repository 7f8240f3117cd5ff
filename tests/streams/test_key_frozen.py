"""Stream v1 stays as it is, on any number of threads and with any vector instructions."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch

import torch_kinit as kinit
from tests.support.backends import same_bits
from torch_kinit import Key

GOLDEN_DRAWS = {
    "uniform": lambda t, **g: kinit.random_uniform_(t, -0.5, 1.0, **g),
    "normal": lambda t, **g: kinit.random_normal_(t, 0.0, 1.0, **g),
    "truncated": lambda t, **g: kinit.trunc_normal_(t, 0.0, 1.0, **g),
    "tail": lambda t, **g: kinit.trunc_normal_(t, 0.0, 1.0, lower=3, upper=4, **g),
}
# Made once, with torch 2.13, and never to be made again:
#     for name, draw in GOLDEN_DRAWS.items():
#         for dtype in (torch.float32, torch.float64):
#             values = draw(torch.empty(2**16, dtype=dtype), generator=Key(2026).fold_in("layer.weight"))
#             print([x.hex() for x in values[:3].tolist()], hashlib.sha256(values.numpy().tobytes()).hexdigest())
GOLDEN = {
    ("uniform", torch.float32): (
        ("-0x1.14959c0000000p-2", "-0x1.0503080000000p-2", "0x1.e992d80000000p-3"),
        "50a577eac94438adaa21137f47374e47ebd0ed3a0cecdf13f0873f95728f5c8b",
    ),
    ("uniform", torch.float64): (
        ("-0x1.b109fba8dc540p-7", "0x1.f49881d506648p-2", "0x1.904e0c4066c84p-3"),
        "8f5e1bba827e174ca4414ba0be1ca9f04f921622c42b9dd0a55bdf7ac7cb8639",
    ),
    ("normal", torch.float32): (
        ("0x1.939c7a0000000p-2", "0x1.afe4b40000000p-2", "0x1.38981a0000000p+1"),
        "a3cb5cac49c8fe1b1da2ddfdd8231e8f7cd797994fecdb33bdc03eaa14e1ba1b",
    ),
    ("normal", torch.float64): (
        ("0x1.dd9038d8fc332p-1", "-0x1.fec28bc32b478p-1", "0x1.cb6a9b470d7e3p+0"),
        "509f08dcd16480ec5a9ea5d088e2e6e21614cbabcb5f0cf077f4158afc447048",
    ),
    ("truncated", torch.float32): (
        ("0x1.80560a0000000p-2", "0x1.9b1f400000000p-2", "0x1.e28c340000000p+0"),
        "eb4ba97fb75a4179219670cae5ebcb979b254e96580f1a3a9eff5df620a6b788",
    ),
    ("truncated", torch.float64): (
        ("0x1.c1066a7548c04p-1", "-0x1.df036616a569ep-1", "0x1.9395c0739427ep+0"),
        "edb6203ae0688dfbe7c801460b0fc15ce7fab68fe1ef8c878c88f5d19b0767e1",
    ),
    ("tail", torch.float32): (
        ("0x1.a601ac0000000p+1", "0x1.a700980000000p+1", "0x1.f7e7c40000000p+1"),
        "41898d45a1d3c1936159be3b0703c8561203ab37cba9f8c091031edb9708cc7c",
    ),
    ("tail", torch.float64): (
        ("0x1.bbcc0f429c1dap+1", "0x1.868acf098f603p+1", "0x1.e35c734e42e16p+1"),
        "8a076a10a7f79277abcc0d5465f33775b25faff1837de3efa6a9c3944e4e8c28",
    ),
}


@pytest.mark.parametrize(("name", "dtype"), GOLDEN, ids=str)
def test_the_stream_is_frozen(name, dtype):
    """Stream v1 gives the recorded values and the recorded bytes."""
    first, digest = GOLDEN[name, dtype]
    values = GOLDEN_DRAWS[name](torch.empty(2**16, dtype=dtype), generator=Key(2026).fold_in("layer.weight"))
    assert values[:3].tolist() == [float.fromhex(x) for x in first]
    assert hashlib.sha256(values.numpy().tobytes()).hexdigest() == digest


def test_names_are_frozen():
    """Stream v1 folds the first 64 bits of each part's SHA-256, upper word first, into the key."""
    digest = hashlib.sha256(b"weight").digest()
    upper, lower = (int.from_bytes(digest[start : start + 4], "big") for start in (0, 4))
    assert Key(5).fold_in("weight") == Key(5).fold_in(upper).fold_in(lower)
    # What Key(0).fold_in("encoder.weight").words was when the stream was frozen.
    assert Key(0).fold_in("encoder.weight").words == ENCODER_WEIGHT


ENCODER_WEIGHT = (2206473563, 1829291302)

DIGESTS = """
import hashlib, math, sys, torch, torch_kinit as kinit

torch.set_num_threads(int(sys.argv[1]))
DRAWS = {
    "uniform": kinit.random_uniform_, "normal": kinit.random_normal_, "truncated": kinit.trunc_normal_,
    "tail": lambda t, **g: kinit.trunc_normal_(t, lower=3, upper=math.inf, **g), "orthogonal": kinit.orthogonal_,
}
for name, draw in DRAWS.items():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        values = draw(torch.empty(301, 501, dtype=dtype), generator=kinit.Key(3))
        print(name, str(dtype), hashlib.sha256(values.view(torch.int16).numpy()).hexdigest())
"""
ENVIRONMENTS = {
    "one thread": (1, {}),
    "two threads": (2, {}),
    "torch's default instructions": (2, {"ATEN_CPU_CAPABILITY": "default"}),
    "torch's AVX2": (1, {"ATEN_CPU_CAPABILITY": "avx2"}),
    "MKL's AVX2": (1, {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}),
}
LAWS = ("uniform", "normal", "truncated", "tail")
ORTHOGONAL = ("orthogonal", "torch.float64")


@pytest.fixture(scope="module")
def digests():
    """What each environment draws: digests by law and dtype."""
    processes = {}
    for label, (threads, environment) in ENVIRONMENTS.items():
        command = [sys.executable, "-c", DIGESTS, str(threads)]
        processes[label] = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
    found = {}
    for label, process in processes.items():
        rows = [line.split() for line in process.communicate(timeout=120)[0].splitlines()]
        found[label] = {(law, dtype): digest for law, dtype, digest in rows}
        assert len(found[label]) == 15
    return found


@pytest.mark.slow
def test_threads_do_not_count(digests):
    """One thread and two give the same bits, but of an orthogonal matrix in float64, whose QR is LAPACK's."""
    assert len(set(digests["one thread"].values())) == 15
    one, two = ({k: v for k, v in digests[label].items() if k != ORTHOGONAL} for label in list(ENVIRONMENTS)[:2])
    assert len(one) == 14
    assert two == one


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_orthogonal_matrices_agree_to_the_last_bits(dtype):
    """One thread and two give orthogonal matrices of one law and key that are equal to float64's rounding."""
    threads, found = torch.get_num_threads(), []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(kinit.orthogonal_(torch.empty(301, 501, dtype=dtype), generator=Key(3)).double())
    torch.set_num_threads(threads)
    one, two = found
    assert float((one - two).abs().max()) <= (1e-14 if dtype == torch.float64 else 2.0**-24)
    assert int((one != two).sum()) <= (one.numel() if dtype == torch.float64 else 2)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("label", [label for label in ENVIRONMENTS if "thread" not in label])
def test_vector_instructions_do_not_count(digests, label, law):
    """Each value is the same on CPUs with other vector instructions; QR's are LAPACK's and may round otherwise."""
    want = {key: digest for key, digest in digests["one thread"].items() if key[0] == law}
    assert {key: digest for key, digest in digests[label].items() if key[0] == law} == want


@pytest.mark.parametrize("shape", [(40, 40), (64, 33), (33, 64), (16, 8, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_orthogonal(shape, dtype):
    """orthogonal_ of a Key has orthonormal rows or columns, to the dtype's rounding."""
    values = kinit.orthogonal_(torch.empty(shape, dtype=dtype), 2.0, generator=Key(1)).double().flatten(1) / 2
    shorter = values if len(values) <= values.shape[1] else values.t()
    tolerance = 16 * torch.finfo(dtype).eps
    assert torch.allclose(shorter @ shorter.t(), torch.eye(len(shorter), dtype=torch.float64), atol=tolerance, rtol=0)


def test_orthogonal_matrices_of_half_precision_are_rounded():
    """bfloat16 and float16 matrices are the float32 ones rounded; other strides change nothing."""
    exact = kinit.orthogonal_(torch.empty(30, 50), generator=Key(1))
    for dtype in (torch.bfloat16, torch.float16):
        found = kinit.orthogonal_(torch.empty(30, 50, dtype=dtype), generator=Key(1))
        assert same_bits(found, exact.to(dtype))
    assert same_bits(kinit.orthogonal_(torch.empty(50, 30).t(), generator=Key(1)), exact)
    assert not torch.equal(kinit.orthogonal_(torch.empty(30, 50), generator=Key(2)), exact)
