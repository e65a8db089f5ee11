"""A denoiser whose inputs are tensors in order, as tracers of other runtimes want it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quantarena.methods.core.nested import leaves, map_leaves, prediction


class Positional(nn.Module):
    """A network whose inputs are a sample, timesteps, and the tensors of its conditions in order.

    Tracers of other runtimes take positional tensors; what is no tensor becomes part of the model.
    """

    def __init__(self, network: nn.Module, conditions: Mapping[str, Any]) -> None:
        super().__init__()
        self.network, self.conditions = network, conditions
        self.names = list(_tensors(conditions))

    def forward(self, sample: Tensor, timestep: Tensor, *others: Tensor) -> Tensor:
        """The network's prediction; ``others`` are the conditions' tensors."""
        given = dict(zip(self.names, others, strict=True))
        filled = map_leaves(lambda path, leaf: given.get(path, leaf), self.conditions)
        output = self.network(sample, timestep=timestep, return_dict=False, **filled)
        found: Tensor = prediction(output, self.network)
        return found


def arguments(sample: Tensor, timestep: Any, conditions: Mapping[str, Any]) -> Iterator[Tensor]:
    """A call's tensors in the order of the model's inputs; timesteps are spread over the rows."""
    times = torch.as_tensor(timestep)
    yield sample.contiguous()
    yield times.expand(len(sample)).contiguous() if times.dim() == 0 else times
    yield from (tensor.contiguous() for tensor in _tensors(conditions).values())


def _tensors(conditions: Mapping[str, Any]) -> dict[str, Tensor]:
    return {path: leaf for path, leaf in leaves(conditions).items() if isinstance(leaf, Tensor)}
