"""A module to take a denoiser's place in a pipeline."""

import inspect
from typing import Any, NamedTuple

from torch import Tensor, nn

from quantarena.methods.core.nested import prediction


class Prediction(NamedTuple):
    """A network's output as pipelines read it: as ``.sample``, or as the first item of a tuple."""

    sample: Tensor


class StandIn(nn.Module):
    """Has a denoiser's signature and attributes, and another network's arithmetic.

    Pipelines read ``config``, ``dtype`` and more of their denoiser. All that this module lacks is
    looked up in the original, whose weights are not among its parameters.

    Args:
        original: the denoiser.
        network: called with (sample, timestep=..., return_dict=False, **conditions), as recorded
            points call a network.
    """

    def __init__(self, original: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.__dict__["original"] = original
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = inspect.signature(original.forward).parameters.values()
        self.__dict__["names"] = [p.name for p in parameters if p.kind in kinds]
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Prediction:
        """The network's prediction on a denoiser's arguments."""
        named = dict(zip(self.names, args, strict=False)) | kwargs
        sample, timestep = named.pop(self.names[0]), named.pop("timestep")
        named.pop("return_dict", None)
        output = self.network(sample, timestep=timestep, return_dict=False, **named)
        return Prediction(prediction(output, self.network))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = self.__dict__.get("original")
            if original is None:  # while it is being copied
                raise
            return getattr(original, name)
