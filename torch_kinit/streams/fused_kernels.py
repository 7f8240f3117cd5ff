"""The Triton kernels of draws on accelerators: index -> Threefry words -> law -> tensor, in one pass.

This file is imported where Triton runs, and nowhere else. Each operation is one that IEEE 754 rounds exactly, in the
order of the draw on the CPU (`numerics.threefry`, `numerics.exact`, `streams.inverse`; `streams.keras_jax`). Launches
ask for no contraction of products and sums; where JAX's compiler contracts them, `tl.fma` says so. So the bits are
those of the CPU.
"""

import math

import torch
import triton
import triton.language as tl

from torch_kinit.numerics import exact, threefry
from torch_kinit.streams import keras_jax

# Laws of a Key; CENTRAL is NORMAL where only the middle branch of erfinv is met. Then those of JAX.
UNIFORM, CENTRAL, NORMAL, TAIL = (tl.constexpr(law) for law in range(4))
JAX_UNIFORM, JAX_TRUNCATED, JAX_NORMAL = (tl.constexpr(law) for law in range(3))

# Of a tuple among these constants `.value` is indexed: Triton 3.2 cannot index what a constexpr holds.
_DTYPES = (torch.float32, torch.float64)
_single, _double = (exact.FORMATS[dtype] for dtype in _DTYPES)
_LOG, _LOG_64 = (tl.constexpr(tuple(form.log)) for form in (_single, _double))
_SQRT_HALF, _SQRT_HALF_64 = (tl.constexpr(form.sqrt_half) for form in (_single, _double))
# Of each branch of erfinv: up to which w, what is taken from w or its root, and the coefficients.
_LIMITS, _LIMITS_64 = (tl.constexpr(tuple(branch[0] for branch in exact.ERFINV[dtype])) for dtype in _DTYPES)
_CENTRES, _CENTRES_64 = (tl.constexpr(tuple(branch[1] for branch in exact.ERFINV[dtype])) for dtype in _DTYPES)
_INNER, _OUTER = (tl.constexpr(tuple(branch[2])) for branch in exact.ERFINV[torch.float32])
_INNER_64, _OUTER_64, _OUTMOST_64 = (tl.constexpr(tuple(branch[2])) for branch in exact.ERFINV[torch.float64])
_NEAR, _BELOW_NEAR = (tl.constexpr(tuple(each)) for each in exact.ERFCX_MIDDLE)
_FAR, _BELOW_FAR = (tl.constexpr(tuple(each)) for each in exact.ERFCX_FAR)
_EVEN, _ODD = (tl.constexpr(each) for each in threefry.ROTATIONS)
_PARITY = tl.constexpr(threefry.PARITY)
_LN2, _SQRT_OF_HALF, _SQRT_HALF_PI, _ROOT_OF_PI = (
    tl.constexpr(number) for number in (math.log(2), math.sqrt(0.5), math.sqrt(math.pi / 2), 1 / math.sqrt(math.pi))
)
_STEP, _STEP_64 = tl.constexpr(2.0**-23), tl.constexpr(2.0**-52)
_TINY = tl.constexpr(2.0**-126)
_JAX_NUMERATOR, _JAX_DENOMINATOR, _JAX_LOG = (
    tl.constexpr(tuple(each)) for each in (keras_jax.LOG1P_NUMERATOR, keras_jax.LOG1P_DENOMINATOR, keras_jax.LOG)
)
_JAX_BELOW, _JAX_LN2_HIGH, _JAX_LN2_LOW = map(
    tl.constexpr, (keras_jax.LOG1P_BELOW, keras_jax.LN2_HIGH, keras_jax.LN2_LOW)
)

# --- where, and random bits ------------------------------------------------------------------------------------------


@triton.jit
def _split(n, size, to, at, where, flat):
    """Take the last axis off the positions `n`, and add what it contributes."""
    rest = n // size.to(n.dtype)
    place = (n - rest * size.to(n.dtype)).to(tl.int64)
    return rest, where + place * to, flat + place * at


