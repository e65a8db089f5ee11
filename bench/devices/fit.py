"""Whether a pipeline's networks fit a device, or the largest of the blocks that visit it."""

from collections.abc import Mapping

import torch
from torch import nn

from quantarena.bench.errors import UserError
from quantarena.bench.target import Target
from quantarena.methods.core.network import tensor_bytes
from quantarena.methods.core.visits import islands


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a device that tensors may take now; None where it does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return None


def require_fit(networks: Mapping[str, nn.Module], target: Target, free: int | None) -> None:
    """Refuse networks that do not fit the target's device. Activations are not counted.

    Args:
        networks: the pipeline's networks by name, on the host.
        target: with ``offload``, what has to fit is the largest block of any network.
        free: bytes that are free there; None where nobody knows.

    Raises:
        UserError: one line with the bytes needed and free, and what to do.
    """
    if free is None:
        return
    if not target.offload:
        needed = sum(map(tensor_bytes, networks.values()))
        if needed > free:
            raise UserError(
                f"--device {target.device}: the pipeline's networks take {needed:,} bytes, "
                f"{free:,} are free there: add --offload, which keeps them on the host and moves "
                "one block at a time"
            )
        return
    blocks = {
        f"{name}.{path}".strip("."): tensor_bytes(network.get_submodule(path))
        for name, network in networks.items()
        for path in islands(network)
    }
    largest = max(blocks, key=lambda path: blocks[path], default=None)
    if largest is not None and blocks[largest] > free:
        raise UserError(
            f"--offload: {largest}, which moves as a whole, takes {blocks[largest]:,} bytes, "
            f"{free:,} are free on {target.device}: take a device with more memory, or --device cpu"
        )
