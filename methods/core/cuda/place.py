"""Moves packed networks to a GPU: every native leaf is replaced by its CUDA form."""

import torch
from torch import nn

from quantarena.methods.core.cuda.layer import CudaPackedLayer
from quantarena.methods.core.packed.nodes.channel_sum import SplitPackedLayer
from quantarena.methods.core.packed.nodes.k_groups import GroupedLayer
from quantarena.methods.core.packed.nodes.leaf import PackedLayer
from quantarena.methods.core.visits import visited_device, visiting_as


def on_cuda(network: nn.Module, device: torch.device | str = "cuda") -> nn.Module:
    """Moves a packed network to a device in place, and its packed leaves to the CUDA kernels.

    A network whose islands visit the device stays on the host, and so do its leaves until then.

    Args:
        network: a network with packed layers, or a packed layer.
        device: the target device.

    Returns:
        The network; a new object only where ``network`` itself is a packed leaf.
    """
    twins: dict[int, nn.Module] = {}
    root = _twin(network, twins)
    for module in list(root.modules()):
        for name, child in list(module.named_children()):
            setattr(module, name, _twin(child, twins))
    if visited_device(network) is None:
        return nn.Module.to(root, device)  # classes of models may do more than move
    return visiting_as(root, root)


def _twin(module: nn.Module, twins: dict[int, nn.Module]) -> nn.Module:
    """The CUDA form of a native leaf; leaves that are shared stay shared."""
    if not isinstance(module, PackedLayer | GroupedLayer) or isinstance(module, CudaPackedLayer):
        return module
    if id(module) not in twins:
        twin: CudaPackedLayer | SplitPackedLayer
        if isinstance(module, GroupedLayer):
            parts = [CudaPackedLayer(layer) for layer in module.layers()]
            twin = SplitPackedLayer(parts, order=module.channels)
        else:
            twin = CudaPackedLayer(module.integer_layer())
        twin.clock = module.clock
        twin.train(module.training)
        twin.set_step(module._step)
        twins[id(module)] = twin
    return twins[id(module)]