@triton.jit
def _places(
    n, start, size1, size2, size3, to0, to1, to2, to3, at0, at1, at2, at3, AXES: tl.constexpr, NARROW: tl.constexpr
):
    """Where the elements at the positions `n` of a view are in memory, and their flat indices."""
    where, flat = n, n + start
    if AXES > 0:
        where, flat = n * 0, n * 0 + start
        if NARROW:  # division takes a fraction of the time
            n = n.to(tl.uint32)
        if AXES > 3:
            n, where, flat = _split(n, size3, to3, at3, where, flat)
        if AXES > 2:
            n, where, flat = _split(n, size2, to2, at2, where, flat)
        if AXES > 1:
            n, where, flat = _split(n, size1, to1, at1, where, flat)
        n = n.to(tl.int64)
        where, flat = where + n * to0, flat + n * at0
    return where, flat


@triton.jit
def _four_rounds(x0, x1, BY: tl.constexpr):
    for i in tl.static_range(4):
        x0 = x0 + x1
        x1 = ((x1 << BY.value[i]) | (x1 >> (32 - BY.value[i]))) ^ x0
    return x0, x1


@triton.jit
def _words(flat, k0, k1):
    """Threefry-2x32's words for the counters `flat`."""
    k2 = k0 ^ k1 ^ _PARITY
    x0 = (flat >> 32).to(tl.uint32) + k0
    x1 = flat.to(tl.uint32) + k1
    x0, x1 = _four_rounds(x0, x1, _EVEN)
    x0, x1 = x0 + k1, x1 + k2 + 1
    x0, x1 = _four_rounds(x0, x1, _ODD)
    x0, x1 = x0 + k2, x1 + k0 + 2
    x0, x1 = _four_rounds(x0, x1, _EVEN)
    x0, x1 = x0 + k0, x1 + k1 + 3
    x0, x1 = _four_rounds(x0, x1, _ODD)
    x0, x1 = x0 + k1, x1 + k2 + 4
    x0, x1 = _four_rounds(x0, x1, _EVEN)
    return x0 + k2, x1 + k0 + 5


# --- functions, of float32 and float64 -------------------------------------------------------------------------------


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr, COUNT: tl.constexpr):
    value = x * COEFFICIENTS.value[0] + COEFFICIENTS.value[1]
    for i in tl.static_range(2, COUNT):
        value = value * x + COEFFICIENTS.value[i]
    return value


@triton.jit
def _quotient(a, b):
    if b.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def _root(x):
    """The square root, of float64 numbers rounded twice, as the CPU has it."""
    if x.dtype == tl.float64:
        return x * (1.0 / tl.sqrt(x))
    else:
        return tl.sqrt_rn(x)


@triton.jit
def _log(a):
    if a.dtype == tl.float64:
        word = a.to(tl.int64, bitcast=True)
        exponent = (word - _SQRT_HALF_64) >> 52
        m = (word - (exponent << 52)).to(tl.float64, bitcast=True)  # from sqrt(1/2) to sqrt(2)
        s = _quotient(m - 1.0, m + 1.0)
        return _polynomial(s * s, _LOG_64, 8) * s + exponent.to(tl.float64) * _LN2
    else:
        word = a.to(tl.int32, bitcast=True)
        exponent = (word - _SQRT_HALF) >> 23
        m = (word - (exponent << 23)).to(tl.float32, bitcast=True)
        s = _quotient(m - 1.0, m + 1.0)
        return _polynomial(s * s, _LOG, 5) * s + exponent.to(tl.float32) * _LN2


@triton.jit
def _erfinv(x, LAW: tl.constexpr):
    w = -_log((1.0 + x) * (1.0 - x))
    if x.dtype == tl.float64:
        factor = _polynomial(w - _CENTRES_64.value[0], _INNER_64, 23)
        if LAW == NORMAL:
            root = _root(w)
            outer = _polynomial(root - _CENTRES_64.value[1], _OUTER_64, 19)
            outmost = _polynomial(root - _CENTRES_64.value[2], _OUTMOST_64, 17)
            factor = tl.where(w < _LIMITS_64.value[0], factor, outer)
            factor = tl.where(w < _LIMITS_64.value[1], factor, outmost)
    else:
        factor = _polynomial(w - _CENTRES.value[0], _INNER, 9)
        if LAW == NORMAL:
            factor = tl.where(w < _LIMITS.value[0], factor, _polynomial(_root(w) - _CENTRES.value[1], _OUTER, 9))
    return x * factor


