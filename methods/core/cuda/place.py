"""Packed networks on a GPU: every native leaf replaced by its CUDA twin."""

import torch
from torch import nn

from quantarena.methods.core.cuda.layer import CudaPackedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer


def on_cuda(network: nn.Module, device: torch.device | str = "cuda") -> nn.Module:
    """Moves a packed network to a device, in place, its packed leaves onto the CUDA kernels.

    Args:
        network: a network with packed layers, or a packed layer.
        device: where to.

    Returns:
        The network; another object only where ``network`` itself is a packed leaf.
    """
    twins: dict[int, CudaPackedLayer] = {}
    root = _twin(network, twins)
    for module in list(root.modules()):
        for name, child in list(module.named_children()):
            setattr(module, name, _twin(child, twins))
    return root.to(device)


def _twin(module: nn.Module, twins: dict[int, CudaPackedLayer]) -> nn.Module:
    """The CUDA form of a native leaf, the same for every place that shares it."""
    if not isinstance(module, PackedLayer) or isinstance(module, CudaPackedLayer):
        return module
    if id(module) not in twins:
        twin = CudaPackedLayer(module.integer_layer())
        twin.clock = module.clock
        twin.train(module.training)
        twin.set_step(module._step)
        twins[id(module)] = twin
    return twins[id(module)]
