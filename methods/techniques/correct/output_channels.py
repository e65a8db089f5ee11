"""Which channel of a network's prediction each output channel of its last layer becomes.

A convolution's channels are those of the prediction; a transformer's last layer gives all pixels of
a patch side by side. Nothing here knows which: the layer is made to give the number of its channel
everywhere, and the prediction shows where the numbers went.
"""

from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.errors import Unsupported
from quantarena.methods.core.record.points import CalibrationSet


@torch.no_grad()
def output_channels(network: nn.Module, name: str, points: CalibrationSet) -> Tensor:
    """The channel of the prediction for each output channel of a layer, (O,) int64.

    Args:
        network: in full precision; it runs once.
        name: path of the layer.
        points: a few points.

    Raises:
        Unsupported: the prediction is more than a rearrangement of the layer's output.
    """
    layer = network.get_submodule(name)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    count = 0

    def number(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        nonlocal count
        count = output.shape[axis]
        shape = [1] * output.dim()
        shape[axis] = count
        # from 1: a zero that the network adds itself is not taken for a channel
        return torch.arange(1, count + 1).to(output).reshape(shape).expand_as(output).clone()

    handle = layer.register_forward_hook(number)
    try:
        prediction = points.call(network).cpu()
    finally:
        handle.remove()
    owner = torch.full((count + 1,), -1)
    for channel in range(prediction.shape[1]):
        seen = torch.unique(prediction[:, channel])
        numbers = seen.round().long()
        exact = torch.equal(numbers.to(seen), seen) and int(numbers.min()) >= 1
        if not exact or int(numbers.max()) > count or bool((owner[numbers] >= 0).any()):
            raise _not_rearranged(name)
        owner[numbers] = channel
    if bool((owner[1:] < 0).any()):
        raise _not_rearranged(name)
    return owner[1:]


def _not_rearranged(name: str) -> Unsupported:
    return Unsupported(
        f"the prediction is more than a rearrangement of the channels of {name}: a correction of "
        "its channels has no place in the last layer"
    )