@triton.jit
def _ratio(x, ABOVE: tl.constexpr, BELOW: tl.constexpr, COUNT: tl.constexpr):
    return _quotient(_polynomial(x, ABOVE, COUNT), _polynomial(x, BELOW, COUNT))


@triton.jit
def _erfcx(x):
    near = _ratio(tl.where(x > 8.0, 8.0, x), _NEAR, _BELOW_NEAR, 9)
    inverse = tl.where(x < 4.0, 4.0, x)
    inverse = _quotient(1.0, inverse)
    square = inverse * inverse
    far = (_ROOT_OF_PI - _ratio(square, _FAR, _BELOW_FAR, 6) * square) * inverse
    return tl.where(x < 4.0, near, far)


@triton.jit
def _distance(u, lower, hazard, twice_slope, squared_hazard, STEPS: tl.constexpr):
    """From a tail's lower bound to where its survival function is 1 - u, by Newton's steps."""
    exponential = -_log(1.0 - u)
    d = _quotient(exponential * 2.0, _root(exponential * twice_slope + squared_hazard) + hazard)
    for _ in tl.static_range(STEPS):
        here = _erfcx((d + lower) * _SQRT_OF_HALF) * _SQRT_HALF_PI
        short = exponential - d * (d * 0.5 + lower) + _log(here * hazard)
        d = d + short * here
    return d


@triton.jit
def _clamp(x, low, high):
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def _rounded(x, dtype: tl.constexpr):
    """float32 numbers as the nearest of a dtype, ties to even: Triton's interpreter rounds bfloat16 towards zero."""
    if dtype == tl.bfloat16:
        word = x.to(tl.int32, bitcast=True)
        word = word + 0x7FFF + ((word >> 16) & 1)
        return ((word >> 16) << 16).to(tl.float32, bitcast=True)
    elif dtype == tl.float16:
        return x.to(tl.float16).to(tl.float32)
    else:
        return x


# --- a Key's draws ---------------------------------------------------------------------------------------------------


@triton.jit
def _of_bits(number):
    """The float64 whose bits an integer has: as a float an argument is a float32."""
    return number.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _fraction(w0, w1, dtype: tl.constexpr):
    """From 0 to 1, of the upper 23 bits; in float64 of 52."""
    if dtype == tl.float64:
        wide = (w0.to(tl.uint64) << 32) | w1.to(tl.uint64)
        return (wide >> 12).to(tl.float64) * _STEP_64
    else:
        return ((w0 ^ w1) >> 9).to(tl.float32) * _STEP


@triton.jit
def _integer(w0, w1, dtype: tl.constexpr):
    """All 32 bits as a signed number; in float64 all 64."""
    if dtype == tl.float64:
        return ((w0.to(tl.uint64) << 32) | w1.to(tl.uint64)).to(tl.int64, bitcast=True).to(tl.float64)
    else:
        return (w0 ^ w1).to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def _values(
    flat, k0, k1, factor, middle, scale, low, high, shift, least, most, lower, hazard, twice_slope, squared_hazard,
    dtype: tl.constexpr, LAW: tl.constexpr,
):  # fmt: skip
    """The values of a law at flat indices; its numbers are `InverseCdf.numbers` and those of a tail."""
    w0, w1 = _words(flat, k0.to(tl.uint32), k1.to(tl.uint32))
    if LAW == UNIFORM:
        x = (_fraction(w0, w1, dtype) * factor + middle) * scale
    else:
        x = _clamp(_integer(w0, w1, dtype) * factor + middle, low, high)
        if LAW == TAIL:
            x = _distance(x, lower, hazard, twice_slope, squared_hazard, 3 if dtype == tl.float64 else 2)
        else:
            x = _erfinv(x, LAW)
        x = x * scale + shift
    return _rounded(_clamp(x, least, most), dtype).to(dtype)


