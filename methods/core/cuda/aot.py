"""Compiles the kernels for a GPU that is absent: ``python -m ...core.cuda.aot --arch 90``.

Reports for each kernel and width whether integer matrix instructions are used, and the registers,
spills and shared memory. This checks the compiler's output, not speed. It needs Triton's own
assembler, which its Linux wheels contain, and no GPU.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quantarena.methods.core.cuda import gemm, tuning
from quantarena.methods.core.cuda.packing import segments
from quantarena.methods.core.cuda.quantize import code_shift, quantize_kernel
from quantarena.methods.core.cuda.tuning import Config

_POINTERS = {
    "codes": "*i8",
    "weights": "*u8",
    "sums": "*i32",
    "weight_sum": "*i32",
    "weight_zero": "*i32",
    "code_sums": "*i32",
    "zero": "*i32",
    "act_zero": "*i32",
    "step": "*i32",
    "inverse": "*fp32",
    "multiplier": "*fp32",
    "weight_scale": "*fp32",
    "bias": "*fp32",
    "act_scale": "*fp32",
}
_MULTIPLES_OF_16 = {
    "depth",
    "segment",
    "row_bytes",
    "channels",
    "pitch",
    "columns",
    "pitch_image",
    "pitch_pixel",
    "stride_pixel",
    "stride_line",
    "stride_batch",
}
_SIZES = (
    "rows",
    "columns",
    "depth",
    "channels",
    "pitch",
    "in_width",
    "in_pixels",
    "out_width",
    "out_pixels",
    "kernel_h",
    "kernel_w",
    "stride_h",
    "stride_w",
    "pitch_image",
    "pitch_pixel",
)
_MMA = re.compile(
    r"wgmma\.mma_async\S*\.s32\.s8\.s8|mma\.sync\S*\.s32\.s8\.s8\.s32|tcgen05\.mma\S*i8"
)


@dataclass(frozen=True, slots=True)
class Compiled:
    """Properties of one compiled kernel."""

    name: str
    arch: int
    integer_products: int
    """Number of integer matrix instructions in the PTX."""
    registers: int
    """Registers per thread."""
    spills: int
    """Stack bytes per thread."""
    shared: int
    """Shared memory per program in bytes."""
    ptx: str


def compile_kernel(
    kernel: Any, name: str, arch: int, constants: dict[str, Any], options: dict[str, int]
) -> Compiled:
    """Compiles one kernel.

    Args:
        kernel: a jit function of this package.
        name: name of the result.
        arch: compute capability times ten, 90 for Hopper.
        constants: constexpr arguments, and ``x`` or ``out`` as Triton types.
        options: ``num_warps`` and ``num_stages``.

    Raises:
        RuntimeError: the kernel does not compile.
    """
    signature, fixed, hints = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            fixed[(index,)] = constants[parameter.name]
            continue
        kind = constants.get(parameter.name, _POINTERS.get(parameter.name, "i32"))
        if kind == 1:  # Triton makes a constant of an argument that is 1
            signature[parameter.name] = "constexpr"
            fixed[(index,)] = 1
            continue
        signature[parameter.name] = kind
        if kind.startswith("*") or parameter.name in _MULTIPLES_OF_16:
            hints[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=fixed, attrs=hints)
    compiled: Any = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills = _usage(compiled.asm["cubin"])
    products = len(_MMA.findall(compiled.asm["ptx"]))
    shared = compiled.metadata.shared
    return Compiled(name, arch, products, registers, spills, shared, compiled.asm["ptx"])


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread, as recorded by the assembler."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if usage is None:
        raise RuntimeError("cuobjdump printed no resource usage")
    return int(usage[1]), int(usage[2])


def compile_multiply(
    arch: int,
    bits: int,
    config: Config,
    *,
    act_bits: int = 8,
    windowed: bool = False,
    asymmetric: bool = False,
    ones: bool = False,
) -> Compiled:
    """Compiles the integer product for bfloat16 outputs with channels innermost.

    With ``ones`` every size that can be 1 is 1, which Triton turns into constants.
    """
    constants = {
        "out": "*bf16",
        "pitch_channel": 1,
        "BITS": bits,
        "SEGMENTS": segments(bits),
        "ALIGN": 16,
        "SHIFT": code_shift(act_bits),
        "WINDOWED": windowed,
        "ASYMMETRIC": asymmetric,
        "HAS_BIAS": True,
        "MODE": gemm.FLOAT,
        "GROUP": 8,
        "BLOCK_M": config.rows,
        "BLOCK_N": config.columns,
        "BLOCK_K": config.depth,
    }
    if ones:
        constants |= dict.fromkeys(_SIZES, 1)
    kind = ("conv" if windowed else "gemm") + (" asym" if asymmetric else "")
    name = f"{kind} w{bits}a{act_bits} {config.rows}x{config.columns}x{config.depth}"
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return compile_kernel(gemm.multiply_kernel, name, arch, constants, options)


def compile_quantize(arch: int, channels_last: bool) -> Compiled:
    """Compiles the quantizer for bfloat16 images, with sums and multipliers."""
    constants = {
        "x": "*bf16",
        "stride_channel" if channels_last else "stride_pixel": 1,
        "TOP": 255,
        "SHIFT": 128,
        "HAS_MULT": True,
        "HAS_SUMS": True,
        "BLOCK_X": 64,
        "BLOCK_C": 64,
    }
    name = "quantize " + ("nhwc" if channels_last else "nchw")
    return compile_kernel(quantize_kernel, name, arch, constants, {"num_warps": 4})


def sweep(arch: int, every: bool) -> Iterator[Compiled]:
    """Compiles all kernels with their default tiles, or with every candidate for tuning."""
    yield compile_quantize(arch, channels_last=False)
    yield compile_quantize(arch, channels_last=True)
    for bits in (8, 4, 3, 2, 1, 5, 6, 7):
        large = tuning.default(4096, 4096, bits, arch)
        for config in tuning.candidates(bits) if every else [large]:
            yield compile_multiply(arch, bits, config)
        yield compile_multiply(arch, bits, large, windowed=True, asymmetric=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line: prints one line per kernel; exits with 1 where one lacks integer products."""
    parser = argparse.ArgumentParser(prog="quantarena.methods.core.cuda.aot")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--all", action="store_true", help="every configuration for tuning")
    options = parser.parse_args(arguments)
    bad = 0
    sys.stdout.write(f"{'kernel':32}{'s8 mma':>8}{'regs':>6}{'stack':>7}{'shared':>9}\n")
    for compiled in sweep(options.arch, options.all):
        bad += compiled.integer_products == 0 and not compiled.name.startswith("quantize")
        sys.stdout.write(
            f"{compiled.name:32}{compiled.integer_products:8}{compiled.registers:6}{compiled.spills:7}"
            f"{compiled.shared:9}\n"
        )
        sys.stdout.flush()
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
