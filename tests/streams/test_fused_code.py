"""The kernels of accelerators as they are built for GPUs, without one: which operations their machine code has."""

import inspect
import re
import struct
import types

import pytest
import torch

import torch_kinit as kinit
from tests.support.kernels import Recorded, meta
from torch_kinit.numerics import exact
from torch_kinit.streams import fused
from torch_kinit.streams.inverse import inverse_cdf

pytest.importorskip("triton")

INTEGERS = ("first", "count", "start", *(f"{kind}{axis}" for kind in ("size", "to", "at") for axis in range(4)))
KERNELS = [  # and the operations on floating-point numbers that it is made of
    ("draw", "UNIFORM", "fp32", {"mul", "add"}),
    ("draw", "CENTRAL", "bf16", {"mul", "add", "sub", "div"}),
    ("draw", "NORMAL", "fp16", {"mul", "add", "sub", "div", "sqrt"}),
    ("draw", "TAIL", "fp32", {"mul", "add", "sub", "div", "sqrt"}),
    ("draw", "UNIFORM", "fp64", {"mul", "add"}),
    ("draw", "NORMAL", "fp64", {"mul", "add", "sub", "div", "sqrt"}),
    ("draw", "TAIL", "fp64", {"mul", "add", "sub", "div", "sqrt"}),
    ("draw_together", "CENTRAL", "fp32", {"mul", "add", "sub", "div"}),
    ("draw_together", "TAIL", "fp64", {"mul", "add", "sub", "div", "sqrt"}),
    ("draw_as_jax", "JAX_UNIFORM", "bf16", {"mul", "add"}),
    ("draw_as_jax", "JAX_NORMAL", "fp32", {"mul", "add", "sub", "div", "sqrt", "fma"}),
]
every_kernel = pytest.mark.parametrize(
    ("kernel", "law", "dtype", "kinds"), KERNELS, ids=[" ".join(k[:3]) for k in KERNELS]
)
# As PTX writes them: each is rounded by itself where it says so, which `fma` is not.
ROUNDED = re.compile(
    r"^\s*(?:@\S+\s+)?((?:add|sub|mul|mad|fma|div|sqrt|rcp|rsqrt|ex2|lg2)\.\S*f(?:32|64))\s", re.MULTILINE
)


def machine_code(kernel, law, dtype, target, stage):
    """A kernel as it is built for a GPU, without one."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from torch_kinit.streams import fused_kernels as kernels

    function, wide = getattr(kernels, kernel), dtype == "fp64"
    constants = {"LAW": getattr(kernels, law).value, "AXES": 2, "NARROW": True, "WIDTH": 28, "BLOCK": fused._BLOCK}
    constants = {name: constants[name] for name in function.arg_names if name in constants}
    signature = dict.fromkeys(function.arg_names, "i64" if wide else "fp32") | dict.fromkeys(INTEGERS, "i64")
    signature |= {"out": f"*{dtype}", "like": f"*{dtype}", "table": "*i64", "k0": "i32", "k1": "i32"}
    signature = {name: signature[name] for name in function.arg_names}
    if "constants" in inspect.signature(ASTSource).parameters:  # up to Triton 3.2
        for name in constants:
            del signature[name]
        source = ASTSource(function, signature, constants=constants)
    else:
        source = ASTSource(function, signature | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    return build(source, target=GPUTarget(*target), options={"enable_fp_fusion": False}).asm[stage]


@pytest.mark.slow
@every_kernel
def test_each_operation_is_rounded(kernel, law, dtype, kinds):
    """A kernel as it is built for an H100 fuses only where it says so, and has no approximate quotient or root."""
    text = machine_code(kernel, law, dtype, ("cuda", 90, 32), "ptx")
    suffix = "f64" if dtype == "fp64" else "f32"
    # Triton 3.2 flushes subnormal numbers in quotients and roots, where draws have none.
    found = {re.sub(r"(div|sqrt)\.rn\.ftz", r"\1.rn", each) for each in ROUNDED.findall(text)}
    assert found == {f"{kind}.rn.{suffix}" for kind in kinds}
    if (law, dtype) == ("NORMAL", "fp64"):  # whose constants stay float64
        for number in exact.ERFINV[torch.float64][0][2]:
            assert f"0d{struct.pack('>d', number).hex().upper()}" in text


FUSED_BY_AMD = re.compile(r"\bv_(?:pk_)?(?:fma|fmac|mad|mac|fmaak|fmamk|madak|madmk)_(?:legacy_)?f(?:32|64)")


@pytest.mark.slow
@every_kernel
def test_nothing_is_fused_for_amd(kernel, law, dtype, kinds):
    """For an MI300 only quotients and roots, which are correctly rounded, have fused steps, and subnormals are kept."""
    try:
        text = machine_code(kernel, law, dtype, ("hip", "gfx942", 64), "amdgcn")
    except Exception as error:
        if "ROCm linker" in str(error):  # which Triton 3.2 has in its build for ROCm alone
            pytest.skip(str(error))
        raise
    assert "denorm_mode_32 3" in text
    assert "denorm_mode_16_64 3" in text
    quotients, fused_steps = len(re.findall(r"v_div_fixup_f(?:32|64)", text)), len(FUSED_BY_AMD.findall(text))
    roots = len(re.findall(r"v_(?:sqrt_f32|rsq_f64)", text))
    if "fma" in kinds:
        assert fused_steps > 5 * quotients + 2 * roots
    else:
        assert fused_steps == 5 * quotients + (7 if dtype == "fp64" else 2) * roots
    assert bool(quotients) == ("div" in kinds)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_kernel_for_all_numbers(dtype):
    """Sizes, offsets, keys and a law's numbers, and where the memory begins, do not make Triton compile anew."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    from torch_kinit.streams import fused_kernels as kernels

    draw, dtype = kernels.draw, getattr(torch, dtype)
    bind = create_function_from_signature(draw.signature, draw.params, make_backend(GPUTarget("cuda", 90, 32)))
    recorded, found = Recorded(), set()
    for law in (kinit.TruncatedNormal(0.0, 1.0), kinit.TruncatedNormal(0.1, 0.3)):
        for tensor, index in (
            (torch.empty(64, dtype=dtype), meta(64)),
            (torch.empty(48, dtype=dtype)[1:], meta(2**40)[2**33 : 2**33 + 47]),
            (torch.empty(1, dtype=dtype), meta(1)),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(fused, "_kernels", lambda: types.SimpleNamespace(draw=recorded, CENTRAL=kernels.CENTRAL))
                numbers = fused._numbers(inverse_cdf(law, dtype), dtype, dtype == torch.float64)
                fused.launch("draw", "CENTRAL", tensor, index, (2**32 - 1, 1), numbers)
    for _, arguments, options in recorded.launches:
        del options["enable_fp_fusion"]
        found.add(str(bind(*arguments, **options)[1]))
    assert len(recorded.launches) == 6
    assert len(found) <= (1 if dtype == torch.float32 else 2)  # a zero has fewer bits