@triton.jit(
    do_not_specialize=[
        "out", "first", "count", "start", "k0", "k1", "size1", "size2", "size3",
        "to0", "to1", "to2", "to3", "at0", "at1", "at2", "at3",
        "factor", "middle", "scale", "low", "high", "shift", "least", "most",
        "lower", "hazard", "twice_slope", "squared_hazard",
    ]  # a kernel for each would be compiled anew
)  # fmt: skip
def draw(
    out, first: tl.int64, count: tl.int64, start: tl.int64, k0, k1, size1: tl.int64, size2: tl.int64, size3: tl.int64,
    to0: tl.int64, to1: tl.int64, to2: tl.int64, to3: tl.int64, at0: tl.int64, at1: tl.int64, at2: tl.int64,
    at3: tl.int64, factor, middle, scale, low, high, shift, least, most, lower, hazard, twice_slope, squared_hazard,
    LAW: tl.constexpr, AXES: tl.constexpr, NARROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Fill elements `first` to `count` of a view of `out`, which has strides to0, to1, ...; flat indices are start +
    at0 ... Of no axes it lies in one line, in memory and in the whole. The numbers are those of `_values`, of float64
    as their bits.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * BLOCK + first + tl.arange(0, BLOCK)
    where, flat = _places(n, start, size1, size2, size3, to0, to1, to2, to3, at0, at1, at2, at3, AXES, NARROW)
    if dtype == tl.float64:
        factor, middle, scale, low = _of_bits(factor), _of_bits(middle), _of_bits(scale), _of_bits(low)
        high, shift, least, most = _of_bits(high), _of_bits(shift), _of_bits(least), _of_bits(most)
        lower, hazard = _of_bits(lower), _of_bits(hazard)
        twice_slope, squared_hazard = _of_bits(twice_slope), _of_bits(squared_hazard)
    x = _values(
        flat, k0, k1, factor, middle, scale, low, high, shift, least, most, lower, hazard, twice_slope, squared_hazard,
        dtype, LAW,
    )  # fmt: skip
    tl.store(out + where, x, mask=n < count)


@triton.jit
def _number(row, column: tl.constexpr, dtype: tl.constexpr):
    """A number of a law, of whose bits a table has an integer."""
    word = tl.load(row + column)
    if dtype == tl.float64:
        return word.to(tl.float64, bitcast=True)
    else:
        return word.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["table", "like"])
