"""What low-rank factors change at their start, if they start from the weights' rounding error.

docs/methods/mpq_dm.md, "MPQ-DMv2 is not here", has the numbers of ``python
docs/experiments/lora_start.py``: Gaussian weights of 128x128, min-max ranges by row.
"""

import torch
from torch import Tensor

SIDE = 128


def main() -> None:
    """Print one line for each width and rank."""
    weight = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    print("| bits | rank | codes changed, on rounded weights | squared error, on full precision |")
    print("|---|---|---|---|")
    for bits in (4, 3, 2):
        top = 2**bits - 1
        scale = (high - low) / top

        def codes(w: Tensor, scale: Tensor = scale, top: int = top) -> Tensor:
            return ((w - low) / scale).round().clamp(0, top)

        before = codes(weight)
        rounded = before * scale + low
        left, values, right = torch.linalg.svd(weight - rounded)
        for rank in (8, 32):
            added = (left[:, :rank] * values[:rank]) @ right[:rank]
            changed = (codes(rounded + added) != before).float().mean()
            after = (weight - codes(weight + added) * scale - low).square().sum()
            growth = after / (weight - rounded).square().sum()
            print(f"| {bits} | {rank} | {100 * changed:.2f} % | {growth:.2f} times |")


if __name__ == "__main__":
    main()
