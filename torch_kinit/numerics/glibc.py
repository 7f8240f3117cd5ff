"""The logarithm, sine and cosine of float32 numbers to the bit that glibc (2.28 and later) gives, in torch operations.

TensorFlow's normal draws on the CPU call the C library. Correctly rounded functions would not do: they differ from
glibc's in 0.7 % (logarithm) and 1.3 % (sine) of the arguments that a draw can have. The formulas and constants are
those of Arm's optimized-routines, which glibc took over: math/logf.c and math/sincosf.h, and the data beside them.
Everything is computed in float64, each operation rounded, and rounded to float32 at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

# 1/c and log(c) for a point c in each of the 16 parts of [0.699, 1.398).
_LOG_TABLE = (
    ("0x1.661ec79f8f3bep+0", "-0x1.57bf7808caadep-2"),
    ("0x1.571ed4aaf883dp+0", "-0x1.2bef0a7c06ddbp-2"),
    ("0x1.49539f0f010bp+0", "-0x1.01eae7f513a67p-2"),
    ("0x1.3c995b0b80385p+0", "-0x1.b31d8a68224e9p-3"),
    ("0x1.30d190c8864a5p+0", "-0x1.6574f0ac07758p-3"),
    ("0x1.25e227b0b8eap+0", "-0x1.1aa2bc79c81p-3"),
    ("0x1.1bb4a4a1a343fp+0", "-0x1.a4e76ce8c0e5ep-4"),
    ("0x1.12358f08ae5bap+0", "-0x1.1973c5a611cccp-4"),
    ("0x1.0953f419900a7p+0", "-0x1.252f438e10c1ep-5"),
    ("0x1p+0", "0x0p+0"),
    ("0x1.e608cfd9a47acp-1", "0x1.aa5aa5df25984p-5"),
    ("0x1.ca4b31f026aap-1", "0x1.c5e53aa362eb4p-4"),
    ("0x1.b2036576afce6p-1", "0x1.526e57720db08p-3"),
    ("0x1.9c2d163a1aa2dp-1", "0x1.bc2860d22477p-3"),
    ("0x1.886e6037841edp-1", "0x1.1058bc8a07ee1p-2"),
    ("0x1.767dcf5534862p-1", "0x1.4043057b6ee09p-2"),
)
_LOG_POLYNOMIAL = tuple(map(float.fromhex, ("-0x1.00ea348b88334p-2", "0x1.5575b0be00b6ap-2", "-0x1.ffffef20a4123p-2")))
_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
_LOG_ORIGIN = 0x3F330000  # the bits of 0.699, where the table begins

_TWO_OVER_PI = float.fromhex("0x1.45F306DC9C883p-1")
# pi/2 = 0x1.921FB54442D18p0 in two parts: a multiple of the first by up to 2**8 is exact.
_HALF_PI = (float.fromhex("0x1.921FB54442D00p0"), float.fromhex("0x0.0000000000018p0"))
_COS_POLYNOMIAL = tuple(
    map(
        float.fromhex,
        ("-0x1.ffffffd0c621cp-2", "0x1.55553e1068f19p-5", "-0x1.6c087e89a359dp-10", "0x1.99343027bf8c3p-16"),
    )
)
_SIN_POLYNOMIAL = tuple(map(float.fromhex, ("-0x1.555545995a603p-3", "0x1.1107605230bc4p-7", "-0x1.994eb3774cf24p-13")))


def _log_tables(lowest: int, highest: int) -> Tensor:
    """For x = z * 2**k with k from `lowest` to `highest`: 2**-k / c and log(c) + k * log(2), at position 16k + part."""
    rows = [(float.fromhex(inverse), float.fromhex(log)) for inverse, log in _LOG_TABLE]
    exponents = range(lowest, highest + 1)
    inverses = [inverse * 2.0**-k for k in exponents for inverse, _ in rows]
    logs = [log + k * _LN2 for k in exponents for _, log in rows]
    return torch.tensor([inverses, logs], dtype=torch.float64, device="cpu")


_LOWEST = -32
_INVERSES, _LOGS = _log_tables(_LOWEST, 0)


def logf(x: Tensor) -> Tensor:
    """log(x) of a one-dimensional float32 tensor, 2**-32 <= x <= 1."""
    part = (x.view(torch.int32) - (_LOG_ORIGIN + (_LOWEST << 23))) >> 19
    r = x.double().mul_(_INVERSES.index_select(0, part)).sub_(1)
    total = _LOGS.index_select(0, part).add_(r)
    slope = (r * _LOG_POLYNOMIAL[1]).add_(_LOG_POLYNOMIAL[2])
    square = r.mul_(r)
    return (square * _LOG_POLYNOMIAL[0]).add_(slope).mul_(square).add_(total).float()


def sincosf(x: Tensor) -> tuple[Tensor, Tensor]:
    """sin(x) and cos(x) of a float32 tensor, 0 <= x < 120."""
    rest = x.double()
    quarter = (rest * _TWO_OVER_PI).add_(0.5).int()  # not floor_, which torch shares among threads however small
    turns = quarter.double()
    for part in _HALF_PI:
        rest.sub_(turns * part)
    del turns
    sin, cos = _polynomials(rest)
    # In odd quarters sine and cosine change places; torch.where would take longer than all the rest.
    other = sin.bitwise_xor(cos).bitwise_and_(-(quarter & 1))
    sin.bitwise_xor_(other).bitwise_xor_((quarter & 2) << 30)
    cos.bitwise_xor_(other).bitwise_xor_((quarter.add_(1) & 2) << 30)
    return sin.view(torch.float32), cos.view(torch.float32)


def _polynomials(x: Tensor) -> tuple[Tensor, Tensor]:
    """The bits of sin(x) and cos(x) in float32 for a float64 tensor, which is overwritten, within pi/4 of zero."""
    c1, c2, c3, c4 = _COS_POLYNOMIAL
    s1, s2, s3 = _SIN_POLYNOMIAL
    square = x * x
    cube = square * x
    sin = x.add_(cube * s1).add_(cube.mul_(square).mul_((square * s3).add_(s2))).float()
    del cube
    cos = (square * c1).add_(1)
    fourth = square * square
    cos.add_(fourth * c2).add_(fourth.mul_(square).mul_(square.mul_(c4).add_(c3)))
    return sin.view(torch.int32), cos.float().view(torch.int32)
