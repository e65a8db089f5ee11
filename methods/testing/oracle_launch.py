"""What the CUDA kernels compute, by the integer oracle on the host: for devices without memory."""

import torch
from torch import Tensor

from quantarena.methods.core.cuda.layer import CudaPackedLayer
from quantarena.methods.core.cuda.problem import Problem
from quantarena.methods.core.kernels import native, oracle


def oracle_launch(
    self: CudaPackedLayer, x: Tensor, step: int, into: Tensor, flags: int, call: Problem
) -> None:
    """Stands in for ``CudaPackedLayer._launch``, with its arguments."""
    layer, given = self.integer_layer(), x.cpu()
    if flags & native.INTEGER:
        y = oracle.accumulators(layer, given, step).to(torch.int32)
    else:
        y = oracle.forward(layer, given, step)
    y = y.to(x.device).view(into.shape)
    into.add_(y) if flags & native.ACCUMULATE else into.copy_(y)
