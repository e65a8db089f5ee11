"""Errors of single int8 layers of OpenVINO against the exact product of their own codes.

Weights and inputs are Gaussian. Where sums of two products saturate in int16, a layer is exact for
small weight codes alone, so each is run with several sizes of the largest code.

    pip install 'quantarena[rivals]'
    python docs/experiments/kernels/openvino_layers.py

docs/kernels.md and docs/runtimes.md have the numbers.
"""

import torch
from torch import Tensor
from torch.nn import functional

from quantarena.bench.machine import fingerprint, has_dot_products
from quantarena.methods.timing.cases import Case, example_input
from quantarena.methods.timing.rivals import SCALE, ZERO, openvino_layer, weight_codes

CASES = (
    Case("linear", (64, 320, 160)),
    Case("linear", (256, 320, 320)),
    Case("conv2d", (16, 64, 32, 64)),
)
SIZES = (127, 112, 96, 80, 64)


def exact(case: Case, weight: Tensor, x: Tensor, most: int) -> Tensor:
    """The layer's output in double precision, from the codes that the int8 layer has.

    An input between two codes goes the way of FakeQuantize, which divides by the range in float32.
    """
    codes, scale = weight_codes(weight, most)
    low, high = (torch.tensor((end - ZERO) * SCALE, dtype=torch.float32) for end in (0, 255))
    acts = ((x.clamp(low, high) - low) / (high - low) * 255).round().double() - ZERO
    wide = codes.double() * scale.double().view(-1, *[1] * (weight.dim() - 1))
    if case.kind == "linear":
        return functional.linear(acts * SCALE, wide)
    return functional.conv2d(acts * SCALE, wide, padding=1)


def main() -> None:
    """Print a table: a line for each layer, a column for each size of the largest code."""
    torch.set_num_threads(1)
    print(fingerprint()["cpu"], "with" if has_dot_products() else "without", "dot products")
    print("| layer |", " | ".join(f"codes up to {size}" for size in SIZES), "|")
    print("|---|" + "---|" * len(SIZES))
    for case in CASES:
        make = torch.Generator().manual_seed(0)
        kernel = () if case.kind == "linear" else (3, 3)
        weight = torch.randn(case.shape[-1], case.shape[1], *kernel, generator=make)
        x, errors = example_input(case), []
        for size in SIZES:
            run = openvino_layer(case, weight, x, size)
            if run is None:
                raise SystemExit("OpenVINO is not installed: pip install 'quantarena[rivals]'")
            target = exact(case, weight, x, size)
            off = torch.from_numpy(run()).double() - target
            errors.append(float(off.norm() / target.norm()))
        print(f"| {case.name} |", " | ".join(f"{error:.1e}" for error in errors), "|")


if __name__ == "__main__":
    main()