def draw_together(table, like, LAW: tl.constexpr, AXES: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Fill many views of the dtype of `like`, each from its own key and law, which a row of `table` tells.

    A row has `WIDTH` integers: where the view begins in memory, how many elements it has, the flat index of the first,
    the key, the bits of the numbers of `_values`, and, of a view with axes, the sizes and strides as of `draw`.
    """
    dtype: tl.constexpr = like.dtype.element_ty
    row, n = table + tl.program_id(0).to(tl.int64) * WIDTH, tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    out, count, start = tl.load(row).to(like.dtype), tl.load(row + 1), tl.load(row + 2)
    if tl.program_id(1) * BLOCK < count:  # the longest view decides how many programs each has
        if AXES == 0:
            where, flat = n, n + start
        else:
            where, flat = _places(
                n.to(tl.int64), start, tl.load(row + 17), tl.load(row + 18), tl.load(row + 19),
                tl.load(row + 20), tl.load(row + 21), tl.load(row + 22), tl.load(row + 23),
                tl.load(row + 24), tl.load(row + 25), tl.load(row + 26), tl.load(row + 27), AXES, True,
            )  # fmt: skip
        x = _values(
            flat, tl.load(row + 3), tl.load(row + 4),
            _number(row, 5, dtype), _number(row, 6, dtype), _number(row, 7, dtype), _number(row, 8, dtype),
            _number(row, 9, dtype), _number(row, 10, dtype), _number(row, 11, dtype), _number(row, 12, dtype),
            _number(row, 13, dtype), _number(row, 14, dtype), _number(row, 15, dtype), _number(row, 16, dtype),
            dtype, LAW,
        )  # fmt: skip
        tl.store(out + where, x, mask=n < count)


# --- what Keras draws on JAX -----------------------------------------------------------------------------------------


@triton.jit
def _fused(x, COEFFICIENTS: tl.constexpr, FIRST: tl.constexpr, STOP: tl.constexpr):
    """A polynomial whose steps are each rounded once."""
    value = tl.fma(x, COEFFICIENTS.value[FIRST], COEFFICIENTS.value[FIRST + 1])
    for i in tl.static_range(FIRST + 2, STOP):
        value = tl.fma(value, x, COEFFICIENTS.value[i])
    return value


@triton.jit
def _jax_log(a):
    word = a.to(tl.int32, bitcast=True)
    exponent = (word - _SQRT_HALF) >> 23
    x = (word - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = exponent.to(tl.float32)
    square = x * x
    cube = square * x
    y = _fused(x, _JAX_LOG, 0, 3)
    y = tl.fma(y, cube, _fused(x, _JAX_LOG, 3, 6))
    y = tl.fma(y, cube, _fused(x, _JAX_LOG, 6, 9))
    y = tl.fma(y, cube, e * _JAX_LN2_LOW)
    return ((x - square * 0.5) + y) + e * _JAX_LN2_HIGH  # both products are exact


@triton.jit
def _jax_log1p(square):
    """log(1 - square), as XLA computes it."""
    z = -square
    z2 = z * z
    ratio = tl.div_rn(_fused(z, _JAX_NUMERATOR, 0, 7), _fused(z, _JAX_DENOMINATOR, 0, 7)) * (z2 * z)
    small = z + (ratio - z2 * 0.5)
    return tl.where(square < _JAX_BELOW, small, _jax_log(z + 1.0))


@triton.jit
def _jax_erfinv(x, LAW: tl.constexpr):
    w = -_jax_log1p(x * x)
    factor = _fused(w - _CENTRES.value[0], _INNER, 0, 9)
    if LAW == JAX_NORMAL:
        factor = tl.where(w < _LIMITS.value[0], factor, _fused(_root(w) - _CENTRES.value[1], _OUTER, 0, 9))
    return x * factor


@triton.jit
def _flushed(x, dtype: tl.constexpr):
    """Subnormal numbers are zero, but those of float16, which is computed in float32."""
    if dtype == tl.float16:
        return x
    else:
        return tl.where(tl.abs(x) < _TINY, x * 0.0, x)


@triton.jit
def _affine(x, scale, shift, dtype: tl.constexpr):
    """Scale, then shift, each rounded."""
    x = _flushed(_rounded(x * scale, dtype), dtype)
    return _flushed(_rounded(x + shift, dtype), dtype)


@triton.jit(
    do_not_specialize=[
        "out", "first", "count", "start", "k0", "k1", "size1", "size2", "size3",
        "to0", "to1", "to2", "to3", "at0", "at1", "at2", "at3", "low", "width", "root", "most", "scale", "shift",
    ]
)  # fmt: skip
def draw_as_jax(
    out, first: tl.int64, count: tl.int64, start: tl.int64, k0, k1, size1: tl.int64, size2: tl.int64, size3: tl.int64,
    to0: tl.int64, to1: tl.int64, to2: tl.int64, to3: tl.int64, at0: tl.int64, at1: tl.int64, at2: tl.int64,
    at3: tl.int64, low, width, root, most, scale, shift,
    LAW: tl.constexpr, AXES: tl.constexpr, NARROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """As `draw`, with the numbers of `keras_jax.Numbers`; of float32, float16 or bfloat16."""
    dtype: tl.constexpr = out.dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * BLOCK + first + tl.arange(0, BLOCK)
    where, flat = _places(n, start, size1, size2, size3, to0, to1, to2, to3, at0, at1, at2, at3, AXES, NARROW)
    w0, w1 = _words(flat, k0.to(tl.uint32), k1.to(tl.uint32))
    bits = w0 ^ w1
    if dtype == tl.float32:
        x = (bits >> 9).to(tl.float32) * _STEP
        x = _flushed(tl.fma(x, width, low), dtype)
    else:
        if dtype == tl.float16:
            x = ((bits >> 6) & 0x3FF).to(tl.float32) * 0.0009765625  # 2**-10
        else:
            x = ((bits >> 1) & 0x7F).to(tl.float32) * 0.0078125  # 2**-7
        x = _affine(x, width, low, dtype)
    x = tl.where(x < low, low, x)
    if LAW != JAX_UNIFORM:
        x = _rounded(_rounded(_jax_erfinv(x, LAW), dtype) * root, dtype)
        if LAW == JAX_TRUNCATED:
            x = _clamp(x, -most, most)
        x = _affine(x, scale, shift, dtype)
    tl.store(out + where, x.to(dtype), mask=n < count)
